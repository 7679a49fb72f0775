# SPDX-License-Identifier: Apache-2.0
"""The unit that reboots: which one it is, how it is started, and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from lashd.running.reboot_notes import Notes, Started
from lashd.running.reboot_ways import Outlook, Ways
from lashd.steps.reboot import ATTEMPTS, choose_manner
from lashd.things import rebooting
from lashd.things.rebooting import Going
from lashd.words import events
from lashd.words.errors import ErrorName, LashdError

log = logging.getLogger(__name__)

# How long a host may take to begin going down once the unit did its work: services that delay it, and their limit.
PATIENCE_SECONDS = 300.0


class RebootUnit:
    """`soft`: what the settings wish; `ostree` is the program that is asked whether the host can."""

    def __init__(self, notes: Notes, ways: Ways, *, soft: bool, ostree: str) -> None:
        self._notes = notes
        self._ways = ways
        self._soft = soft
        self._ostree = ostree
        self._soft_failed = False

    def begun(self) -> bool:
        """Whether it was started; until the host is down, or it is known that it will not go down."""
        return self._notes.asked.started is not None

    async def start(self, outlook: Outlook, still_right: Callable[[], bool]) -> str:
        """Start it towards `outlook`, unless that is not right any more by then.

        Answers why it could not be started, in a sentence; nothing when it was, or was not right.
        """
        kept, boot = self._notes.kept, self._notes.boot
        try:
            unit = await self._choose(outlook)
            boots = tuple(each for each in kept.boots if kept.target == outlook.target and each != boot)
            kept = replace(kept, target=outlook.target, boots=(*boots[-2 * ATTEMPTS :], boot))
            await asyncio.to_thread(self._notes.keep, kept)
            if not still_right():
                return ""
            # The note comes first: a daemon that is started again in between must not give the right back.
            self._notes.ask(replace(self._notes.asked, started=Started(unit, self._ways.monotonic())))
            await self._ways.start(unit)
        except LashdError as error:
            if error.name is ErrorName.TIMEOUT and self.begun():
                return ""  # systemd may have heard it: how the unit is will tell
            self._notes.ask(replace(self._notes.asked, started=None))
            return _logged(f"The reboot could not be started. {error.message}")
        told = events.fields(events.MessageId.REBOOT_STARTED, deployment=outlook.target.rpartition("/")[2])
        log.info("Rebooting by %s into %s", unit, outlook.target, extra=told)
        return ""

    async def look_after(self) -> str:
        """Whether a reboot that was started happens. One that does not is over: then the answer says why.

        Somebody blocked it, or the unit is not there.
        """
        started = self._notes.asked.started
        if started is None:
            return ""
        late = self._ways.monotonic() - started.at > PATIENCE_SECONDS
        try:
            going = await self._ways.look(started.unit)
        except LashdError as error:
            log.warning("%s", error.message)
            going = Going.UP
        if going is Going.DOWN or (going is Going.UP and not late):
            return ""
        self._soft_failed = self._soft_failed or started.unit == rebooting.SOFT_UNIT
        self._notes.ask(replace(self._notes.asked, started=None))
        return _logged(
            f"{started.unit} failed, so the host did not reboot; 'journalctl -u {started.unit}' says why."
            if going is Going.FAILED
            else f"{started.unit} was started, but the host did not go down within {PATIENCE_SECONDS:.0f} seconds."
        )

    async def _choose(self, outlook: Outlook) -> str:
        version: tuple[int, ...] = ()
        if self._soft:
            version = await self._ways.ostree_version(self._ostree)
        manner = choose_manner(
            wish=self._soft,
            finalised=outlook.finalised,
            ostree=version,
            failed_before=self._soft_failed,
        )
        if manner.hindrance:
            log.info("%s", manner.hindrance)
        return rebooting.SOFT_UNIT if manner.soft else rebooting.UNIT


def _logged(failure: str) -> str:
    log.error("%s", failure)
    return failure
