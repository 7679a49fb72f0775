# SPDX-License-Identifier: Apache-2.0
"""The gate at shutdown, at every edge of its work: killed, the host killed, and the power cut.

v2 was declared ready, so that either system may come up, each with all of its images, and without any further command
v2 runs in the end. With the images missing, it is v1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from demo.shell import Failed
from tests.faults.after import arrives, sound
from tests.faults.edges import spread
from tests.faults.table import NotReached, Row
from tests.faults.tracing import EDGE, Moment, moments, trace, wait_for_moment
from tests.faults.work import Done, Scale, Task, all_or_some
from tests.faults.world import World

KILLED = "gate edges: killed"
HOST = "gate edges: host killed"
CUT = "gate edges: power cut"
LACKING = "gate edges: killed, images missing"
_LOOK = "gate edges: which are there"


def tasks(scale: Scale) -> Iterator[Task]:
    yield Task("gate_edges", _LOOK, arguments=(all_or_some(scale),), finds=(KILLED, HOST, CUT, LACKING))


def do(world: World, task: Task) -> Done:
    if task.name == _LOOK:
        return Done(tasks=list(_found(world, *task.arguments)))
    row = Row(task.name)
    (moment,) = task.arguments
    row.run(lambda: at_edge(world, moment, task.name))
    return Done([row])


def _found(world: World, most: int) -> Iterator[Task]:
    for online, names in ((True, (KILLED, HOST, CUT)), (False, (LACKING,))):
        found = edges(world, online=online)
        print(f"{len(found)} edges of the gate:", *(f"  {one.what} ({one.number})" for one in found), sep="\n")
        for moment in spread(found, most):
            for name in names:
                yield Task("gate_edges", name, arguments=(moment,))


def edges(world: World, *, online: bool) -> list[Moment]:
    """What the gate does outside of itself when v2 is complete (`online`) or not, in order."""
    _stage(world, online=online)
    trace(world, program="gate")
    world.host.reboot()
    found = world.host.run("cat", "/var/lib/edges/log").output.splitlines()
    return moments(found, kind=EDGE)


def at_edge(world: World, moment: Moment, name: str) -> str:
    online = name != LACKING
    _stage(world, online=online)
    killed = name in (KILLED, LACKING)
    trace(world, moment, "kill" if killed else "stop", program="gate")
    if killed:
        world.host.reboot()
        if world.host.run("test", "-e", "/var/lib/edges/reached", check=False).status != 0:
            raise NotReached(moment.what)
    else:
        stop_at(world)
        if name == CUT:
            world.host.power_cut()
        else:
            world.host.kill()
        world.host.start()
    if not online and (version := world.version()) != "1":
        return f"v{version} came up without its images"
    if wrong := sound(world):
        return wrong
    world.online(True)
    return arrives(world)


def stop_at(world: World) -> None:
    """Begin to reboot; the gate has stopped itself when this returns."""
    with contextlib.suppress(Failed):  # it may die with the guest that it is in
        world.host.run("systemctl", "reboot", "--no-block", check=False)
    wait_for_moment(world)


def _stage(world: World, *, online: bool) -> None:
    world.fresh(online=online)
    world.stage()
    held = "test -e /run/ostree/staged-deployment-locked && test -e /var/lib/lashd/owed.json"
    seen = world.declared if online else lambda: world.host.run("sh", "-c", held, check=False).status == 0
    world.wait(seen, "v2 is declared ready, or held")
