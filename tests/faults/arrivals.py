# SPDX-License-Identifier: Apache-2.0
"""A third party stages with the registry off, and the host is rebooted; later the registry is there again."""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.table import Row
from tests.faults.work import Done, Scale, Task, sliced
from tests.faults.world import World

HELD = "arrivals: staged by a third party, registry off, rebooted: old system"
ARRIVED = "arrivals: registry back, no further command, rebooted: new system"


def tasks(scale: Scale) -> Iterator[Task]:
    yield from sliced("arrivals", HELD, scale(20), 1)


def do(world: World, task: Task) -> Done:
    held, arrived = Row(HELD), Row(ARRIVED)
    for _ in range(task.times):
        held.run(lambda: stays(world))
        arrived.run(lambda: arrives(world))
    return Done([held, arrived])


def stays(world: World) -> str:
    """Registry off: the old system comes up, with all that it binds, and says why."""
    world.fresh(online=False)
    world.stage()
    world.host.reboot()
    if (version := world.version()) != "1":
        return f"v{version} came up without its images"
    shutdown = world.status()["lastShutdown"]
    if shutdown.get("result") != "held" or not shutdown.get("reasons"):
        return f"nothing says why: {shutdown}"
    return "; ".join(world.damage())


def arrives(world: World) -> str:
    """Registry on, and no further command: staged again, bound, declared ready; the next reboot brings it up."""
    world.online(True)
    world.wait(world.declared, "v2 is staged again, bound and declared ready", 120)
    world.host.reboot()
    if (version := world.version()) != "2":
        return f"v{version} after the reboot, although v2 was ready"
    if wrong := world.damage():
        return "; ".join(wrong)
    active = world.host.run("systemctl", "is-active", "web", "agent", "probe", check=False).output.split()
    return "" if active == ["active"] * 3 else f"containers: {active}"
