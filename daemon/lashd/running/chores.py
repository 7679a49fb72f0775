# SPDX-License-Identifier: Apache-2.0
"""Jobs that look after the store: compare it with what is recorded, and remove what nobody needs any more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lashd.running.jobs import Job, Outcome
from lashd.steps.discover import discover
from lashd.steps.record import Records
from lashd.steps.shutdowns import Shutdowns
from lashd.things.host import Fetched, HostBackend
from lashd.things.store import Store
from lashd.words.model import Deployment, Role

if TYPE_CHECKING:
    from lashd.steps.keep import Present


@dataclass(frozen=True, slots=True)
class Chores:
    backend: HostBackend
    store: Store
    records: Records
    shutdowns: Shutdowns
    root: Path  # of the running system

    async def verify(self, deployment: Deployment, job: Job, *, deep: bool) -> Outcome:
        """Details `findings`: a sentence for each image that is not as it should be. No record vouches for what is
        damaged any more, so that the next bind reads it and fetches it again. Raises what `require_sound` does, and
        BoundImageInvalid when the deployment's root cannot be read."""
        # Imported when they are needed: the daemon at rest has no room for them.
        from lashd.steps.audit import audit, require_sound

        self.records.require()
        found = await asyncio.to_thread(discover, deployment.root, deployment.merges)
        rows = await audit(
            found.images,
            self.records.get(deployment.key),
            self.store,
            self.records.vouched(self.store.index().layers),
            named=Role.BOOTED in deployment.roles,
            deep=deep,
            report=job.report,
        )
        findings = [row.sentence for row in rows if row.sentence]
        findings += [f"{entry.unit}: {entry.problem}" for entry in found.bad]
        job.details |= {"deployment": deployment.key, "findings": findings, "images": len(rows)}
        doubtful = [layer for row in rows for layer in row.doubtful]
        if doubtful:
            await asyncio.to_thread(self.records.distrust, doubtful)
        require_sound(rows, _on_the_command_line(deployment))
        return Outcome(False)

    async def collect(self, job: Job, *, dry_run: bool) -> Outcome:
        """Details `removed` (names), `images`, `layers` (how many) and `bytes-freed`. Raises what the step does."""
        from lashd.steps.collect import collect

        gone = await collect(self.store, self.records, self._present, self.root, dry_run=dry_run, report=job.report)
        details: dict[str, Any] = {
            "removed": [*gone.images, *gone.names],
            "images": len(gone.images),
            "layers": len(gone.layers),
            "bytes-freed": gone.bytes,
        }
        if dry_run:
            return Outcome(False, details)
        owed = self.shutdowns.owed()
        # What is to be staged again is needed although no deployment stands on it.
        freed = await self.backend.prune((Fetched(owed.checksum, owed.digest, False),) if owed is not None else ())
        details["bytes-freed"] += freed
        return Outcome(gone.changed or freed > 0, details)

    def _present(self) -> Present:
        from lashd.steps.keep import Present

        self.records.require()
        return Present(
            deployments=self.backend.deployments(),
            owed=self.shutdowns.owed(),
            records=self.records.load_all(),
            damaged=self.records.damaged(),
            unlisted=self.backend.unlisted(),
        )


def _on_the_command_line(deployment: Deployment) -> str:
    """How 'lashctl bind' is told that `deployment` is meant: the staged one needs no word."""
    if Role.STAGED in deployment.roles:
        return ""
    roles = (role.value for role in (Role.BOOTED, Role.ROLLBACK) if role in deployment.roles)
    return next(roles, deployment.key)
