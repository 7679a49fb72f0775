# SPDX-License-Identifier: Apache-2.0
"""Jobs: the slot, joining, results, the order of news, cancelling, and what a mistake of ours looks like outside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lashd.running import jobs as module
from lashd.running.jobs import Initiator, Job, Jobs, Outcome
from lashd.words.errors import ErrorName, LashdError
from lashd.words.progress import ItemProgress, Stage, StageStarted

ROOT = Initiator(0, "", "test")


class News:
    """Everything that was told, in order, with the job's state at that instant."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def job_new(self, job: Job) -> None:
        self.told.append(("new", job.state))

    def job_changed(self, job: Job, names: frozenset[str]) -> None:
        self.told.append(("changed", {name: getattr(job, name) for name in names}))

    def job_done(self, job: Job) -> None:
        self.told.append(("done", job.state))

    def job_removed(self, job: Job) -> None:
        self.told.append(("removed", job.state))


@pytest.fixture
def table() -> Jobs:
    return Jobs()


@pytest.fixture
def news(table: Jobs) -> News:
    listener = News()
    table.subscribe(listener)
    return listener


async def nothing(job: Job) -> Outcome:
    return Outcome(changed=False)


async def forever(job: Job) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError


def failing(error: Exception) -> module.Work:
    async def work(job: Job) -> Outcome:
        raise error

    return work


async def test_same_request_joins_and_another_is_busy_naming_the_holder(table: Jobs) -> None:
    first, joined = table.start("upgrade", forever, ROOT, {"expected-digest": "a", "reason": "x"})
    assert not joined
    again, joined = table.start("upgrade", forever, Initiator(5), {"expected-digest": "a", "reason": "another"})
    assert (again, joined) == (first, True)
    for kind, options in (("upgrade", {"expected-digest": "b"}), ("rollback", {})):
        with pytest.raises(LashdError, match=r"Job 1 \(upgrade, asked for by user 0 as test\)") as caught:
            table.start(kind, nothing, ROOT, options)
        assert caught.value.name is ErrorName.BUSY
    reading, joined = table.start("plan", nothing, ROOT, {}, slot=False)
    assert not joined
    assert await reading.wait(1) == ("unchanged", "", "")
    await table.stop()
    table.start("rollback", nothing, ROOT, {})
    await table.stop()


async def test_idempotency_key_finds_a_finished_job(table: Jobs) -> None:
    job, _ = table.start("bind", nothing, ROOT, {"idempotency-key": "k"})
    await job.wait(1)
    assert table.start("bind", nothing, ROOT, {"idempotency-key": "k"}) == (job, True)
    assert table.start("bind", nothing, ROOT, {"idempotency-key": "l"})[1] is False
    await table.stop()


async def test_an_idempotency_key_is_its_users_and_stands_for_one_request(table: Jobs) -> None:
    """Everybody reads them, so nobody's may answer for what somebody else wants done, nor for anything else."""
    key = {"idempotency-key": "k"}
    theirs, _ = table.start("check", nothing, Initiator(1000), key, slot=False)
    await theirs.wait(1)
    own, joined = table.start("check", nothing, ROOT, key, slot=False)
    assert (own is theirs, joined) == (False, False)
    await own.wait(1)
    assert table.start("check", nothing, ROOT, {**key, "reason": "again"}, slot=False) == (own, True)
    job, _ = table.start("upgrade", nothing, ROOT, {**key, "expected-digest": "a"})
    await job.wait(1)
    with pytest.raises(LashdError, match=r"job 3 .* other options") as caught:
        table.start("upgrade", nothing, ROOT, {**key, "expected-digest": "b"})
    assert caught.value.name is ErrorName.INVALID_ARGUMENT
    # What runs is joined for what it does, whoever asks.
    running, _ = table.start("bind", forever, ROOT, key)
    assert table.start("bind", forever, Initiator(1000), key) == (running, True)
    await table.stop()


@pytest.mark.parametrize(
    ("work", "result", "name", "words"),
    [
        (nothing, "unchanged", "", ""),
        (failing(LashdError(ErrorName.NO_SPACE, "Full.")), "failed", "NoSpace", "Full."),
        (failing(KeyError("/secret/path.py")), "failed", "Internal", "lashd made a mistake"),
    ],
)
async def test_results(table: Jobs, work: module.Work, result: str, name: str, words: str) -> None:
    job, _ = table.start("bind", work, ROOT, {})
    assert await job.wait(1) == (result, name, job.error_message)
    assert words in job.error_message
    assert "secret" not in job.error_message
    assert job.details["changed"] is False
    assert await job.wait(0) == (result, name, job.error_message), "a late wait answers at once"


async def test_errors_are_told_before_the_state_and_the_state_before_done(table: Jobs, news: News) -> None:
    job, _ = table.start("bind", failing(LashdError(ErrorName.TIMEOUT)), ROOT, {})
    await job.wait(1)
    kinds = [
        "error" if kind == "changed" and value.get("error_name") else "state" if kind == "changed" else kind
        for kind, value in news.told
    ]
    assert kinds == ["new", "state", "error", "state", "done"]
    assert "state" not in news.told[2][1]
    assert news.told[3][1] == {"state": "done"}


