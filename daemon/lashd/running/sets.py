# SPDX-License-Identifier: Apache-2.0
"""Which set runs: the booted host image with the images that it is bound to. For the history, as long as it runs."""

from __future__ import annotations

import asyncio
import logging
import time

from lashd.running.adoption import Adoption
from lashd.running.history import History
from lashd.running.jobs import Job, Listener
from lashd.running.view import View
from lashd.steps.record import Records
from lashd.things.history_rows import SetSeen
from lashd.words.errors import LashdError
from lashd.words.model import Role

log = logging.getLogger(__name__)

# It is put down that it still runs after the first of these times (seconds), when the clock has surely been set, and
# then after every further one: the longest that a power cut makes it end too early.
FIRST_SECONDS = 600.0
AGAIN_SECONDS = 4 * 3600.0


class Sets(Listener):
    """Looks when it may have changed: once what runs is known, and after each job that changes the host."""

    def __init__(self, view: View, records: Records, adoption: Adoption, history: History, boot: str) -> None:
        self._view = view
        self._records = records
        self._adoption = adoption
        self._history = history
        self._boot = boot
        self._poked = asyncio.Event()
        self._told: SetSeen | None = None

    async def run(self) -> None:
        """Never ends by itself."""
        await self._adoption.ended()
        seconds = FIRST_SECONDS
        while True:
            self._poked.clear()
            self.look()
            try:
                async with asyncio.timeout(seconds):
                    await self._poked.wait()
            except TimeoutError:
                self.look(again=True)
                seconds = AGAIN_SECONDS

    def look(self, *, again: bool = False) -> None:
        """Put down what runs when it is another set than before; with `again` also that it still does."""
        try:
            now = self._now()
        except (LashdError, OSError) as error:
            log.debug("What runs cannot be told: %s", error)
            return
        before = self._told
        if now is None or (again and before is None):
            return
        if again or before is None or (before.content, before.ready) != (now.content, now.ready):
            self._told = now
            self._history.saw(now)

    def _now(self) -> SetSeen | None:
        """None while it is not known what runs, or what its names mean."""
        booted = next((one for one in self._view.deployments() if Role.BOOTED in one.roles), None)
        record = self._records.get(booted.key) if booted is not None else None
        if booted is None or record is None:
            return None
        return SetSeen(
            boot=self._boot,
            deployment=booted.key,
            image=booted.image.reference if booted.image is not None else "",
            digest=booted.digest or "",
            version=booted.version or "",
            bound=tuple(sorted((image.reference, image.digest) for image in record.images)),
            ready=self._view.decision(booted).release,
            uptime=time.clock_gettime(time.CLOCK_BOOTTIME),
            seen=int(time.time()),
        )

    # -- listens to the jobs -----------------------------------------------------------------------------------------

    def job_done(self, job: Job) -> None:
        if job.slot:
            self._poked.set()
