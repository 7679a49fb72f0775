# SPDX-License-Identifier: Apache-2.0
"""Show a job while it runs: live bars on a terminal, lines in a log, nothing for --json."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lashd.cli import screen
from lashd.cli.job import Job
from lashd.cli.render import progress, words

if TYPE_CHECKING:
    from rich.console import RenderableType


class Silent:
    """For --json: only the end is told. Also the base of the others, which say more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""

    def show(self, job: Job) -> None:
        """The job has changed."""

    def notice(self, text: str) -> None:
        """Something happened to lashd itself; an empty text takes the last notice back."""


class Lines(Silent):
    """One line for each stage, each finished image and each retry; no control codes."""

    def __init__(self) -> None:
        self._before: Job | None = None

    def show(self, job: Job) -> None:
        if self._before is None:
            self._say(job.title)
        for line in progress.news(self._before, job):
            self._say(line)
        self._before = job

    def notice(self, text: str) -> None:
        if text:
            self._say(text)

    def _say(self, line: str) -> None:
        print(words.clean(line), flush=True)


class Bars(Silent):
    """Live bars; a finished image leaves a line above them, everything else is gone at the end."""

    def __init__(self) -> None:
        from rich.live import Live

        self._console = screen.console()
        self._speed = progress.Speed()
        self._job: Job | None = None
        self._notice = ""
        # rich draws by itself, so that the clock goes on when nothing comes; four times a second are enough.
        self._live = Live(
            console=self._console,
            get_renderable=self._view,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._job = None
        self._live.__exit__(kind, error, trace)

    def show(self, job: Job) -> None:
        news = progress.item_news(self._job, job)
        # What is printed draws the bars below it anew, and they must not be those of before.
        self._job = job
        for line in news:
            self._console.print(line.removeprefix("  "), style=_style(line), soft_wrap=True)

    def notice(self, text: str) -> None:
        self._notice = text

    def _view(self) -> RenderableType:
        if self._job is None:
            return self._notice
        now = time.time()
        return progress.view(
            self._job,
            rows=max(4, self._console.height - 2),
            now=now,
            speed=self._speed.at(time.monotonic(), self._job.bytes_done),
            notice=self._notice,
            plain=screen.plain(sys.stdout),
        )


def _style(line: str) -> str:
    kinds = {"done": "green", "failed": "red", "trying again": "yellow"}
    return kinds.get(line.strip().partition(":")[0], "")


def presenter(*, json: bool) -> Silent:
    if json:
        return Silent()
    return Bars() if screen.lively(sys.stdout) else Lines()
