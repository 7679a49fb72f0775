# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every edge: of the daemon, and of the whole host, from the moment that something is staged to the gate."""

from __future__ import annotations

import random
import time
from pathlib import Path

from demo.shell import Failed
from tests.faults.table import Row
from tests.faults.world import World

_TRACED = Path(__file__).with_name("traced.py")
_LOG = "/run/edges/log"


def edges(world: World) -> list[str]:
    """What the daemon does outside of itself, from hold to declared, in order; different runs differ a little."""
    world.fresh()
    _trace(world)
    world.stage()
    world.wait(world.declared, "declared with the tracer")
    return [line.partition(" ")[2] for line in world.host.run("cat", _LOG).output.splitlines()]


def run(world: World, moments: int = 30, most: int = 1000) -> list[Row]:
    """Kill the daemon at each edge, kill the host at each edge, and cut its power at `moments` random moments.

    After each the host must boot into a system with all of its images, and without any further command end in v2.
    `most` limits the number of edges, spread over all of them.
    """
    found = edges(world)
    print(f"{len(found)} edges:")
    for number, what in enumerate(found, 1):
        print(f"  {number} {what}")
    chosen = range(1, len(found) + 1, -(-len(found) // most))
    daemon, host, rebooted = (
        Row("daemon killed at every edge: goes on by itself"),
        Row("host killed at every edge"),
        Row("daemon killed at every edge, rebooted at once"),
    )
    for number in chosen:
        daemon.run(lambda number=number: daemon_killed(world, number, reboot=False))  # type: ignore[misc]
        rebooted.run(lambda number=number: daemon_killed(world, number, reboot=True))  # type: ignore[misc]
        host.run(lambda number=number: host_killed(world, number))  # type: ignore[misc]
    cut, killed = Row("power cut at random moments"), Row("host killed at random moments")
    generator = random.Random(1)
    for _ in range(moments):
        cut.run(lambda: cut_at(world, generator.uniform(0, 4), power=True))
        killed.run(lambda: cut_at(world, generator.uniform(0, 4), power=False))
    return [daemon, rebooted, host, cut, killed]


def daemon_killed(world: World, number: int, *, reboot: bool) -> str:
    """Kill the daemon at edge `number`; with `reboot` at once reboot the host, too."""
    world.fresh()
    _trace(world, number)
    world.stage()
    try:
        world.wait(lambda: _died(world) or world.declared(), "it was killed, or came through", 60)
    except Failed as error:
        return str(error)
    if reboot:
        world.host.reboot()
        if wrong := _sound(world):
            return wrong
    return _arrives(world)


def host_killed(world: World, number: int) -> str:
    """Kill the host the moment the daemon reaches edge `number`."""
    world.fresh()
    _trace(world, number)
    world.stage()
    world.wait(lambda: _died(world) or world.declared(), "it was killed, or came through", 60)
    world.host.kill()
    world.host.start()
    return _sound(world) or _arrives(world)


def cut_at(world: World, seconds: float, *, power: bool) -> str:
    """Kill the host, or cut its power, some time after v2 was staged."""
    world.fresh()
    world.stage()
    time.sleep(seconds)
    present = _present(world)
    if power:
        world.host.power_cut()
    else:
        world.host.kill()
    world.host.start()
    if wrong := _sound(world):
        return wrong
    # What was called present before must be whole now, also while the next system is only being fetched.
    damaged = world.damaged(present)
    return f"called present before the cut, and damaged: {damaged}" if damaged else _arrives(world)


def _trace(world: World, number: int = 0) -> None:
    """Let lashd run with the tracer until the host is booted again; it dies at edge `number`, counted from now."""
    host = world.host
    host.run("mkdir", "-p", "/run/edges", "/run/systemd/system/lashd.service.d")
    host.run("sh", "-c", "cat >/run/edges/traced.py", input=_TRACED.read_bytes())
    dropin = f"[Service]\nExecStart=\nExecStart=/usr/bin/python3 /run/edges/traced.py {_LOG} {number}\n"
    host.run("sh", "-c", "cat >/run/systemd/system/lashd.service.d/edges.conf", input=dropin.encode())
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "lashd.service")


def _died(world: World) -> bool:
    return world.host.run("test", "-e", "/run/edges/log.died", check=False).status == 0


def _present(world: World) -> list[str]:
    """Digests that the daemon calls present for the staged deployment."""
    try:
        rows = world.lashctl("list", "--deployment", "staged")
    except (ValueError, Failed):
        return []
    return [row["present-digest"] for row in rows if isinstance(row, dict) and row.get("state") == "present"]


def _sound(world: World) -> str:
    """The host is up, in a version of which every image is whole."""
    if wrong := world.damage():
        return f"booted v{world.version()} with damaged images: {wrong[:3]}"
    return ""


def _arrives(world: World) -> str:
    """Without any further command v2 is declared ready, and a plain reboot brings it up, whole."""
    if world.version() != "2":
        if not world.known():
            world.stage()  # the host was gone before lashd had seen it: nobody knows of it but who staged it
        world.wait(world.declared, "v2 is declared ready by itself", 90)
        world.host.reboot()
    if (version := world.version()) != "2":
        return f"v{version} after the reboot, although v2 was ready\n{world.host.journal(60)}"
    left = world.host.run(
        "sh", "-c", "ls -A /var/lib/lashd/pull /sysroot/ostree/bootc/storage/.lashd* 2>/dev/null", check=False
    )
    return _sound(world) or (f"left behind: {left.output}" if left.output.strip() else "")
