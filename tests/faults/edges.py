# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every edge: of the daemon, and of the whole host, from the moment that something is staged to the gate.

And at random moments: of the whole host, and a power cut. After each the host must boot into a system with all of its
images, and without any further command end in v2.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from demo.shell import Failed
from tests.faults.after import arrives, left_behind, recorded, remembered, sound, started
from tests.faults.table import NotReached, Row
from tests.faults.tracing import EDGE, Moment, log, moments, reached, trace, wait_for_moment
from tests.faults.work import Done, Scale, Task, all_or_some
from tests.faults.world import World

DAEMON = "edges: daemon killed, goes on by itself"
REBOOTED = "edges: daemon killed, rebooted at once"
HOST = "edges: host killed"
KILLED = "moments: host killed at a random moment"
CUT = "moments: power cut at a random moment"
_LOOK = "edges: which are there"


def tasks(scale: Scale) -> Iterator[Task]:
    """With fewer runs than in full, only some of the edges, spread over all of them."""
    yield Task("edges", _LOOK, arguments=(all_or_some(scale), scale(30)), finds=(DAEMON, REBOOTED, HOST, KILLED, CUT))


def do(world: World, task: Task) -> Done:
    if task.name == _LOOK:
        return Done(tasks=list(_found(world, *task.arguments)))
    row = Row(task.name)
    (what,) = task.arguments
    if task.name in (KILLED, CUT):
        row.run(lambda: cut_at(world, what, power=task.name == CUT), world.excuses)
    elif task.name == HOST:
        row.run(lambda: host_killed(world, what), world.excuses)
    else:
        row.run(lambda: daemon_killed(world, what, reboot=task.name == REBOOTED), world.excuses)
    return Done([row])


def _found(world: World, most: int, random_moments: int) -> Iterator[Task]:
    found, seconds = edges(world)
    print(f"{len(found)} edges in {seconds:.1f} s:", *(f"  {one.what} ({one.number})" for one in found), sep="\n")
    generator = random.Random(1)
    for _ in range(random_moments):
        for name in (CUT, KILLED):
            yield Task("edges", name, arguments=(generator.uniform(0, seconds + 1),))
    for moment in spread(found, most):
        for name in (DAEMON, REBOOTED, HOST):
            yield Task("edges", name, arguments=(moment,))


def spread(found: list[Moment], most: int) -> list[Moment]:
    """At most `most` of them, from all over the list."""
    return found[:: -(-len(found) // most)]


def edges(world: World) -> tuple[list[Moment], float]:
    """What the daemon does outside of itself from hold to declared, in order, and how long that took in seconds."""
    world.fresh()
    trace(world)
    before = len(log(world))
    began = time.monotonic()
    world.stage()
    world.wait(world.declared, "declared with the tracer")
    seconds = time.monotonic() - began
    # The last edge is only then.
    time.sleep(1)
    return moments(log(world), before, EDGE), seconds


def daemon_killed(world: World, moment: Moment, *, reboot: bool) -> str:
    """Kill the daemon at an edge; with `reboot` at once reboot the host, too."""
    _stage(world, moment, "kill")
    if reboot:
        world.host.reboot()
        if wrong := sound(world):
            return wrong
    # What is staged lies in /run until the reboot, and at an ordinary one the gate looks.
    return arrives(world, must_know=True) or left_behind(world)


def host_killed(world: World, moment: Moment) -> str:
    """Kill the host the moment the daemon reaches an edge."""
    _stage(world, moment, "stop")
    must_know = remembered(world)
    world.host.kill()
    world.host.start()
    return sound(world) or arrives(world, must_know=must_know) or left_behind(world)


def cut_at(world: World, seconds: float, *, power: bool) -> str:
    """Kill the host, or cut its power, some time after v2 was staged."""
    world.fresh()
    world.stage()
    time.sleep(seconds)
    present = _present(world) + recorded(world)
    must_know = remembered(world)
    if power:
        world.host.power_cut()
    else:
        world.host.kill()
    if wrong := started(world, present):
        return wrong
    return arrives(world, must_know=must_know) or left_behind(world)


def _stage(world: World, moment: Moment, do: str) -> None:
    """Stage v2; when this returns the daemon was killed, or stopped, at `moment`."""
    world.fresh()
    trace(world, moment, do)
    world.stage()
    try:
        world.wait(lambda: reached(world) or world.declared(), "it was killed, or came through", 60)
        # What follows the last thing that can be seen from outside follows at once.
        wait_for_moment(world, 2)
    except Failed as error:
        raise NotReached(str(error)) from error


def _present(world: World) -> list[str]:
    """Digests that the daemon calls present for the staged deployment."""
    try:
        rows = world.lashctl("list", "--deployment", "staged")
    except (ValueError, Failed):
        return []
    return [row["present-digest"] for row in rows if isinstance(row, dict) and row.get("state") == "present"]
