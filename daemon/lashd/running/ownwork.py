# SPDX-License-Identifier: Apache-2.0
"""What the daemon does without being asked: the jobs that the keeper wants, and what is left to do after a boot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lashd.running.adoption import Adoption
from lashd.running.aftercare import Aftercare
from lashd.running.interrupted import WALKS, is_rest_of
from lashd.running.jobs import Job, Outcome
from lashd.running.reboot import Rebooter
from lashd.running.starting import ITSELF, Starter
from lashd.running.view import View
from lashd.things.history_rows import JobEntry
from lashd.things.host import HostBackend
from lashd.words.config import Settings
from lashd.words.model import Deployment, Owed, Role
from lashd.words.progress import Stage, StageStarted

_LOOK_SECONDS = 60.0
# After these another system is staged, or none.
_OVERTAKE = (*WALKS, "rollback", "discard")


class OwnWork:
    """`collect` starts the job that cleans up; `changed` is called when names were mended."""

    def __init__(
        self,
        settings: Settings,
        backend: HostBackend,
        view: View,
        adoption: Adoption,
        starter: Starter,
        collect: Callable[[], Job],
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._view = view
        self._adoption = adoption
        self._starter = starter
        self._collect = collect
        self._changed = changed
        self._interrupted: JobEntry | None = None

    def carry_on(self, entry: JobEntry) -> None:
        """What is left of this job, which was interrupted, may be the next that the keeper wants."""
        self._interrupted = entry

    def overtaken(self, job: Job) -> None:
        """`job` has begun. What somebody else has staged, dropped or bound since, is not the rest of anything."""
        if job.initiator is not ITSELF and job.kind in _OVERTAKE:
            self._interrupted = None

    # -- the keeper's hands -----------------------------------------------------------------------------------------

    def keep_bound(self, deployment: Deployment) -> Job:
        known_only = Role.BOOTED in deployment.roles
        details = self._rest(deployment)
        job, _joined = self._starter.bind(deployment, ITSELF, {}, known_only=known_only, details=details)
        return self._carried_on(job)

    def bring_back(self, owed: Owed) -> Job:
        async def work(job: Job) -> Outcome:
            job.report(StageStarted(Stage.STAGE))
            staged = await self._backend.restage(owed, job.report)
            return Outcome(True, {"deployment": staged.key, "digest": owed.digest})

        return self._carried_on(self._starter.start("restage", work, ITSELF, {}, self._rest(None))[0])

    def _rest(self, deployment: Deployment | None) -> dict[str, Any]:
        entry = self._interrupted
        return {"continues": entry.id} if entry is not None and is_rest_of(entry, deployment) else {}

    def _carried_on(self, job: Job) -> Job:
        if "continues" in job.details:
            self._interrupted = None
        return job

    # -- after the boot ---------------------------------------------------------------------------------------------

    def aftercare(self, rebooter: Rebooter) -> Aftercare:
        return Aftercare(
            self._settings.paths.state,
            checksum=self._known_checksum,
            complete=self._complete,
            steady=rebooter.steady,
            collect=self._clean_up if self._settings.collect.after_boot else None,
            mend=self._mend_names,
        )

    def _booted(self) -> Deployment | None:
        return next((one for one in self._view.deployments() if Role.BOOTED in one.roles), None)

    def _known_checksum(self) -> str:
        booted = self._booted()
        return booted.checksum if booted is not None and self._adoption.done else ""

    def _complete(self) -> bool:
        booted = self._booted()
        return booted is not None and self._view.decision(booted).release

    async def _clean_up(self) -> bool:
        job = self._collect()
        while (result := (await job.wait(_LOOK_SECONDS))[0]) == "running":
            pass
        return result in ("success", "unchanged")

    async def _mend_names(self) -> None:
        """Names that activation could not give at boot, and the services that it barred for that, once all is there."""
        from lashd.running.activate import UNIT, activate, read_report
        from lashd.running.aftercare import has_failed
        from lashd.running.booted import look

        # Ended from outside it has left no report.
        if read_report(self._settings) or await has_failed(UNIT):
            booted = await asyncio.to_thread(look, self._settings)
            if booted is not None:
                await activate(self._settings, booted)
                self._changed()
