# SPDX-License-Identifier: Apache-2.0
"""Gathers the facts for the keeper: from files and memory, without a lock, a process or the network."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from lashd.running.jobs import Jobs
from lashd.running.reconcile import Facts, Look
from lashd.running.view import View
from lashd.steps.decide import BAD_ENTRY
from lashd.steps.shutdowns import Shutdowns, owing
from lashd.things.host import HostBackend
from lashd.words.config import GateSettings
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, Owed, Role

log = logging.getLogger(__name__)


class Lookout:
    """`owed` is what the file of the same name says; whoever writes that sets it here, too."""

    def __init__(
        self,
        backend: HostBackend,
        view: View,
        jobs: Jobs,
        shutdowns: Shutdowns,
        gate: GateSettings,
        boot: str,
        not_before: Mapping[str, float],
    ) -> None:
        self._backend = backend
        self._view = view
        self._jobs = jobs
        self._shutdowns = shutdowns
        self._gate = gate
        self._boot = boot
        self._not_before = not_before
        self._gone_since: float | None = None
        self.owed = shutdowns.owed()
        self.memory_fails_until = 0.0  # what was to be remembered could not be written
        self.ready = False  # what runs already is known: until then nothing is bound

    def gather(self) -> Facts:
        """All but the look into the store."""
        deployments = self._backend.deployments()
        staged = next((one for one in deployments if Role.STAGED in one.roles), None)
        booted = next((one for one in deployments if Role.BOOTED in one.roles), None)
        installed = [one for one in deployments if one is not staged]
        now = time.monotonic()
        if staged is not None:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = now
        return Facts(
            boot=self._boot,
            now=now,
            holds=self._gate.policy == "hold",
            restages=self._gate.restage,
            staged=staged,
            booted=booted,
            following=installed[0] if installed and installed[0] is not booted else None,
            installed=frozenset(one.key for one in installed),
            ours=staged is not None and self._backend.holds(staged),
            order=self._shutdowns.order(),
            owed=self.owed,
            remembered=staged is not None and self.owed == self.owing(staged),
            memory=now >= self.memory_fails_until,
            nextroot=self._backend.nextroot(),
            gone_since=self._gone_since,
            busy=self._jobs.active is not None or not self.ready,
            not_before=self._not_before,
        )

    async def look(self, facts: Facts) -> Look:
        """Look into the store for the deployments that matter."""
        complete, lacking = set(), set()
        for one in dict.fromkeys(one for one in (facts.staged, facts.booted, facts.following) if one is not None):
            try:
                await self._view.learn(one)
                good, wants = self._judge(one)
            except LashdError as error:
                # A bind mends what can be mended, and says what cannot.
                log.debug("%s", error.message)
                good, wants = False, True
            if good:
                complete.add(one.key)
            if wants:
                lacking.add(one.key)
        return Look(frozenset(complete), frozenset(lacking))

    def _judge(self, deployment: Deployment) -> tuple[bool, bool]:
        """Whether it is complete, and whether a bind could bring what it lacks."""
        if Role.BOOTED in deployment.roles:
            broken = self._view.is_broken(deployment)
            return not broken, broken
        decision = self._view.decision(deployment)
        return decision.release, any(code != BAD_ENTRY for code, _ in decision.reasons)

    def owing(self, staged: Deployment) -> Owed | None:
        """What is to be remembered of the staged deployment; nothing of one that somebody else holds back.

        To lose that at a reboot is what he wants: staged again by us, it would be let through.
        """
        if staged.foreign_lock:
            return None
        how = self._backend.staging(staged)
        booted = next((one for one in self._backend.deployments() if Role.BOOTED in one.roles), None)
        return owing(staged, self.owed, how.origin, how.kargs, self._boot, int(time.time()), booted)
