# SPDX-License-Identifier: Apache-2.0
"""Who is calling, and may they? The bus says who, and polkit says what all others than root may do; reading is free."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lashd.bus.library import Connection
from lashd.bus.polkit import Answer, NoPolkitError, Polkit
from lashd.bus.prompt import details
from lashd.bus.refusal import Refusal
from lashd.bus.tree import Call
from lashd.running.jobs import Initiator
from lashd.words.errors import ErrorName, LashdError

log = logging.getLogger(__name__)

# Callers that are remembered; most make several calls.
REMEMBERED = 256
# How long one call may wait for polkit and for whoever is to type a password, in all (seconds). busctl, GDBus and most
# others give up after 25: a prompt that outlives them would be answered for nobody.
PROMPT_SECONDS = 20.0

_UNIT = re.compile(r"[^/]+\.(?:service|scope)")
_AS_ROOT = "Ask again as root, for instance with sudo."


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is behind a unique name: user, and process where the bus knows it (else 0).

    The user is the one that the bus sees: in the user namespace that the bus runs in, not in that of a container.
    """

    uid: int
    pid: int


class Authority:
    """Knows the callers on `connection` and decides what they may do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._polkit = Polkit(connection)
        # The bus never gives a unique name twice, so what is remembered cannot become wrong, only useless.
        self._callers: OrderedDict[str, Caller] = OrderedDict()
        self._waiting: set[asyncio.Timeout] = set()
        self._stopped = False
        self._complaint = ""

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

    def stop(self) -> None:
        """Take every prompt back, and let nobody do anything any more."""
        self._stopped = True
        for limit in self._waiting:
            if not limit.expired():
                limit.reschedule(0)

    async def authorise(
        self, call: Call, *actions: str, verb: str = "", options: Mapping[str, Any] | None = None
    ) -> Initiator:
        """Let the caller do all of `actions`, or raise LashdError (NotAuthorized) or Refusal (it takes a prompt).

        `verb` and `options` are what was asked for, as a prompt tells it. Takes no slot and changes nothing, so that
        whoever waits here is in nobody's way; what was read before may have changed when this returns.
        """
        caller, options = await self.caller(call.sender), options or {}
        if caller.uid != 0 and not self._stopped:
            await self._ask(call, caller, actions, details(verb or actions[0], options, caller.uid))
        if self._stopped:
            raise Refusal("Disconnected", "lashd is being stopped; ask again in a moment.")
        return Initiator(caller.uid, unit_of(caller.pid), options.get("initiator", ""))

    async def _ask(self, call: Call, caller: Caller, actions: Sequence[str], shown: Mapping[str, str]) -> None:
        """polkit is asked for everything before anybody is: no password is typed for what another action forbids."""
        prompted = False
        try:
            async with asyncio.timeout(PROMPT_SECONDS) as limit:
                self._waiting.add(limit)
                try:
                    challenged = []
                    for action in actions:
                        answer = await self._polkit.check(call.sender, action, shown, interactive=False)
                        if answer is Answer.REFUSED:
                            _refuse(caller, actions, "polkit's rules on this host do not allow it.")
                        if answer is Answer.CHALLENGE:
                            challenged.append(action)
                    if challenged and not call.interactive:
                        raise _needs_password(caller, actions)
                    for action in challenged:
                        prompted = True
                        answer = await self._polkit.check(call.sender, action, shown, interactive=True)
                        if answer is not Answer.ALLOWED:
                            _refuse(caller, actions, _not_given(answer))
                finally:
                    self._waiting.discard(limit)
        except TimeoutError:
            if not self._stopped:  # else the end of lashd is the reason
                whose = "nobody gave an administrator's password" if prompted else "polkit did not answer"
                _refuse(caller, actions, f"{whose} within {PROMPT_SECONDS:g} seconds.")
        except NoPolkitError as error:
            self._complain(str(error))
            _refuse(caller, actions, f"polkit, which decides this, cannot be asked on this host. {_AS_ROOT}")

    def _complain(self, why: str) -> None:
        # Anyone can make this happen as often as they like, so the journal is told once for each reason.
        if why != self._complaint:
            self._complaint = why
            log.warning("polkit could not be asked, so only root may change this host: %s", why)


def _not_given(answer: Answer) -> str:
    if answer is Answer.CHALLENGE:
        return f"it takes an administrator's password, and there is no polkit agent to ask for it. {_AS_ROOT}"
    return "no administrator's password was given."


def _refuse(caller: Caller, actions: Sequence[str], why: str) -> NoReturn:
    what = f"User {caller.uid} may not do this ({', '.join(actions)})"
    raise LashdError(ErrorName.NOT_AUTHORIZED, f"{what}: {why} Nothing was changed.")


def _needs_password(caller: Caller, actions: Sequence[str]) -> Refusal:
    return Refusal(
        "InteractiveAuthorizationRequired",
        f"User {caller.uid} may do this ({', '.join(actions)}) only with an administrator's password, and this call "
        f"does not allow to ask for it. {_AS_ROOT} Nothing was changed.",
    )


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
