# SPDX-License-Identifier: Apache-2.0
"""What every test gets: nothing may be left running, and the tools of the suite are found or the test says why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.fixtures"]
REPOSITORY = Path(__file__).resolve().parent.parent


def _children() -> set[int]:
    """Process ids of this process's children. A field of /proc/PID/stat, because not every kernel lists them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Fails a test that leaves a child process behind (session fixtures' own children are there before and after)."""
    before = _children()
    yield
    left = _children() - before
    assert not left, f"left running: {[Path(f'/proc/{pid}/cmdline').read_bytes() for pid in left]}"


@pytest.fixture(scope="session", autouse=True)
def quiet_environment() -> None:
    os.environ.setdefault("LC_ALL", "C.UTF-8")
