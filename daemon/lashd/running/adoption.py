# SPDX-License-Identifier: Apache-2.0
"""The adoption of a host that was already running when lashd came: once, in the background, before anything changes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from lashd.running.view import View
from lashd.steps.adopt import adopt
from lashd.steps.record import Records
from lashd.things.store import Store
from lashd.words.errors import LashdError
from lashd.words.model import Role

log = logging.getLogger(__name__)


class Adoption:
    """It reads every layer, so whoever changes something waits for it, and whoever reads does not.

    `changed` is called when there is a new record.
    """

    def __init__(self, view: View, store: Store, records: Records, changed: Callable[[], None]) -> None:
        self._view = view
        self._store = store
        self._records = records
        self._changed = changed
        self._task: asyncio.Task[None] | None = None

    def start(self, then: Callable[[], None]) -> None:
        """Begin; `then` is called at its end, however that comes."""
        self._task = asyncio.create_task(self._run(then), name="adoption")

    @property
    def done(self) -> bool:
        return self._task is not None and self._task.done()

    async def ended(self) -> None:
        """Wait for its end, whatever that is."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, then: Callable[[], None]) -> None:
        try:
            await self._adopt()
        finally:
            then()

    async def _adopt(self) -> None:
        booted = next((one for one in self._view.deployments() if Role.BOOTED in one.roles), None)
        try:
            if booted is None or self._records.get(booted.key) is not None:
                return
            record = await adopt(booted, self._view.discovery(booted), self._store, now=int(time.time()))
            await asyncio.to_thread(self._records.write, record)
        except (LashdError, OSError) as error:
            log.warning("The booted deployment could not be adopted: %s", error)
        else:
            count = len(record.images)
            log.info("What %s binds was taken over: %d %s", booted.key, count, "image" if count == 1 else "images")
            self._changed()
