# SPDX-License-Identifier: Apache-2.0
"""A shutdown waits for a bind, and a bind for nothing; tests/host/test_reboot.py has the real logind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from lashd.running.delay import WHY, Delay
from lashd.running.jobs import Initiator, Job, Jobs, Outcome, Work
from lashd.things.logind import inhibited
from lashd.words.errors import ErrorName, LashdError
from lashd.words.progress import Stage, StageStarted


class Logind:
    """Says what is inhibited. `works`: whether it lets itself be asked; `slow`: seconds until it answers or lets go."""

    def __init__(self, *, works: bool = True, slow: float = 0.0) -> None:
        self.works = works
        self.slow = slow
        self.held: list[str] = []
        self.taken = 0

    @contextlib.asynccontextmanager
    async def __call__(self, why: str) -> AsyncIterator[bool]:
        self.taken += 1
        await asyncio.sleep(self.slow)
        if self.works:
            self.held.append(why)
        try:
            yield self.works
        finally:
            if self.works:
                await asyncio.sleep(self.slow)
                self.held.remove(why)


@pytest.fixture
async def logind() -> Logind:
    return Logind()


@pytest.fixture
async def jobs(logind: Logind) -> AsyncIterator[Jobs]:
    table, delay = Jobs(), Delay(logind)
    table.subscribe(delay)
    yield table
    await table.stop()
    await delay.stop()
    assert logind.held == []


async def forever() -> None:
    await asyncio.Event().wait()


def through(*stages: Stage, then: Callable[[], Awaitable[None]] = forever) -> Work:
    """The work of a job that goes through `stages`, and `then` does something."""

    async def work(job: Job) -> Outcome:
        for stage in stages:
            job.report(StageStarted(stage))
            await asyncio.sleep(0)
        await then()
        return Outcome(True)

    return work


async def a_moment() -> None:
    for _ in range(10):
        await asyncio.sleep(0.001)


async def fails() -> None:
    raise LashdError(ErrorName.NETWORK_UNAVAILABLE)


@pytest.mark.parametrize(
    ("kind", "stages", "slot", "inhibits"),
    [
        ("bind", (Stage.HOLD, Stage.DISCOVER), True, True),
        ("bind", (Stage.DISCOVER, Stage.PLAN, Stage.PULL), True, True),
        ("rollback", (Stage.DISCOVER, Stage.PLAN), True, True),
        ("upgrade", (Stage.STAGE,), True, False),
        ("upgrade", (Stage.STAGE, Stage.HOLD, Stage.PULL), True, True),
        ("restage", (Stage.STAGE,), True, False),
        ("collect", (Stage.COLLECT,), True, False),
        ("discard", (Stage.DISCARD,), True, False),
        ("plan", (Stage.DISCOVER, Stage.PLAN), False, False),
        ("verify", (Stage.VERIFY,), False, False),
    ],
)
async def test_what_inhibits(
    jobs: Jobs, logind: Logind, kind: str, stages: tuple[Stage, ...], slot: bool, inhibits: bool
) -> None:
    assert logind.held == []
    job, _ = jobs.start(kind, through(*stages), Initiator(0), {}, slot=slot)
    await a_moment()
    assert logind.held == ([WHY] if inhibits else [])
    await job.stop()
    await a_moment()
    assert (logind.held, logind.taken) == ([], int(inhibits))


@pytest.mark.parametrize(("then", "result"), [(a_moment, "success"), (fails, "failed")])
async def test_it_ends_with_the_job(
    jobs: Jobs, logind: Logind, then: Callable[[], Awaitable[None]], result: str
) -> None:
    job, _ = jobs.start("bind", through(Stage.PULL, then=then), Initiator(0), {})
    assert (await job.wait(5))[0] == result
    await a_moment()
    assert (logind.held, logind.taken) == ([], 1)


async def test_nothing_waits_for_it(jobs: Jobs, logind: Logind) -> None:
    """Neither a job for logind's answer, nor the next job for the end of the one before."""
    logind.slow = 0.2
    for number in (1, 2):
        job, _ = jobs.start("bind", through(Stage.PULL, then=a_moment), Initiator(0), {"deployment": str(number)})
        assert (await job.wait(0.15))[0] == "success"
    await asyncio.sleep(0.5)
    assert (logind.held, logind.taken) == ([], 2)


async def test_it_is_asked_for_once_in_a_job(jobs: Jobs, logind: Logind) -> None:
    logind.works = False
    job, _ = jobs.start("bind", through(Stage.HOLD, Stage.PLAN, Stage.PULL, then=a_moment), Initiator(0), {})
    assert (await job.wait(5))[0] == "success"
    assert logind.taken == 1


async def test_a_child_holds_it_and_goes_with_the_job(tmp_path: Path) -> None:
    """As systemd-inhibit does: it starts the command that it is given, and waits for its end."""
    program = tmp_path / "inhibit"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\nwhile [ "$1" != sh ]; do shift; done\n"$@"\n')
    program.chmod(0o755)
    table, delay = Jobs(), Delay(partial(inhibited, program=os.fspath(program)))
    table.subscribe(delay)
    job, _ = table.start("bind", through(Stage.PULL), Initiator(0), {})
    for _ in range(500):
        await asyncio.sleep(0.01)
        if (tmp_path / "told").exists() and (told := (tmp_path / "told").read_text()):
            break
    assert told.startswith(f"--what=shutdown:sleep --who=lashd --why={WHY} --mode=delay sh")
    job.cancel()
    await job.ended()
    await delay.stop()


async def test_nothing_is_left_when_the_daemon_ends(logind: Logind) -> None:
    table, delay = Jobs(), Delay(logind)
    table.subscribe(delay)
    table.start("bind", through(Stage.PULL), Initiator(0), {})
    await a_moment()
    logind.slow = 0.1  # until it has let go
    await table.stop()
    assert logind.held == [WHY]
    await delay.stop()
    assert logind.held == []
