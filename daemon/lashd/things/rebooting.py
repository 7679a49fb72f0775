# SPDX-License-Identifier: Apache-2.0
"""The units that reboot, and whether the host can reboot softly. lashd itself never calls `systemctl reboot`."""

from __future__ import annotations

import re
from enum import StrEnum

from lashd.words.errors import ErrorName, LashdError
from lashd.words.run import run
from lashd.words.text import one_line

UNIT = "lashd-reboot.service"
SOFT_UNIT = "lashd-soft-reboot.service"
_TIMEOUT = 20.0


class Going(StrEnum):
    """What became of a reboot that was started."""

    DOWN = "down"  # the unit still runs, or the host is going down
    FAILED = "failed"  # the unit failed: somebody blocked it, or it is not there
    UP = "up"  # the unit did its work, and the host is not going down (yet)


async def start(unit: str = UNIT, systemctl: str = "systemctl") -> None:
    """Start the unit and come back before it has done anything. Raises HostCommandFailed."""
    # What is left of an earlier attempt must not be taken for this one's failure.
    await run([systemctl, "reset-failed", unit], timeout=_TIMEOUT)
    done = await run([systemctl, "start", "--no-block", unit], timeout=_TIMEOUT)
    if done.status != 0:
        raise LashdError(
            ErrorName.HOST_COMMAND_FAILED,
            f"{unit} could not be started: {one_line(done.stderr) or f'status {done.status}'}.",
        )


async def look(unit: str = UNIT, systemctl: str = "systemctl") -> Going:
    """What became of `unit`, which was started before. Raises HostCommandFailed or Timeout when that is not known."""
    done = await run([systemctl, "show", "--property=ActiveState", "--value", unit], timeout=_TIMEOUT)
    state = done.stdout.decode(errors="replace").strip()
    if done.status != 0 or not state:
        raise LashdError(ErrorName.HOST_COMMAND_FAILED, f"systemd does not say how {unit} is: {one_line(done.stderr)}.")
    if state == "failed":
        return Going.FAILED
    if state != "inactive":
        return Going.DOWN
    # Its status is that of the word: not 0 for most of them.
    done = await run([systemctl, "is-system-running"], timeout=_TIMEOUT)
    return Going.DOWN if done.stdout.strip() == b"stopping" else Going.UP


async def ostree_version(ostree: str = "ostree") -> tuple[int, ...]:
    """Such as (2025, 2); empty when it cannot be found out."""
    try:
        done = await run([ostree, "--version"], timeout=_TIMEOUT)
    except LashdError:
        return ()
    found = re.search(r"^ *Version: '?(\d{4})\.(\d+)", done.stdout.decode(errors="replace"), re.MULTILINE | re.ASCII)
    return (int(found[1]), int(found[2])) if found else ()
