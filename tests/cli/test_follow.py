# SPDX-License-Identifier: Apache-2.0
"""follow: what no real bus does on demand, such as losing a signal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from lashd.bus.contract import JOB, ROOT
from lashd.cli import follow
from lashd.cli.client import PROPERTIES, News
from lashd.cli.failures import EXIT_UNAVAILABLE, Failure
from lashd.cli.job import Job

PATH = f"{ROOT}/job/7"


class Service:
    """Answers each reading of the job with the next of `readings`; the last one stays."""

    def __init__(self, *readings: Job | Failure) -> None:
        self.readings = list(readings)
        self.read = 0

    async def job(self, path: str, *, start: bool = True) -> Job:
        assert not start, "lashd was stopped, and comes up again because somebody follows a job"
        self.read += 1
        reading = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(reading, Failure):
            raise reading
        return reading


class Feed:
    def __init__(self, *news: News | None) -> None:
        self.news: Iterator[News | None] = iter(news)
        self.silence = 0

    async def next(self, seconds: float | None = None) -> News | None:
        await asyncio.sleep(0)
        self.silence += 1
        assert self.silence < 50, "nobody looks at the job any more"
        return next(self.news, None)


def state(state: str, **more: object) -> Job:
    return Job(PATH, 7, uuid="u", state=state, **more)  # type: ignore[arg-type]


def change(path: str = PATH, **properties: object) -> News:
    return News(path, PROPERTIES, "PropertiesChanged", [JOB, properties, []])


def owner(name: str) -> News:
    return News("", "org.freedesktop.DBus", "NameOwnerChanged", ["io.github.lashd1", "x", name])


GONE = Failure("org.freedesktop.DBus.Error.ServiceUnknown", "Gone.", EXIT_UNAVAILABLE)
SILENT: Callable[[object], None] = lambda _: None  # noqa: E731


async def followed(service: Service, feed: Feed, seen: list[Job] | None = None) -> Job:
    show = seen.append if seen is not None else SILENT
    return await follow.follow(service, PATH, feed, show=show, notice=SILENT)  # type: ignore[arg-type]


async def test_a_job_that_has_ended_is_not_waited_for() -> None:
    service = Service(state("done", result="success"))
    assert (await followed(service, Feed())).result == "success"
    assert service.read == 1


async def test_a_lost_signal_does_not_hang_us() -> None:
    service = Service(state("running"), state("running"), state("done", result="success"))
    assert (await followed(service, Feed(None, None))).result == "success"


async def test_the_end_is_read_whole() -> None:
    service = Service(state("running"), state("done", result="failed", error_message="Why."))
    assert (await followed(service, Feed(change(State="done")))).error_message == "Why."


async def test_other_jobs_are_not_ours() -> None:
    seen: list[Job] = []
    service = Service(state("running"), state("done"))
    await followed(service, Feed(change(f"{ROOT}/job/8", State="done"), change(Stage="pull"), None), seen)
    assert [job.stage for job in seen][:3] == ["", "", "pull"]
    assert service.read == 2


async def test_old_news_do_not_undo_the_end() -> None:
    # The job ended between the call and our first reading; its earlier changes are still in the queue.
    service = Service(state("done", result="unchanged"))
    assert (await followed(service, Feed(change(State="running")))).result == "unchanged"


async def test_lashd_dies_right_after_the_end() -> None:
    service = Service(state("running"), GONE)
    job = await followed(service, Feed(change(Result="success"), change(State="done")))
    assert job.result == "success"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "RETURN_SECONDS", 0.6)


async def test_lashd_is_replaced_at_once(impatient: None) -> None:
    service = Service(state("running"), GONE, state("done", result="success"))
    assert (await followed(service, Feed(owner(":1.9")))).result == "success"


async def test_the_first_reading_may_have_to_wait(impatient: None) -> None:
    assert (await followed(Service(GONE, state("done", result="success")), Feed())).result == "success"


async def test_lashd_stays_away(impatient: None) -> None:
    with pytest.raises(Failure, match="how that ended is not known") as caught:
        await followed(Service(state("running"), GONE), Feed(owner("")))
    assert (caught.value.exit_status, caught.value.job, caught.value.retryable) == (69, 7, True)


async def test_the_bus_is_gone(impatient: None) -> None:
    lost = Failure("org.freedesktop.DBus.Error.Disconnected", "Lost.", EXIT_UNAVAILABLE)
    with pytest.raises(Failure, match="Lost"):
        await followed(Service(state("running"), lost, state("done")), Feed(owner("")))
