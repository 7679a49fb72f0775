# SPDX-License-Identifier: Apache-2.0
"""Where another program cleans up the bound image store: keeps it from taking what deployments are bound to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from lashd.running.retries import Retries
from lashd.steps.protect import Protection
from lashd.steps.record import Records
from lashd.things.inotify import Watcher
from lashd.words import events
from lashd.words.errors import LashdError

log = logging.getLogger(__name__)

# What belongs together comes within this time (seconds): a pull adds layer after layer.
PAUSE_SECONDS = 0.5
# Not all changes are told.
LOOK_SECONDS = 600.0
# What failed is tried again after so long (seconds), and later and later.
RETRY_SECONDS, RETRY_LIMIT_SECONDS = 10.0, 3600.0


class Guard:
    """Whenever the store or the records have changed: what is gone comes back, and what is not protected yet is.

    Not while `busy`: then a job is just filling the store, or takes out of it what is damaged. `directory` is where the
    records are. What fails changes the store, too: so each image that fails waits before it is tried again.
    """

    def __init__(self, protection: Protection, records: Records, directory: Path, busy: Callable[[], bool]) -> None:
        self._protection = protection
        self._records = records
        self._busy = busy
        self._wake = asyncio.Event()
        root = protection.store.root
        watched = (root / "overlay-images", root / "overlay-layers", directory)
        self._watcher = Watcher(watched, self._wake.set)
        self._retries = Retries(RETRY_SECONDS, RETRY_LIMIT_SECONDS)
        self._told: set[str] = set()  # images of which it was said that they cannot be protected

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
                    async with asyncio.timeout(self._pause()):
                        await self._wake.wait()
                except TimeoutError:
                    self._watcher.renew()
        finally:
            self._watcher.close()

    def _pause(self) -> float:
        """For how long (seconds) it is enough to wait for changes."""
        waits = [at - time.monotonic() for at in self._retries.at.values()]
        return min([LOOK_SECONDS, *(max(left, 0.0) for left in waits)])

    def _leave(self, image_id: str) -> bool:
        if self._busy():
            self._wake.set()  # to look again when that has ended
            return True
        return self._retries.at.get(image_id, 0.0) > time.monotonic()

    async def _once(self) -> None:
        try:
            await self._all()
        except (LashdError, OSError) as error:
            # Whoever binds next says what is wrong with them.
            log.debug("Nothing can be protected now: %s", error)
            self._retries.keep(())

    async def _all(self) -> None:
        records = tuple(self._records.load_all().values())
        waiting = {image.image_id for record in records for image in record.images if self._leave(image.image_id)}
        failed: set[str] = set()
        for record in records:
            for sentence in await self._protection.bring_back(record, leave=self._leave):
                log.info(
                    "%s", sentence, extra=events.fields(events.MessageId.BROUGHT_BACK, deployment=record.deployment)
                )
            failed |= {image.image_id for image in self._protection.lost(record)}
        problems = await self._protection.protect(records, leave=self._leave)
        if self._busy():
            return
        failed |= problems.keys()
        self._retries.keep(failed | waiting)
        for image_id in failed - waiting:
            self._retries.failed(image_id, time.monotonic())
        for image_id in sorted(problems.keys() - self._told):
            log.warning("%s", problems[image_id])
        self._told = (self._told & waiting) | problems.keys()
