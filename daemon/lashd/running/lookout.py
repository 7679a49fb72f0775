# SPDX-License-Identifier: Apache-2.0
"""Gathers the facts for the keeper: from files and memory, without a lock, a process or the network."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lashd.running.jobs import Job, Jobs
from lashd.running.reconcile import Facts, Look
from lashd.running.view import View
from lashd.steps.decide import BAD_ENTRY
from lashd.steps.shutdowns import Shutdowns, owing
from lashd.things.host import HostBackend, Staging
from lashd.things.inotify import Watcher
from lashd.words.config import GateSettings
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, Owed, Role

log = logging.getLogger(__name__)

_FOLDERS = 200  # watched at most; what changes elsewhere is seen when it is read anew


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
        self._changed: Callable[[], None] = lambda: None
        self._edits = Watcher(self._configuration, self._edited)
        self._follows: tuple[Path, ...] = ()
        self.owed = shutdowns.owed()
        self.memory_fails_until = 0.0  # what was to be remembered could not be written
        self.ready = False  # what runs already is known: until then nothing is bound

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` when the running /etc changes where containers are described. To be called again now and then:
        not all is told."""
        self._changed = changed
        self._follows = self._running()
        self._edits.renew()

    def close(self) -> None:
        self._edits.close()

    def gather(self) -> Facts:
        """All but the look into the store."""
        deployments = self._backend.deployments()
        if self._edits.works and self._follows != self._running():
            self.watch(self._changed)
        staged = next((one for one in deployments if Role.STAGED in one.roles), None)
        booted = next((one for one in deployments if Role.BOOTED in one.roles), None)
        installed = [one for one in deployments if one is not staged]
        now, job = time.monotonic(), self._jobs.active
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
            installed=frozenset(one.name for one in installed),
            finalised=any(self.owed is not None and _is(one, self.owed) for one in installed),
            ours=staged is not None and self._backend.holds(staged),
            order=self._shutdowns.order(),
            owed=self.owed,
            runs=self._runs(staged, booted),
            remembered=staged is not None and self.owed == self.owing(staged),
            memory=now >= self.memory_fails_until,
            nextroot=self._backend.nextroot(),
            gone_since=self._gone_since,
            busy=job is not None or not self.ready,
            binding=_own_bind(job),
            not_before=self._not_before,
        )

    async def look(self, facts: Facts) -> Look:
        """Look into the store for the deployments that matter."""
        complete, lacking = set(), set()
        await self._backend.make_readable()
        for one in dict.fromkeys(one for one in (facts.staged, facts.booted, facts.following) if one is not None):
            try:
                await self._view.learn(one)
                good, wants = self._judge(one)
            except LashdError as error:
                # A bind mends what can be mended, and says what cannot.
                log.debug("%s", error.message)
                good, wants = False, True
            if good:
                complete.add(one.name)
            if wants:
                lacking.add(one.name)
        return Look(frozenset(complete), frozenset(lacking))

    def _judge(self, deployment: Deployment) -> tuple[bool, bool]:
        """Whether it is complete, and whether a bind could bring what it lacks."""
        if Role.BOOTED in deployment.roles:
            broken = self._view.is_broken(deployment)
            return not broken, broken
        decision = self._view.decision(deployment)
        return decision.release, any(code != BAD_ENTRY for code, _ in decision.reasons)

    def _running(self) -> tuple[Path, ...]:
        """Roots of the deployments whose /etc can change: the booted one, and what a staged one gets changes from."""
        deployments = self._backend.deployments()
        roots = [one.root for one in deployments if Role.BOOTED in one.roles]
        return tuple(dict.fromkeys([*roots, *(one.merges for one in deployments if one.merges is not None)]))

    def _configuration(self) -> Iterable[Path]:
        for root in self._running():
            containers = root / "etc/containers"
            yield from (containers, containers / "registries.conf.d")
            yield from folders_below(containers / "systemd")

    def _edited(self) -> None:
        self._view.edited()
        self._changed()

    def _runs(self, staged: Deployment | None, booted: Deployment | None) -> Staging:
        """How the running system boots, where that tells whether it is what is owed."""
        doubtful = staged is None and booted is not None and self.owed and self.owed.checksum == booted.checksum
        return self._backend.staging(booted) if doubtful and booted is not None else Staging()

    def owing(self, staged: Deployment) -> Owed | None:
        """What is to be remembered of the staged deployment; nothing of one that somebody else holds back.

        To lose that at a reboot is what he wants: staged again by us, it would be let through.
        """
        if staged.foreign_lock:
            return None
        how = self._backend.staging(staged)
        booted = next((one for one in self._backend.deployments() if Role.BOOTED in one.roles), None)
        binds = self._view.known_names(staged)
        return owing(staged, self.owed, how, self._boot, int(time.time()), booted, binds)


def folders_below(top: Path) -> list[Path]:
    """`top`, which need not be there, and the first directories below it, links to some included."""
    found, waiting = [top], deque([top])
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.popleft()) as entries:
            for entry in entries:
                if len(found) == _FOLDERS:
                    return found
                if entry.is_dir():
                    found.append(Path(entry.path))
                    waiting.append(found[-1])
    return found


def _is(deployment: Deployment, owed: Owed) -> bool:
    return (deployment.stateroot, deployment.key) == (owed.stateroot, owed.deployment)


def _own_bind(job: Job | None) -> str:
    """The key of the deployment that a job of the keeper's own binds; empty when it is no such job, or ends anyway."""
    if job is None or job.kind != "bind" or not job.yields or job.ending or not job.cancellable:
        return ""
    return str(job.options.get("deployment", ""))
