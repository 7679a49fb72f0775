# SPDX-License-Identifier: Apache-2.0
"""Whose database is in a store? Inside the throwaway host's Debian (tests/bench/trixie.py): who can use it after whom.

Reads `image` (a reference) as JSON from standard input. Answers {situation: [exit status, end of what podman said]}.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from tests.bench.writing import ALIAS, ROOT, as_bootc

DATABASE = ROOT / "db.sql"


def main() -> None:
    image = json.load(sys.stdin)["image"]
    ALIAS.mkdir(parents=True)
    plain = ["podman", "--root", str(ROOT)]
    bootc = as_bootc("podman image list --quiet")
    answer = {}

    def fresh() -> None:
        """As lashd makes a store: with skopeo, which has no database."""
        shutil.rmtree(ROOT, ignore_errors=True)
        ROOT.mkdir(parents=True)
        to = f"containers-storage:[overlay@{ROOT}+{ALIAS}]{image}"
        subprocess.run(["skopeo", "copy", "--quiet", f"docker://{image}", to], check=True)

    def tried(situation: str, argv: list[str]) -> None:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        answer[situation] = (done.returncode, done.stderr[-300:])

    fresh()
    answer["database of a store that lashd made"] = (int(DATABASE.exists()), "")
    tried("bootc first", bootc)
    tried("bootc first, then podman by the path", [*plain, "image", "list"])
    tried("bootc first, then podman by the path, pull", [*plain, "pull", image])
    tried("bootc first, then with --transient-store", [*plain, "--transient-store", "image", "exists", image])
    more = ["podman", "--root", "/mnt/own", f"--storage-opt=additionalimagestore={ROOT}"]
    tried("bootc first, then as an additional store", [*more, "image", "exists", image])
    tried("bootc after all of them", bootc)
    fresh()
    tried("podman by the path first", [*plain, "image", "list"])
    tried("podman by the path first, then bootc", bootc)
    DATABASE.unlink()
    tried("bootc after the database was removed", as_bootc('podman image exists "$@"', image))
    fresh()
    tried("with --transient-store first", [*plain, "--transient-store", "image", "list"])
    tried("with --transient-store first, then bootc", bootc)
    print(json.dumps(answer))


if __name__ == "__main__":
    os.environ["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "1"
    main()
