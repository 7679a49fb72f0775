# SPDX-License-Identifier: Apache-2.0
"""`make bootc`: runs the tests that docs/bootc.md names, and prints its tables with what they came to.

python -m tests.host.bootc [--jobs N] [--only TEXT]
"""

from __future__ import annotations

import argparse
import os
import sys

import pytest

from tests.host.bootc.table import REPOSITORY, rows, show


class Outcomes:
    """A plugin of pytest: whether each test has passed, in all of its parts and with all of its parameters."""

    def __init__(self) -> None:
        self.passed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            return
        name = report.nodeid.partition("[")[0]
        self.passed[name] = self.passed.get(name, True) and report.passed


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.host.bootc", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="how many hosts at once (default: 2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows with TEXT in them")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("This mounts disks and boots a system on them: run it as root.")
    os.chdir(REPOSITORY)
    chosen = [row for row in rows() if options.only in row.what]
    tests = sorted({test for row in chosen for test in row.tests})
    outcomes = Outcomes()
    status = 0
    if tests:
        status = pytest.main(["-q", "-n", str(options.jobs), "--dist", "loadfile", *tests], plugins=[outcomes])
    fine = show(chosen, outcomes.passed)
    return 0 if fine and status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
