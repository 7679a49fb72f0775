# SPDX-License-Identifier: Apache-2.0
"""The right to reboot, one of a few that a fleet shares: taken, remembered while it may be held, given back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

from lashd.running.reboot_notes import Notes, Taken
from lashd.running.reboot_ways import Ways
from lashd.steps.reboot import Right
from lashd.things import fleetlock
from lashd.words.config import RebootSettings
from lashd.words.errors import ErrorName, LashdError

log = logging.getLogger(__name__)


class RightToReboot:
    """What this host has of it. `steady` is set once this boot has proved good."""

    def __init__(self, settings: RebootSettings, notes: Notes, ways: Ways) -> None:
        self._settings = settings
        self._notes = notes
        self._ways = ways
        self._client: fleetlock.Client | None = None
        self._granted = False  # the server has said yes since this daemon runs
        self.steady = False

    def state(self) -> Right:
        if self._granted:
            return Right.HELD
        taken = self._notes.kept.taken
        if taken is None:
            return Right.NONE
        # One from before the boot is kept until this boot has proved good.
        return Right.PERHAPS if taken.boot == self._notes.boot or self.steady else Right.NONE

    async def take(self) -> str:
        """Ask the server; answers why it was not granted, in a sentence, or nothing when it was."""
        kept, new = self._notes.kept, False
        try:
            client = self._client = self._client or fleetlock.client(self._settings)
            assert client is not None
            if kept.taken is not None and _client(kept.taken) != client:
                # The settings have changed: nobody else would give the former server its slot back.
                await self._return(kept.taken)
                kept = self._notes.kept
            new = kept.taken is None
            if new:
                # Before it is asked for: an answer may be lost, and we may be killed.
                taken = Taken(client.url, client.group, client.id, self._notes.boot)
                await asyncio.to_thread(self._notes.keep, replace(kept, taken=taken))
            await self._ways.pre_reboot(client)
        except LashdError as error:
            log.info("%s", error.message)
            if new and error.name is ErrorName.INHIBITED:
                await self._forget()
            return error.message
        self._granted = True
        return ""

    async def give_back(self) -> None:
        """Give it back if that is due. When it fails the log says why, and the state stays as it was."""
        taken = self._notes.kept.taken
        if taken is None or (taken.boot != self._notes.boot and not self.steady):
            # Held since before the boot, until that has proved good.
            self._granted = False
            return
        try:
            await self._return(taken)
        except LashdError as error:
            log.warning("The right to reboot could not be given back; it is tried again. %s", error.message)

    async def _return(self, taken: Taken) -> None:
        self._granted = False
        await self._ways.steady_state(_client(taken))
        await self._forget()

    async def _forget(self) -> None:
        with contextlib.suppress(LashdError):  # then it is given back once more, which changes nothing
            await asyncio.to_thread(self._notes.keep, replace(self._notes.kept, taken=None))


def _client(taken: Taken) -> fleetlock.Client:
    return fleetlock.Client(taken.url, taken.group, taken.id)
