# SPDX-License-Identifier: Apache-2.0
"""`make faults`: faults on booted hosts, many times each; prints the table and adds it to build/faults.json.

python -m tests.faults [--runs N] [gate arrivals edges …]
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from demo import rootfs
from tests.faults.table import Row, report
from tests.faults.world import World

REPOSITORY = Path(__file__).resolve().parents[2]
# Modules of this package; each has `run(world, runs)`, whose second argument says how often, and answers its rows.
KINDS = ("gate", "arrivals", "edges")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how often each fault is made")
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], metavar="KIND", help=", ".join(KINDS))
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("This mounts disks and boots a system on them: run it as root.")
    rootfs.ensure()
    # Below the checkout's cache, because that is on a disk: /tmp may be memory.
    work = Path(tempfile.mkdtemp(prefix="faults-", dir=rootfs.CACHE))
    rows: list[Row] = []
    try:
        with World(work, f"f{os.getpid()}") as world:
            for kind in options.kinds or KINDS:
                run: Callable[[World, int], list[Row]] = importlib.import_module(f"tests.faults.{kind}").run
                found = run(world, options.runs)
                # What is known is kept, should a later kind not come to its end.
                report(found, REPOSITORY / "build/faults.json")
                rows += found
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if any(row.violations for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
