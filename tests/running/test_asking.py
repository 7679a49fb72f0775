# SPDX-License-Identifier: Apache-2.0
"""How often others than root may have registries asked, and when an old answer is the answer."""

from __future__ import annotations

import asyncio

import pytest

from lashd.running.asking import FRESH_SECONDS, MOST, WINDOW_SECONDS, Asking
from lashd.running.jobs import Initiator, Job, Jobs, Outcome
from lashd.words.errors import ErrorName, LashdError

ROOT, USER, SECOND = Initiator(0), Initiator(1000), Initiator(1001)


class Host:
    """What `Asking` goes by, to be changed by a test, and how often the registries were asked."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.state = "as it is"
        self.asked = 0
        self.error: LashdError | None = None
        self.jobs = Jobs()
        self.asking = Asking(self.jobs, lambda: self.state, lambda: self.now)

    async def work(self, job: Job) -> Outcome:
        self.asked += 1
        if self.error:
            raise self.error
        return Outcome(False)

    async def ask(self, who: Initiator, what: str = "check", **options: str) -> tuple[int, bool]:
        job, joined = self.asking.start(what, self.work, who, options)
        await job.ended()
        return job.id, joined


async def test_an_answer_of_a_moment_ago() -> None:
    host = Host()
    assert await host.ask(USER) == (1, False)
    assert await host.ask(USER) == (1, True)
    assert await host.ask(SECOND, reason="to know") == (1, True), "whoever asks, and for whatever reason"
    assert await host.ask(USER, "plan", kind="upgrade") == (2, False)
    assert await host.ask(USER, "plan", kind="bind") == (3, False)
    assert await host.ask(USER, "plan", kind="upgrade") == (2, True)
    assert await host.ask(ROOT) == (4, False), "root gets a fresh one"
    assert await host.ask(USER) == (4, True), "which others may have as well"
    host.now += FRESH_SECONDS + 1
    assert await host.ask(USER) == (5, False)
    host.state = "something else is staged"
    assert await host.ask(USER) == (6, False)
    host.error = LashdError(ErrorName.NETWORK_UNAVAILABLE)
    host.state = "and again"
    assert await host.ask(USER) == (7, False)
    assert await host.ask(USER) == (8, False), "a failure is no answer"
    assert host.asked == 8


async def test_a_state_that_changed_meanwhile() -> None:
    host = Host()
    going = asyncio.Event()

    async def slow(job: Job) -> Outcome:
        await going.wait()
        return Outcome(False)

    job, _joined = host.asking.start("check", slow, USER, {})
    assert host.asking.start("check", slow, SECOND, {}) == (job, True), "what runs is joined, and costs nothing"
    host.state = "other"
    going.set()
    await job.ended()
    assert await host.ask(USER) == (2, False)


async def test_only_so_many_for_one_user() -> None:
    host = Host()
    for number in range(MOST):
        await host.ask(USER, "plan", deployment=str(number))
        host.now += 1
    with pytest.raises(LashdError) as caught:
        await host.ask(USER)
    assert caught.value.name is ErrorName.BUSY
    assert caught.value.retryable
    assert caught.value.retry_after == WINDOW_SECONDS - MOST
    assert f"Ask again in {WINDOW_SECONDS - MOST:.0f} seconds." in caught.value.message
    assert len(host.jobs.list()) == MOST
    # What is known already is not asked for, others are not in the way, and root has no limit.
    await host.ask(USER, "plan", deployment=str(MOST - 1))
    await host.ask(SECOND)
    for _ in range(MOST + 1):
        await host.ask(ROOT, "plan", kind="upgrade")
    host.now += WINDOW_SECONDS - MOST
    host.state = "later"
    await host.ask(USER)
    with pytest.raises(LashdError, match="as often as anyone but root may"):
        await host.ask(USER, "plan")


async def test_nothing_is_remembered_for_good(monkeypatch) -> None:
    monkeypatch.setattr("lashd.running.jobs.KEEP_JOBS", 3)
    host = Host()
    for number in range(20):
        await host.ask(Initiator(2000 + number), "plan", deployment=str(number))
        host.now += WINDOW_SECONDS / 5
    assert len(host.asking._asked) <= 4
    assert len(host.asking._spent) <= 5
