# SPDX-License-Identifier: Apache-2.0
"""polkit's word on what somebody may do: one question, one answer, and the question taken back when it is not wanted.

polkit finds out by itself who is behind a unique name, so nothing that a caller could say about itself goes in.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from enum import Enum

from lashd.bus.contract import NAME as OURS
from lashd.bus.library import Connection, Variant
from lashd.bus.message import BusError

NAME = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
INTERFACE = "org.freedesktop.PolicyKit1.Authority"

_ALLOW_INTERACTION = 1


class Answer(Enum):
    """`CHALLENGE`: only with a password, and nobody was asked for it."""

    ALLOWED = "allowed"
    CHALLENGE = "challenge"
    REFUSED = "refused"


class NoPolkitError(Exception):
    """polkit gave no answer: it is not there, masked, went away or failed. Holds the error's D-Bus name and text."""


class Polkit:
    """Asks the polkit that is on the same bus as we are."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # polkit keeps these apart by the connection that they come from.
        self._numbers = itertools.count(1)

    async def check(self, sender: str, action: str, details: Mapping[str, str], *, interactive: bool) -> Answer:
        """May `sender` (a unique name) do `action` (`upgrade`)? Waits as long as a prompt takes, if one is allowed.

        `details` are what the action's message shows. Whoever cancels this takes the prompt from the screen.
        Raises NoPolkitError.
        """
        question = f"lashd-{next(self._numbers)}"
        subject = ["system-bus-name", {"name": Variant("s", sender)}]
        flags = _ALLOW_INTERACTION if interactive else 0
        body = [subject, f"{OURS}.{action}", dict(details), flags, question]
        try:
            answer = await self._connection.call(
                NAME, PATH, INTERFACE, "CheckAuthorization", "(sa{sv})sa{ss}us", body, timeout=None
            )
        except asyncio.CancelledError:
            self._connection.post(NAME, PATH, INTERFACE, "CancelCheckAuthorization", "s", [question])
            raise
        except BusError as error:
            raise NoPolkitError(f"{error.name}: {error.message}") from error
        match answer:
            case [[True, _, _]]:
                return Answer.ALLOWED
            case [[False, challenge, _]]:
                return Answer.CHALLENGE if challenge else Answer.REFUSED
        raise NoPolkitError("its answer is not understood")
