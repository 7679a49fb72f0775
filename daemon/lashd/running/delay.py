# SPDX-License-Identifier: Apache-2.0
"""While something is bound a shutdown waits a moment: a bind that is about to end lets the update through at it.

logind's delay inhibitor, taken beside the work and never in its way: without logind there is none, and no job waits for
it or fails by it. When the delay is over (5 s by default) logind goes on, and the bind ends with the daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from lashd.running.jobs import Job, Listener
from lashd.things.logind import inhibited
from lashd.words.progress import Stage

WHY = "Container images are being bound to the next system; what is complete in a moment boots at this very reboot"

# From the first of these on a job that changes the host binds a deployment.
BINDING = frozenset({Stage.HOLD, Stage.DISCOVER, Stage.PLAN, Stage.PULL, Stage.VERIFY, Stage.RECORD, Stage.RELEASE})


class Delay(Listener):
    """Listens to the jobs. `inhibit` takes the inhibitor for as long as its block lasts; the value says whether."""

    def __init__(self, inhibit: Callable[[str], AbstractAsyncContextManager[bool]] = inhibited) -> None:
        self._inhibit = inhibit
        self._held: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # also those that are about to end

    def job_changed(self, job: Job, names: frozenset[str]) -> None:
        if "stage" in names and job.slot and job.stage in BINDING and self._held is None:
            self._held = asyncio.create_task(self._hold(), name="delay inhibitor")
            self._tasks.add(self._held)
            self._held.add_done_callback(self._tasks.discard)

    def job_done(self, job: Job) -> None:
        if job.slot and self._held is not None:
            # The next job does not wait until this one's child is gone, so that may be there a moment longer.
            self._held.cancel()
            self._held = None

    async def stop(self) -> None:
        """Let go, and wait until nothing is left."""
        self._held = None
        for task in self._tasks:
            if not task.cancelling():  # else it is letting go already
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _hold(self) -> None:
        async with self._inhibit(WHY) as works:
            if works:
                await asyncio.Event().wait()
