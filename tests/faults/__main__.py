# SPDX-License-Identifier: Apache-2.0
"""`make faults`: faults on booted hosts, many times each; prints the table and puts it into build/faults.json.

python -m tests.faults [--runs N] [--jobs N] [--only TEXT] [KIND …]
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from demo import rootfs, tree
from tests.faults import workers
from tests.faults.table import Row, merged, save, show
from tests.faults.work import FULL, Scale, Task, scale_to

REPOSITORY = Path(__file__).resolve().parents[2]
# Modules of this package: `tasks(scale)` are what is to be done, and `do(world, task)` does one.
KINDS = ("edges", "gate_edges", "successes", "gate", "arrivals")


def tasks(kinds: list[str], scale: Scale, only: str) -> Iterator[Task]:
    for kind in kinds:
        found: Iterator[Task] = importlib.import_module(f"tests.faults.{kind}").tasks(scale)
        yield from (task for task in found if task.is_about(only))


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=FULL, help=f"how often the main faults are made, others less (default: {FULL})"
    )
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many hosts at once")
    parser.add_argument("--only", default="", metavar="TEXT", help="only those with TEXT in their name")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build/faults.json", help="where the rows go")
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], metavar="KIND", help=", ".join(KINDS))
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("This mounts disks and boots a system on them: run it as root.")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    rootfs.ensure()
    tree.ensure()
    rows: list[Row] = []
    whole = not options.kinds and not options.only

    def got(more: list[Row]) -> None:
        # What is known is kept, should this not come to its end. A whole run leaves nothing of earlier ones.
        rows[:] = merged([*rows, *more])
        save(rows, options.output, keep=lambda fault: not whole or fault.startswith("mutant: "))

    try:
        found = tasks(options.kinds or list(KINDS), scale_to(options.runs), options.only)
        workers.run(found, options.jobs, got, lambda task: task.is_about(options.only))
    finally:
        show(sorted(rows, key=lambda row: row.fault))
        total = time.monotonic() - began
        print(f"{sum(row.runs for row in rows)} runs in {total / 60:.1f} minutes, {options.jobs} hosts at once")
    return 1 if not rows or any(row.violations or not row.runs for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
