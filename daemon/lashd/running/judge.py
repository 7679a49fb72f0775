# SPDX-License-Identifier: Apache-2.0
"""What is to become of each deployment at shutdown, looked at once, and made durable before it is let through."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lashd.steps.decide import UNKNOWN, Decision, at_shutdown
from lashd.steps.evidence import Evidence, gather
from lashd.steps.record import Records
from lashd.steps.shutdowns import Shutdowns
from lashd.things.store import Store
from lashd.words import files
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, Role

Reason = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Judged:
    """`release`, and what is to be said of it; a release may have reasons, too."""

    release: bool
    reasons: tuple[Reason, ...] = ()


class Judge:
    """`since`: when the system was booted, in seconds since the epoch."""

    def __init__(self, settings: Settings, since: float) -> None:
        self._settings = settings
        self._since = since
        self._store = Store(settings.store, settings.store_run, settings.host.sysroot)
        self._records = Records(settings.paths.state / "records")
        self._shutdowns = Shutdowns(settings.paths.state, settings.paths.run)
        self._judged: dict[str, Judged] = {}  # by Deployment.name

    def forget(self) -> None:
        """Look at everything anew the next time."""
        self._judged.clear()

    def judge(self, deployment: Deployment) -> Judged:
        """May `deployment` boot next? When it may, all that it needs is on disk, and is recorded."""
        judged = self._judged.get(deployment.name)
        if judged is None:
            judged = self._judged[deployment.name] = self._look(deployment)
        return judged

    def _look(self, deployment: Deployment) -> Judged:
        staged = Role.STAGED in deployment.roles
        evidence = self._evidence(deployment, installed=not staged)
        decision = at_shutdown(deployment, evidence.decision, self._shutdowns.order(), self._settings.gate.policy)
        if decision.release:
            try:
                if evidence.unsynced:
                    files.sync_filesystem(self._settings.store)
                # What a deployment that is not booted was bound to is not known from what its names mean now.
                if evidence.new is not None and staged:
                    self._record(evidence)
            except OSError as error:
                why = UNKNOWN, f"The bound image store could not be written back: {error}."
                return Judged(False, (*decision.reasons, why))
        return Judged(decision.release, decision.reasons)

    def _evidence(self, deployment: Deployment, *, installed: bool) -> Evidence:
        if self._settings.gate.policy == "off":
            return Evidence(Decision(True))
        return gather(deployment, self._store, self._records, since=self._since, now=time.time(), installed=installed)

    def _record(self, evidence: Evidence) -> None:
        assert evidence.new is not None
        try:
            self._records.write(evidence.new)
        except LashdError as error:
            # Without a record the daemon reads all layers again; they are there all the same.
            print(error.message, flush=True)
