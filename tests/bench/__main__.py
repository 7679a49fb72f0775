# SPDX-License-Identifier: Apache-2.0
"""`make bench`: every figure that the project promises, as ratios in one run and medians; writes build/bench.json.

python -m tests.bench [--repeats N] [latency bandwidth present imports service gate notice bootc writers]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from demo import rootfs
from tests.bench import pulls
from tests.bench.bootc import bootc
from tests.bench.gate import gate
from tests.bench.imports import imports
from tests.bench.measure import Figure, report
from tests.bench.notice import notice
from tests.bench.service import service
from tests.bench.writers import writers

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHES = {
    "latency": pulls.latency,
    "bandwidth": pulls.bandwidth,
    "present": pulls.present,
    "imports": imports,
    "service": service,
    "gate": gate,
    "notice": notice,
    "bootc": bootc,
    "writers": writers,
}
# Asked for by name only: no measure of time (`make writers`).
BY_NAME = ("writers",)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], metavar="NAME", help=", ".join(BENCHES))
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("The benchmarks mount file systems and write a store with owners: run them as root.")
    rootfs.ensure()
    figures: list[Figure] = []
    for name in options.names or [name for name in BENCHES if name not in BY_NAME]:
        print(f"{name}: {(BENCHES[name].__doc__ or '').splitlines()[0]}", flush=True)
        # Below the checkout's cache, because that is on a disk: /tmp may be memory.
        work = Path(tempfile.mkdtemp(prefix="bench-", dir=rootfs.CACHE))
        try:
            figures += asyncio.run(BENCHES[name](work, options.repeats))
        finally:
            # ostree makes deployments immutable.
            subprocess.run(["chattr", "-R", "-f", "-i", str(work)], check=False)
            shutil.rmtree(work)
    report(figures, REPOSITORY / "build" / "bench.json")
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
