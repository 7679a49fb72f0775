# SPDX-License-Identifier: Apache-2.0
"""A network namespace for each guest, with nothing but a loopback in it.

A guest is never started in the machine's own: one that ran a network service there took the machine's address away.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo.shell import Failed, call

_DIRECTORY = Path("/run/netns")


class Network:
    """The namespace called lashd-NAME."""

    def __init__(self, name: str) -> None:
        self.name = f"lashd-{name}"
        self.path = _DIRECTORY / self.name

    def create(self) -> None:
        """Make it, with its loopback up; what a killed run left under this name is removed first."""
        self.delete()
        call(["ip", "netns", "add", self.name])
        refuse_machine_namespace(self.path)
        call(self.enter(["ip", "link", "set", "lo", "up"]))

    def enter(self, argv: Sequence[str | Path]) -> list[str | Path]:
        """The command line that runs `argv` inside."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    @contextmanager
    def slow(self, rate: str) -> Iterator[None]:
        """Everything that crosses the namespace's loopback is held to `rate` (as tc writes it: 100mbit)."""
        shape = ["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", rate, "burst", "256kb", "latency", "100ms"]
        call(self.enter(shape))
        try:
            yield
        finally:
            call(self.enter(["tc", "qdisc", "del", "dev", "lo", "root"]))

    def delete(self) -> None:
        """Remove it, and end what still runs in it: that would keep it alive, without a name."""
        if not self.path.exists():
            return
        with contextlib.suppress(Failed):
            # Never the wrong ones: a name could have been given to the machine's own namespace.
            refuse_machine_namespace(self.path)
            for pid in call(["ip", "netns", "pids", self.name]).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(Failed):
            call(["ip", "netns", "delete", self.name])


def refuse_machine_namespace(path: Path) -> None:
    """Raises Failed when `path` is the network namespace that this process, or process 1, is in."""
    for machine in (Path("/proc/self/ns/net"), Path("/proc/1/ns/net")):
        with contextlib.suppress(PermissionError):  # in a container process 1 may be closed to us
            if path.samefile(machine):
                raise Failed(f"{path} is the machine's own network namespace; a guest is never started in it.")
