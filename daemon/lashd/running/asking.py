# SPDX-License-Identifier: Apache-2.0
"""Check and plan, as often as people may have them who are not root.

Both ask registries with the host's credentials and over its line, and whoever sits at the host may have them without a
password. So what was found out a moment ago is the answer again, and else everybody has only so many. Root has no limit
and always gets a fresh answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from lashd.running.job import Initiator, Job, Work
from lashd.running.jobs import Jobs, Listener
from lashd.running.view import View
from lashd.words.errors import ErrorName, LashdError

# A result answers the same question for so long (seconds), while the host stays as it is.
FRESH_SECONDS = 60.0
# One user may have so many jobs in so many seconds.
MOST = 10
WINDOW_SECONDS = 600.0

# The options that make a question another one.
_WHAT = ("deployment", "kind")


def how_it_stands(view: View, jobs: Jobs) -> Hashable:
    """Equal to what it was as long as the deployments are the same and nothing has changed the host."""
    try:
        deployments = tuple((one.stateroot, one.key, tuple(sorted(one.roles))) for one in view.deployments())
    except LashdError:
        return object()  # nobody knows, and so no old answer counts
    changes = [(job.id, job.active) for job in jobs.list() if job.slot]
    return deployments, tuple(changes[-1:])


@dataclass(slots=True)
class _Asked:
    job: Job
    state: Hashable
    ended: float | None = None


class Asking(Listener):
    """Starts the jobs of check and plan. `state` is equal as long as an old answer may still be true."""

    def __init__(self, jobs: Jobs, state: Callable[[], Hashable], clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._state = state
        self._clock = clock
        self._asked: dict[Hashable, _Asked] = {}
        self._spent: dict[int, list[float]] = {}
        jobs.subscribe(self)

    def start(self, kind: str, work: Work, initiator: Initiator, options: Mapping[str, Any]) -> tuple[Job, bool]:
        """(job, whether it is one that there was already). Raises Busy for a user who has had too many."""
        question = (kind, *(options.get(key) for key in _WHAT))
        known = self._asked.get(question)
        if initiator.uid != 0:
            if known is not None and self._fresh(known):
                return known.job, True
            if known is None or not known.job.active:
                self._spend(initiator.uid)
        state = self._state()
        job, joined = self._jobs.start(kind, work, initiator, options, slot=False)
        if not joined:
            self._asked[question] = _Asked(job, state)
        return job, joined

    def _fresh(self, known: _Asked) -> bool:
        return (
            known.ended is not None
            and self._clock() - known.ended < FRESH_SECONDS
            and known.job.result in ("success", "unchanged")
            and known.state == self._state()
        )

    def _spend(self, uid: int) -> None:
        now = self._clock()
        spent = {
            user: recent
            for user, times in self._spent.items()
            if (recent := [at for at in times if now - at < WINDOW_SECONDS])
        }
        self._spent = spent
        times = spent.get(uid, [])
        if len(times) >= MOST:
            wait = math.ceil(times[0] + WINDOW_SECONDS - now)
            raise LashdError(
                ErrorName.BUSY,
                f"User {uid} has had the registries asked {MOST} times in the last {WINDOW_SECONDS / 60:.0f} minutes, "
                f"which is as often as anyone but root may. Ask again in {wait} seconds.",
                retry_after=wait,
            )
        spent[uid] = [*times, now]

    # -- news of the jobs ---------------------------------------------------------------------------------------------

    def job_done(self, job: Job) -> None:
        for asked in self._asked.values():
            if asked.job is job:
                asked.ended = self._clock()

    def job_removed(self, job: Job) -> None:
        self._asked = {question: asked for question, asked in self._asked.items() if asked.job is not job}
