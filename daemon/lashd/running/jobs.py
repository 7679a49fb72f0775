# SPDX-License-Identifier: Apache-2.0
"""All jobs, and the slot.

A job that changes the host takes the only slot there is. The same request while it runs joins it; another one is Busy,
unless the holder yields: what the daemon does by itself never keeps a person waiting.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lashd.running.job import Initiator, Job, Outcome, Work
from lashd.words.errors import ErrorName, LashdError

# Whoever speaks of jobs gets all the words for it here.
__all__ = ["Initiator", "Job", "Jobs", "Listener", "Outcome", "Work"]

# A finished job stays readable for so long (seconds), and so many of them.
KEEP_SECONDS = 600.0
KEEP_JOBS = 64


class Listener(Protocol):
    """Who derives from it says only what it wants to hear."""

    def job_new(self, job: Job) -> None:
        return

    def job_changed(self, job: Job, names: frozenset[str]) -> None:
        return

    def job_done(self, job: Job) -> None:
        return

    def job_removed(self, job: Job) -> None:
        return


class Jobs:
    """All jobs that are on the bus, and the slot."""

    def __init__(self, number: Callable[[], int] | None = None) -> None:
        self._jobs: dict[int, Job] = {}
        self._ended: list[Job] = []  # those that have, in the order in which they did
        self._number = number or itertools.count(1).__next__
        self._listeners: list[Listener] = []

    def list(self) -> list[Job]:
        return list(self._jobs.values())

    def get(self, number: int) -> Job | None:
        return self._jobs.get(number)

    @property
    def active(self) -> Job | None:
        """The job that holds the slot."""
        return next((job for job in self._jobs.values() if job.active and job.slot), None)

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def tell(self, event: str, *arguments: Any) -> None:
        for listener in self._listeners:
            getattr(listener, event)(*arguments)

    def start(
        self,
        kind: str,
        work: Work,
        initiator: Initiator,
        options: Mapping[str, Any],
        *,
        slot: bool = True,
        yields: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> tuple[Job, bool]:
        """Start a job, or join the one that does the same: (job, joined).

        Raises Busy, naming the holder, when another job holds the slot; `slot=False` is for jobs that change nothing.
        Raises InvalidArgument when the caller has used the idempotency key for something else.
        One that was cancelled is not joined any more: whoever asks then wants it done. `details` are those it begins
        with.
        A job that `yields` is cancelled for one that does not, which begins when it has ended; it yields no more once
        somebody has joined it who does not.
        """
        known = self._same(kind, initiator, options)
        if known is not None:
            known.yields = known.yields and yields
            return known, True
        holders = [job for job in self._jobs.values() if job.active and job.slot] if slot else []
        staying = [job for job in holders if yields or not job.yields or not (job.cancellable or job.ending)]
        if staying:
            holder = staying[0]
            raise LashdError(
                ErrorName.BUSY,
                f"Job {holder.id} ({holder.kind}, asked for by user {holder.initiator.uid}"
                f"{' as ' + holder.initiator.name if holder.initiator.name else ''}) is running; "
                f"wait for it or cancel it with 'lashctl jobs --cancel {holder.id}'.",
            )
        job = Job(self._number(), kind, initiator, options, self, slot=slot)
        job.yields = yields
        job.details |= details or {}
        self._jobs[job.id] = job
        self.tell("job_new", job)
        for holder in holders:
            holder.cancel()
        job.start(_after(holders, work) if holders else work)
        return job, False

    def _same(self, kind: str, initiator: Initiator, options: Mapping[str, Any]) -> Job | None:
        """The job that this request has got already, or the running one that does the same."""
        wanted, key = _identity(options), options.get("idempotency-key")
        for job in self._jobs.values() if key else ():
            # A user's own: they are there for everybody to read, and authorise nothing.
            if (job.kind, job.initiator.uid, job.options.get("idempotency-key")) == (kind, initiator.uid, key):
                if _identity(job.options) == wanted:
                    return job
                raise LashdError(
                    ErrorName.INVALID_ARGUMENT,
                    f"The idempotency key is that of job {job.id} ({kind}), which had other options; give each request "
                    "a key of its own. Nothing was changed.",
                )
        running = (job for job in self._jobs.values() if job.kind == kind and job.active and not job.ending)
        return next((job for job in running if _identity(job.options) == wanted), None)

    def recall(self, job: Job) -> None:
        """Show a job that has ended in an earlier life of the daemon."""
        self._jobs = dict(sorted((self._jobs | {job.id: job}).items()))
        self._keep(job)

    def finished(self, job: Job) -> None:
        self.tell("job_done", job)
        self._keep(job)

    def _keep(self, job: Job) -> None:
        asyncio.get_running_loop().call_later(KEEP_SECONDS, self._remove, job)
        self._ended.append(job)
        for old in self._ended[:-KEEP_JOBS]:
            self._remove(old)

    async def stop(self) -> None:
        """End every job that still runs."""
        await asyncio.gather(*(job.stop() for job in self.list() if job.active))

    def _remove(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) is not None:
            self._ended.remove(job)
            self.tell("job_removed", job)


def _after(others: Sequence[Job], work: Work) -> Work:
    async def later(job: Job) -> Outcome:
        for other in others:
            await other.ended()
        return await work(job)

    return later


def _identity(options: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the options that decides whether two requests are the same."""
    return {key: value for key, value in options.items() if key not in ("initiator", "reason", "idempotency-key")}
