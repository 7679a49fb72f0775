# SPDX-License-Identifier: Apache-2.0
"""Who is calling, and may they? The bus says who; reading is free, and every change needs root.

polkit will be asked here, in `Authority.authorise`, for everyone who is not root.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from lashd.bus.library import Connection
from lashd.bus.tree import Call
from lashd.running.jobs import Initiator
from lashd.words.errors import ErrorName, LashdError

# Callers that are remembered; most make several calls.
REMEMBERED = 256
_UNIT = re.compile(r"[^/]+\.(?:service|scope)")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is behind a unique name: user, and process where the bus knows it (else 0)."""

    uid: int
    pid: int


class Authority:
    """Knows the callers on `connection` and decides what they may do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The bus never gives a unique name twice, so what is remembered cannot become wrong, only useless.
        self._callers: OrderedDict[str, Caller] = OrderedDict()

    async def caller(self, sender: str) -> Caller:
        """Who `sender` is. Raises BusError when it has left the bus."""
        known = self._callers.get(sender)
        if known is None:
            (credentials,) = await self._connection.call_bus("GetConnectionCredentials", "s", [sender])
            if "UnixUserID" in credentials:
                known = Caller(credentials["UnixUserID"], credentials.get("ProcessID", 0))
            else:
                (uid,) = await self._connection.call_bus("GetConnectionUnixUser", "s", [sender])
                known = Caller(uid, 0)
            self._callers[sender] = known
            while len(self._callers) > REMEMBERED:
                self._callers.popitem(last=False)
        return known

    async def uid(self, sender: str) -> int:
        """The user behind `sender`. Raises BusError when it has left the bus."""
        return (await self.caller(sender)).uid

    def forget(self, sender: str) -> None:
        self._callers.pop(sender, None)

    async def authorise(self, call: Call, *actions: str, name: str = "") -> Initiator:
        """Let the caller do all of `actions`, or raise NotAuthorized. `name` is what the client calls itself.

        Takes no slot and changes nothing, so that whoever waits here is in nobody's way.
        """
        caller = await self.caller(call.sender)
        if caller.uid != 0:
            raise LashdError(
                ErrorName.NOT_AUTHORIZED,
                f"User {caller.uid} may not do this ({', '.join(actions)}): only root may change this host. "
                "Ask again as root, for instance with sudo. Nothing was changed.",
            )
        return Initiator(caller.uid, unit_of(caller.pid), name)


def unit_of(pid: int) -> str:
    """The systemd unit that process `pid` runs in, for the record; empty when there is none or it cannot be told."""
    try:
        return parse_unit(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def parse_unit(cgroup: str) -> str:
    """The innermost unit that /proc/PID/cgroup names."""
    for line in cgroup.splitlines():
        _number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers in ("", "name=systemd"):
            units = _UNIT.findall(path)
            if units:
                return str(units[-1])
    return ""
