# SPDX-License-Identifier: Apache-2.0
"""What must be so after a fault. Each answers what is not, in words, or nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.faults.world import World

_STATE = "var/lib/lashd"
# In which a file is on disk after it has got its name (seconds).
_DURABLE_SECONDS = 0.5


def sound(world: World) -> str:
    """The host is up, in a version of which every image is whole, and podman reads the store."""
    if wrong := world.damage():
        return f"booted v{world.version()} with damaged images: {wrong[:3]}"
    return ""


def started(world: World, called: list[str]) -> str:
    """Start the host after it lost its power, or was killed, and look before anything can be fetched again.

    What was `called` present (digests) must be whole, and so must what runs. Then the registry is there.
    """
    world.online(False)
    world.host.start()
    if damaged := world.damaged(called):
        return f"called present before the cut, and damaged: {damaged}"
    if wrong := sound(world):
        return wrong
    world.online(True)
    return ""


def arrives(world: World, *, must_know: bool = True) -> str:
    """Without any further command v2 is declared ready, and a plain reboot brings it up, whole.

    Unless it `must_know` of v2, a person may have to stage it again: it was lost before lashd had written down that it
    is wanted. That is added to the world's excuses.
    """
    if world.version() != "2":
        if not world.known():
            if must_know:
                return f"nobody knows of v2 any more, although that was written down\n{world.host.journal(60)}"
            world.excuses.append("lost before lashd had written it down")
            world.stage()
        world.wait(world.declared, "v2 is declared ready by itself", 90)
        world.host.reboot()
    if (version := world.version()) != "2":
        return f"v{version} after the reboot, although v2 was ready\n{world.host.journal(60)}"
    return sound(world)


def left_behind(world: World) -> str:
    """Nothing half done is left."""
    places = "/var/lib/lashd/pull /sysroot/ostree/bootc/storage/.lashd*"
    left = world.host.run("sh", "-c", f"ls -A {places} 2>/dev/null", check=False).output
    return f"left behind: {left}" if left.strip() else ""


def remembered(world: World) -> bool:
    """Is it written down, so that no kill and no power cut now can take it away, that v2 is to come?

    Looked at from outside, just before the fault.
    """
    try:
        written = (_state(world) / "owed.json").stat().st_mtime
    except OSError:
        return False
    return time.time() - written > _DURABLE_SECONDS


def recorded(world: World) -> list[str]:
    """The digests of the images for which there is a record; from outside as well."""
    found: set[str] = set()
    for path in (_state(world) / "records").glob("[!.]*.json"):
        found |= {image["digest"] for image in json.loads(path.read_text())["images"]}
    return sorted(found)


def _state(world: World) -> Path:
    return Path(f"/proc/{world.host.leader()}/root", _STATE)
