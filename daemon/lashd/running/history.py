# SPDX-License-Identifier: Apache-2.0
"""The history of jobs and of what ran, kept beside the event loop: nobody ever waits for it but who asks for it.

One thread reads and writes the file. What cannot be written (no space, a read-only /var) is kept in memory, is shown
all the same, and is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lashd.running.jobs import KEEP_JOBS, KEEP_SECONDS, Job, Listener
from lashd.things.history_rows import JobEntry, SetEntry, SetSeen
from lashd.words.errors import LashdError

if TYPE_CHECKING:
    from lashd.things.history import HistoryFile

log = logging.getLogger(__name__)

# A disk that does not answer keeps the daemon waiting for so long (seconds), when it starts and when it ends.
START_SECONDS = 2.0
STOP_SECONDS = 5.0
# Between two tries to write what could not be written (seconds), and so many jobs are kept until then.
RETRY_SECONDS = 60.0
KEPT = 256

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Past:
    """What a daemon that begins has to know: jobs that clients may still ask for, oldest first.

    `interrupted` are those that did not come to their end. `last_number` is the highest that a job had, 0 for none, and
    None when what there was could not be read.
    """

    last_number: int | None
    ended: tuple[JobEntry, ...]
    interrupted: tuple[JobEntry, ...]


class History(Listener):
    """Listens to the jobs. `boot` is the id of this boot; `run` is where no two daemons have the same lock."""

    def __init__(self, state: Path, run: Path, boot: str) -> None:
        self._path = state / "history.db"
        self._lock = run / "history.lock"
        self._boot = boot
        # A thread of its own: a disk that hangs takes no other's place.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._opening: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._read_once = False
        self._past: Past | None = None  # until `start` has given it away
        self._waited_for = True
        self._file: HistoryFile | None = None
        self._waiting: dict[int, JobEntry] = {}
        self._running: SetSeen | None = None
        self._writer: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._complaint = ""

    async def start(self, late: Callable[[Past], None]) -> Past | None:
        """Open the file; what is in it, None when it cannot be read now.

        None also when the disk takes longer than START_SECONDS. It is tried again, and then `late` gets it.
        """
        self._opening = asyncio.create_task(self._open(late), name="history")
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._tried.wait()
        except TimeoutError:
            log.warning("The history %s is not there yet; lashd goes on without it meanwhile", self._path)
        self._waited_for = False
        past, self._past = self._past, None
        return past

    async def stop(self) -> None:
        """Write what is still to be written, as far as the disk allows it in STOP_SECONDS, and close the file."""
        for waiting in (self._retry, self._opening):
            if waiting is not None:
                waiting.cancel()
        if not self._read_once and self._waiting and self._opening is not None:
            # Perhaps there is room by now.
            with contextlib.suppress(LashdError, TimeoutError):
                await asyncio.wait_for(self._call(self._read), STOP_SECONDS)
                self._read_once = True
        self._kick()
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=STOP_SECONDS)
        if self._waiting:
            some = "1 job that has" if len(self._waiting) == 1 else f"{len(self._waiting)} jobs that have"
            log.error("The history %s goes without %s not been written", self._path, some)
        file, self._file = self._file, None
        if file is not None:
            closing = asyncio.get_running_loop().run_in_executor(self._thread, file.close)
            await asyncio.wait([closing], timeout=STOP_SECONDS)
        self._thread.shutdown(wait=False)

    @property
    def written(self) -> bool:
        """Whether there is nothing that would be lost if lashd ended."""
        return self._read_once and not self._waiting and self._running is None

    # -- what is put down --------------------------------------------------------------------------------------------

    def job_new(self, job: Job) -> None:
        self._put(self._entry(job))

    def job_changed(self, job: Job, names: frozenset[str]) -> None:
        if "stage" in names and job.slot and job.active:
            self._put(self._entry(job))

    def job_done(self, job: Job) -> None:
        self._put(self._entry(job, ended=max(1, int(time.time()))))

    def put(self, entry: JobEntry) -> None:
        """What became of a job of an earlier daemon."""
        self._put(entry)

    def saw(self, running: SetSeen) -> None:
        """What runs now."""
        self._running = running
        self._kick()

    # -- what is asked for -------------------------------------------------------------------------------------------

    async def jobs(self, *, limit: int, since: int = 0, number: int = 0) -> list[JobEntry]:
        """As `HistoryFile.jobs`. Raises what it does, unless what could not be written answers it."""
        kept = {
            entry.id: entry
            for entry in self._waiting.values()
            if number in (0, entry.id) and (not entry.ended or entry.ended >= since)
        }
        found: dict[int, JobEntry] = {}
        try:
            found = {entry.id: entry for entry in await self._ask("jobs", limit=limit, since=since, number=number)}
        except LashdError:
            if not kept:
                raise
        found |= kept
        return [found[number] for number in sorted(found, reverse=True)[:limit]]

    async def sets(self, *, limit: int, since: int = 0) -> list[SetEntry]:
        """As `HistoryFile.sets`."""
        found: list[SetEntry] = await self._ask("sets", limit=limit, since=since)
        return found

    # -- helpers -----------------------------------------------------------------------------------------------------

    async def _open(self, late: Callable[[Past], None]) -> None:
        """Try until it can be read; nothing is written before, because what this daemon does is not its past."""
        past: Past | None = None
        while past is None:
            try:
                past = await self._call(self._read)
                self._read_once = True
                if self._waited_for:
                    self._past = past
            except LashdError as error:
                self._complain(error)
            except Exception:
                log.exception("The history was not read by a mistake")
            finally:
                self._tried.set()
            if past is None:
                await asyncio.sleep(RETRY_SECONDS)
        if not self._waited_for:
            asyncio.get_running_loop().call_soon(late, past)
        self._kick()

    def _read(self) -> Past:
        # SQLite takes a while to load, and nothing else waits for that.
        from lashd.things.history import HistoryFile

        self._file = file = self._file or HistoryFile(self._path, self._lock)
        interrupted = file.unfinished()
        # A clock that was set back makes no job one of long ago.
        ended = [one for one in file.jobs(limit=KEEP_JOBS) if one.ended and time.time() - one.ended < KEEP_SECONDS]
        last = None if file.lost else file.last_number()
        return Past(last, tuple(reversed(ended)), tuple(interrupted))

    async def _ask(self, what: str, **how: int) -> Any:
        if self._opening is not None:
            await self._tried.wait()
        await asyncio.sleep(0)  # what was put down a moment ago is written first
        file = self._file
        return await self._call(lambda: getattr(file, what)(**how)) if file is not None else []

    async def _call(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _entry(self, job: Job, ended: int = 0) -> JobEntry:
        return JobEntry(
            *(job.id, job.uuid, job.kind, job.slot, self._boot, job.created),
            *(job.initiator.uid, job.initiator.unit, job.initiator.name, dict(job.options)),
            stage=job.stage,
            ended=ended,
            result=job.result if ended else "",
            error_name=job.error_name,
            error_message=job.error_message,
            details=dict(job.details),
        )

    def _put(self, entry: JobEntry) -> None:
        self._waiting[entry.id] = entry
        while len(self._waiting) > KEPT:
            del self._waiting[next(iter(self._waiting))]
        self._kick()

    def _kick(self) -> None:
        if self._read_once and self._writer is None and (self._waiting or self._running is not None):
            self._writer = asyncio.create_task(self._write(), name="history is written")

    async def _write(self) -> None:
        """Write all there is; what comes meanwhile is written together. A failure leaves it for later."""
        file = self._file
        try:
            while file is not None and (self._waiting or self._running is not None):
                jobs, running = dict(self._waiting), self._running
                await self._call(lambda: file.write(jobs.values(), running))  # noqa: B023 (called at once)
                # What has changed meanwhile is still to be written.
                self._waiting = {number: one for number, one in self._waiting.items() if one is not jobs.get(number)}
                self._running = None if self._running is running else self._running
                self._complaint = ""
        except LashdError as error:
            self._complain(error)
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._kick)
        except Exception:
            log.exception("The history was not written by a mistake")
            self._waiting.clear()
            self._running = None
        finally:
            self._writer = None

    def _complain(self, error: LashdError) -> None:
        if error.message != self._complaint:
            log.warning("%s", error.message)
        self._complaint = error.message
