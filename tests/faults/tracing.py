# SPDX-License-Identifier: Apache-2.0
"""Have lashd, or its gate, run with the tracer (`traced.py`) in a world's host, and wait for a moment that it names."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.faults.table import NotReached
from tests.faults.world import World

EDGE, SUCCESS = "edge: ", "success: "
_TRACED = Path(__file__).with_name("traced.py")
_PLACE = "/var/lib/edges"
_COMMAND = f"/usr/bin/python3 {_PLACE}/traced.py {_PLACE}"
_STARTS = {
    # In its sandbox it could not write there.
    "lashd": f"ExecStart=\nExecStart={_COMMAND} lashd\nReadWritePaths={_PLACE}\n",
    "gate": f"ExecStop=\nExecStop=-/bin/sh /usr/lib/lashd/hold\nExecStop={_COMMAND} gate\n",
}
_UNITS = {"lashd": "lashd.service", "gate": "lashd-gate.service"}


@dataclass(frozen=True)
class Moment:
    """The `number`th time that `what` happens in one life of the program."""

    what: str
    number: int = 1


def trace(
    world: World, moment: Moment | None = None, do: str = "kill", *, program: str = "lashd", at_boot: bool = False
) -> None:
    """Let the program run with the tracer; it will `do` this (kill or stop) to itself at `moment`.

    lashd is started anew for that, with `at_boot` by the next boot and not before.
    """
    host = world.host
    order = "" if moment is None else f"{do}\n{moment.number}\n{moment.what}\n"
    host.run("sh", "-c", f"rm -rf {_PLACE}; mkdir -p {_PLACE}; cat > {_PLACE}/traced.py", input=_TRACED.read_bytes())
    if order:
        host.run("sh", "-c", f"cat > {_PLACE}/order", input=order.encode())
    # What is below /etc is there after a reboot, too.
    place = f"/{'etc' if at_boot else 'run'}/systemd/system/{_UNITS[program]}.d"
    text = f"[Service]\n{_STARTS[program]}"
    host.run("sh", "-c", f"mkdir -p {place} && cat > {place}/edges.conf", input=text.encode())
    if not at_boot:
        host.run("systemctl", "daemon-reload")
        if program == "lashd":
            host.run("systemctl", "restart", "lashd.service")


def moments(log: list[str], after: int = 0, kind: str = "") -> list[Moment]:
    """What is in the log from line `after` on, in order; of one `kind` (EDGE, SUCCESS) or of all."""
    count: Counter[str] = Counter()
    found = []
    for line, what in enumerate(log):
        count[what] += 1
        if line >= after and what.startswith(kind):
            found.append(Moment(what, count[what]))
    return found


def log(world: World) -> list[str]:
    """What has happened since `trace`, a line each; from outside, so that it takes no time in the guest."""
    try:
        return _inside(world, "log").read_text().splitlines()
    except FileNotFoundError:
        return []


def reached(world: World) -> bool:
    """Has the moment come?"""
    return _inside(world, "reached").exists()


def wait_for_moment(world: World, seconds: float = 60) -> None:
    """Returns at once when the moment has come. Raises NotReached when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not reached(world):
        if time.monotonic() > deadline:
            raise NotReached(f"not within {seconds:.0f} s; the last was {log(world)[-1:]}")
        time.sleep(0.005)


def _inside(world: World, name: str) -> Path:
    return Path(f"/proc/{world.host.leader()}/root{_PLACE}", name)
