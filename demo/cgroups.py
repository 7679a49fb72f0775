# SPDX-License-Identifier: Apache-2.0
"""A control group of its own for each guest, which becomes the root of what the guest sees and is easy to end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path


def mount_point() -> Path:
    """Where the machine has its cgroup2 hierarchy. Raises RuntimeError when it has none."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise RuntimeError("This machine has no cgroup2 hierarchy mounted; a systemd guest needs one.")


def create(name: str) -> Path:
    """The group `name`, made if it is not there."""
    group = mount_point() / name
    group.mkdir(exist_ok=True)
    return group


def current() -> Path:
    """The group of the calling process."""
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return mount_point() / line.removeprefix("0::").lstrip("/")


def move(pid: int, group: Path) -> None:
    (group / "cgroup.procs").write_text(str(pid))


def end(name: str) -> None:
    """Kill whatever is in the group `name` and remove it; nothing happens when there is no such group."""
    group = mount_point() / name
    if not group.is_dir():
        return
    with contextlib.suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        if not group.exists():
            return
        time.sleep(0.02)


@contextlib.contextmanager
def frozen(name: str) -> Iterator[None]:
    """Nothing in the group `name` runs meanwhile."""
    group = mount_point() / name
    (group / "cgroup.freeze").write_text("1")
    try:
        deadline = time.monotonic() + 5
        while "frozen 1" not in (group / "cgroup.events").read_text() and time.monotonic() < deadline:
            time.sleep(0.002)
        yield
    finally:
        (group / "cgroup.freeze").write_text("0")