async def test_wait_that_ends_first_says_running(table: Jobs) -> None:
    job, _ = table.start("bind", forever, ROOT, {})
    assert await job.wait(0.01) == ("running", "", "")
    await table.stop()


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["before its first step", "at once", "later"])
async def test_cancel_ends_as_cancelled(table: Jobs, steps: int) -> None:
    job, _ = table.start("bind", forever, ROOT, {})
    for _ in range(steps):
        await asyncio.sleep(0)
    job.cancel()
    job.cancel()
    assert (await job.wait(1))[:2] == ("cancelled", "Cancelled")
    job.cancel()


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(lambda job: job.protect(), id="protected"),
        pytest.param(lambda job: job.report(StageStarted(Stage.ROLL_BACK)), id="changing the boot order"),
    ],
)
async def test_what_cannot_be_cancelled(table: Jobs, begin: Callable[[Job], None]) -> None:
    async def work(job: Job) -> Outcome:
        begin(job)
        await asyncio.sleep(0.05)
        return Outcome(changed=True)

    job, _ = table.start("rollback", work, ROOT, {})
    await asyncio.sleep(0.01)
    with pytest.raises(LashdError) as caught:
        job.cancel()
    assert caught.value.name is ErrorName.NOT_CANCELLABLE
    assert (await job.wait(1))[0] == "success"


async def test_progress_is_thinned_and_never_lost(table: Jobs, news: News) -> None:
    async def work(job: Job) -> Outcome:
        job.report(StageStarted(Stage.PULL, bytes_total=1000, items_total=1))
        for done in range(1, 1001):
            job.report(ItemProgress("a", "fetching", done, 1000))
            if done % 100 == 0:
                await asyncio.sleep(0.03)
        return Outcome(changed=True)

    job, _ = table.start("bind", work, ROOT, {})
    await job.wait(5)
    progress = [value["bytes_done"] for kind, value in news.told if kind == "changed" and "bytes_done" in value]
    assert progress == sorted(progress)
    assert progress[-1] == 1000
    assert 2 <= len(progress) <= 6, "about 0.3 s at 5 a second, and the ends"
    assert job.fraction == 1.0


async def test_finished_jobs_leave_the_bus_when_there_are_many(
    table: Jobs, news: News, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP_JOBS", 2)
    for _ in range(5):
        job, _ = table.start("bind", nothing, ROOT, {})
        await job.wait(1)
    assert [job.id for job in table.list()] == [4, 5]
    assert [kind for kind, _ in news.told].count("removed") == 3


async def test_finished_jobs_leave_after_a_while(table: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_SECONDS", 0.01)
    job, _ = table.start("bind", nothing, ROOT, {})
    await job.wait(1)
    assert table.get(job.id) is job
    await asyncio.sleep(0.05)
    assert table.get(job.id) is None


async def test_what_yields_makes_room_and_ends_first() -> None:
    jobs = Jobs()
    order: list[str] = []

    async def own(job: Job) -> Outcome:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            order.append("own ended")
        return Outcome(False)

    async def asked(job: Job) -> Outcome:
        order.append("asked began")
        return Outcome(True)

    first, _ = jobs.start("restage", own, Initiator(0), {}, yields=True)
    with pytest.raises(LashdError) as caught:
        jobs.start("bind", own, Initiator(0), {}, yields=True)
    assert caught.value.name is ErrorName.BUSY
    await asyncio.sleep(0)
    second, joined = jobs.start("upgrade", asked, Initiator(1), {})
    # While the first one is still ending, the slot belongs to the second.
    with pytest.raises(LashdError) as caught:
        jobs.start("rollback", asked, Initiator(1), {})
    assert caught.value.name is ErrorName.BUSY
    assert "upgrade" in caught.value.message
    assert not joined
    assert (await second.wait(5))[0] == "success"
    assert (first.result, order) == ("cancelled", ["own ended", "asked began"])
    # Past the point of no return it does not yield.
    third, _ = jobs.start("restage", own, Initiator(0), {}, yields=True)
    await asyncio.sleep(0)
    third.protect()
    with pytest.raises(LashdError):
        jobs.start("upgrade", asked, Initiator(1), {})
    await jobs.stop()


async def test_what_a_person_has_joined_does_not_yield_any_more(table: Jobs) -> None:
    own, _ = table.start("bind", forever, Initiator(0), {"deployment": "a"}, yields=True)
    assert table.start("bind", forever, Initiator(0), {"deployment": "a"}, yields=True) == (own, True)
    assert own.yields
    assert table.start("bind", forever, Initiator(1000), {"deployment": "a", "initiator": "lashctl"}) == (own, True)
    assert not own.yields
    with pytest.raises(LashdError) as caught:
        table.start("upgrade", nothing, Initiator(1000), {})
    assert caught.value.name is ErrorName.BUSY
    await table.stop()


async def test_nobody_joins_a_job_that_was_cancelled(table: Jobs) -> None:
    """Whoever asks after that wants it done: he is told who is still in the way, and is not cancelled with it."""
    job, _ = table.start("bind", forever, ROOT, {"deployment": "a"})
    await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(LashdError) as caught:
        table.start("bind", forever, ROOT, {"deployment": "a"})
    assert caught.value.name is ErrorName.BUSY
    look, _ = table.start("plan", forever, ROOT, {}, slot=False)
    await asyncio.sleep(0)
    look.cancel()
    again, joined = table.start("plan", nothing, ROOT, {}, slot=False)
    assert not joined
    assert (await again.wait(1))[0] == "unchanged"
    await job.wait(1)
    assert not table.start("bind", nothing, ROOT, {"deployment": "a"})[1]
    await table.stop()


async def test_what_ended_last_stays_longest(table: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long job's result can be read for minutes, however many short ones have begun and ended meanwhile."""
    monkeypatch.setattr(module, "KEEP_JOBS", 2)
    long, _ = table.start("upgrade", forever, ROOT, {})
    for _ in range(3):
        await table.start("plan", nothing, ROOT, {}, slot=False)[0].wait(1)
    long.cancel()
    await long.wait(1)
    assert [job.id for job in table.list()] == [1, 4]
    await table.stop()
