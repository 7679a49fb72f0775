# SPDX-License-Identifier: Apache-2.0
"""Starts the jobs that change the host, whoever asks: none before what runs already is known."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lashd.running.adoption import Adoption
from lashd.running.jobs import Initiator, Job, Jobs, Outcome, Work
from lashd.running.walk import Walk, plan_facts
from lashd.things.host import HostBackend
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, Role

# Who asked for what the daemon does by itself. Such a job yields to whatever a person asks for.
ITSELF = Initiator(0, "lashd.service", "lashd")


@dataclass(frozen=True, slots=True)
class Starter:
    """Both answer (job, whether one that does the same was joined), and raise Busy."""

    jobs: Jobs
    backend: HostBackend
    walk: Walk
    adoption: Adoption

    def start(
        self,
        kind: str,
        work: Work,
        initiator: Initiator,
        options: Mapping[str, Any],
        details: Mapping[str, Any] | None = None,
    ) -> tuple[Job, bool]:
        async def after_adoption(job: Job) -> Outcome:
            await self.adoption.ended()
            try:
                return await work(job)
            except BaseException:
                # A staging that did not come to its end leaves a hold on nothing.
                with contextlib.suppress(LashdError, OSError):
                    await self.backend.recover()
                raise

        return self.jobs.start(kind, after_adoption, initiator, options, yields=initiator is ITSELF, details=details)

    def bind(
        self,
        deployment: Deployment,
        initiator: Initiator,
        options: Mapping[str, Any],
        *,
        known_only: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            bound = await self.walk.bind(deployment, job.report, known_only=known_only)
            facts = {"deployment": deployment.key, **plan_facts(bound.plan)}
            held = self.walk.held_back() if Role.STAGED in deployment.roles else ""
            return Outcome(bound.changed, facts | ({"held": held} if held else {}))

        # By its key: whoever asks for the same in other words joins the job.
        return self.start("bind", work, initiator, {**options, "deployment": deployment.key}, details)
