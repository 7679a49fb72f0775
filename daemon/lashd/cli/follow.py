# SPDX-License-Identifier: Apache-2.0
"""Follow one job until it ends, whatever happens on the way: lashd restarts, Ctrl-C, a job that ends at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lashd.bus.contract import JOB
from lashd.cli import failures
from lashd.cli import job as jobs
from lashd.cli.client import Client, Feed
from lashd.cli.failures import Failure
from lashd.cli.job import Job

# Changes come by signal; a job that is silent for so long (seconds) is read again: a lost signal cannot hang us.
REREAD_SECONDS = 10.0
# lashd may be restarted while a job runs; so long (seconds) we wait for it to come back.
RETURN_SECONDS = 5.0


async def follow(
    client: Client, path: str, feed: Feed, *, show: Callable[[Job], None], notice: Callable[[str], None]
) -> Job:
    """Wait for the end of the job at `path`; `show` gets every change, `notice` what happens to lashd itself.

    `feed` must have been open since before the job was started. Raises Failure on Ctrl-C and SIGTERM (the
    job goes on), and when the job's result cannot be known any more.
    """
    latest = jobs.read(path, {})

    def seen(job: Job) -> None:
        nonlocal latest
        latest = job
        show(job)

    following = asyncio.ensure_future(_follow(client, path, feed, seen, notice))
    with _interruption() as interrupted:
        both: set[asyncio.Future[Any]] = {following, interrupted}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not following.done():
                following.cancel()
                await asyncio.wait({following})
        if following.cancelled():
            raise _interrupted(interrupted.result(), latest)
        return following.result()


async def _follow(
    client: Client, path: str, feed: Feed, show: Callable[[Job], None], notice: Callable[[str], None]
) -> Job:
    current = await _read(client, jobs.read(path, {}))
    while True:
        show(current)
        if current.done:
            return current
        news = await feed.next(REREAD_SECONDS)
        if news is None:
            current = await _read(client, current)
        elif news.owner is not None:
            if not news.owner:
                notice("lashd has stopped; waiting for it to come back")
            current = await _come_back(client, current)
            notice("")
        elif news.path == path and (changed := news.changed(JOB)):
            current = jobs.merge(current, changed)
            if current.done:
                # By now every property of the end can be read, also those that this signal left out.
                current = await _read(client, current)


async def _read(client: Client, job: Job) -> Job:
    try:
        return await client.job(job.path, start=False)
    except Failure as failure:
        if failure.exit_status != failures.EXIT_UNAVAILABLE:
            raise
        return job if job.done else await _come_back(client, job)


async def _come_back(client: Client, job: Job) -> Job:
    """The job after lashd has come back: its result is kept in the history, whatever happened to the daemon."""
    ends = asyncio.get_running_loop().time() + RETURN_SECONDS
    while True:
        failure = None
        try:
            # Not started from here: it may have been stopped on purpose, and systemd restarts one that died.
            found = await client.job(job.path, start=False)
        except Failure as error:
            if error.name.endswith(".Disconnected"):
                raise  # it is the bus that has gone
            failure = error
        else:
            # Where all of lashd's state was lost it counts its jobs anew: the same number is not always the same job.
            if not job.uuid or found.uuid == job.uuid:
                return found
        if asyncio.get_running_loop().time() >= ends:
            raise _lost(job, failure)
        await asyncio.sleep(0.25)


def _interrupted(number: signal.Signals, job: Job) -> Failure:
    return Failure(
        "Interrupted",
        f"Not following any more: {job.title} goes on in the background.",
        128 + number,
        hint=f"'lashctl jobs --follow {job.id}' follows it again, 'lashctl jobs --cancel {job.id}' cancels it.",
        job=job.id,
    )


def _lost(job: Job, failure: Failure | None) -> Failure:
    return Failure(
        failure.name if failure else "JobLost",
        f"lashd stopped while {job.title} was running, and how that ended is not known. "
        "Whatever was not complete does not boot; what was already fetched is kept.",
        failures.EXIT_UNAVAILABLE,
        hint="'systemctl status lashd' says why it stopped, 'lashctl status' how things stand; "
        "then the same command again carries on.",
        retryable=True,
        job=job.id,
    )


@contextmanager
def _interruption() -> Iterator[asyncio.Future[signal.Signals]]:
    """A future that Ctrl-C or SIGTERM fulfils; a signal that the caller made us ignore stays ignored."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[signal.Signals] = loop.create_future()

    def told(number: signal.Signals) -> None:
        if not future.done():
            future.set_result(number)

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, told, number)
    try:
        yield future
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
        future.cancel()
