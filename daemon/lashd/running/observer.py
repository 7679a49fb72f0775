# SPDX-License-Identifier: Apache-2.0
"""Tells the journal and monitoring of the running service; whatever goes wrong here, the service goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from lashd.running.alerts import Alerts
from lashd.running.jobs import Job, Listener
from lashd.running.metrics import JobFigures, values
from lashd.running.metrics_socket import MetricsSocket
from lashd.running.service import Service
from lashd.words.metrics import Values, plain

log = logging.getLogger(__name__)

# Much may change at once: it is looked at most so often (seconds) ...
PAUSE_SECONDS = 2.0
# ... and the file is written at least so often, so that its age says whether lashd lives.
WRITE_SECONDS = 60.0


class Observer(Listener):
    """To be entered before the service is started, so that it hears of every job."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service = service
        self._file = settings.paths.run / "metrics/lashd.prom" if settings.metrics.textfile else None
        self._figures = JobFigures(service.jobs, settings.paths.state / "last-success.json")
        self._alerts = Alerts(settings.paths.run / "alerts.json")
        self._socket = MetricsSocket(settings.paths.run / "metrics.sock", self._asked)
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._complaint = self._mistake = ""

    async def __aenter__(self) -> Self:
        self._service.jobs.subscribe(self._figures)
        self._service.jobs.subscribe(self)
        self._service.subscribe(self)
        if self._service.settings.metrics.socket:
            try:
                await self._socket.start()
            except OSError as error:
                log.warning("There are no metrics on a socket: %s", error)
        self._task = asyncio.create_task(self._run(), name="observer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._socket.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._figures.keep(self._figures.unwritten())

    # -- called by the service and its jobs ---------------------------------------------------------------------------

    def state_changed(self) -> None:
        self._news.set()

    def job_done(self, job: Job) -> None:
        # Not later: the next try may be under way by then, and nothing would ever be seen to stay as it is.
        self._alert()
        self._news.set()

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            self._news.clear()
            await self._look()
            try:
                async with asyncio.timeout(WRITE_SECONDS if self._file else None):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        if self._service.stopping:
            return  # what is read until the next daemon runs is how it stood before
        self._alert()
        try:
            if (successes := self._figures.unwritten()) is not None:
                await asyncio.to_thread(self._figures.keep, successes)
            if self._file is not None:
                await asyncio.to_thread(_replace, self._file, plain(self._values()).encode())
            self._complaint = ""
        except OSError as error:
            self._complain(f"The metrics cannot be written: {error}")
        except Exception as error:
            self._complain(f"The metrics cannot be told: {error!r}")

    def _alert(self) -> None:
        try:
            if not self._service.stopping:
                self._alerts.look(self._service.properties())
        except Exception as error:
            if repr(error) != self._mistake:
                log.exception("What is the case cannot be told")
            self._mistake = repr(error)

    def _asked(self) -> Values:
        self._service.last_asked = time.monotonic()
        return self._values()

    def _values(self) -> Values:
        return values(self._service, self._figures)

    def _complain(self, sentence: str) -> None:
        if sentence != self._complaint:
            log.warning("%s", sentence)
        self._complaint = sentence


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all, for readers; it lies in memory and need not outlast a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # node_exporter reads whatever ends with .prom.
    partial = path.with_name(f".{path.name}.new")
    with open(
        os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "wb"
    ) as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
    partial.rename(path)
