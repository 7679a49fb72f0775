# SPDX-License-Identifier: Apache-2.0
"""Where another program cleans up the bound image store: keeps it from taking what deployments are bound to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from lashd.steps.protect import Protection
from lashd.steps.record import Records
from lashd.things.inotify import Watcher
from lashd.words.errors import LashdError

log = logging.getLogger(__name__)

# What belongs together comes within this time (seconds): a pull adds layer after layer.
PAUSE_SECONDS = 0.5
# Not all changes are told.
LOOK_SECONDS = 600.0


class Guard:
    """Whenever the store or the records have changed: what is gone comes back, and what is not protected yet is.

    Not while `busy`: then a job is just filling the store. `directory` is where the records are.
    """

    def __init__(self, protection: Protection, records: Records, directory: Path, busy: Callable[[], bool]) -> None:
        self._protection = protection
        self._records = records
        self._busy = busy
        self._wake = asyncio.Event()
        root = protection.store.root
        watched = (root / "overlay-images", root / "overlay-layers", directory)
        self._watcher = Watcher(watched, self._wake.set)
        self._told: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Until it is cancelled."""
        self._watcher.start()
        try:
            while True:
                await asyncio.sleep(PAUSE_SECONDS)
                if self._busy():
                    continue
                self._wake.clear()
                await self._once()
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    self._watcher.renew()
        finally:
            self._watcher.close()

    async def _once(self) -> None:
        try:
            records = tuple(self._records.load_all().values())
            for record in records:
                for sentence in await self._protection.bring_back(record):
                    log.info("%s", sentence)
            problems = frozenset((await self._protection.protect(records)).values())
        except (LashdError, OSError) as error:
            # Whoever binds next says what is wrong with them.
            log.debug("Nothing can be protected now: %s", error)
            return
        for sentence in sorted(problems - self._told):
            log.warning("%s", sentence)
        self._told = problems
