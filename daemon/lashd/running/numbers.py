# SPDX-License-Identifier: Apache-2.0
"""Numbers of jobs: each is given out once, over restarts, crashes and power cuts, and when the history is lost.

They are taken from blocks that are durably marked as given out before the first of them is. A daemon that is killed
leaves the rest of a block out; one that is stopped does not. Where nothing can be written they go on from the number of
seconds since 1970, which nobody reaches by counting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from lashd.words.errors import LashdError
from lashd.words.notes import read_note, write_note

log = logging.getLogger(__name__)

BLOCK = 16


@dataclass(frozen=True, slots=True)
class _Note:
    """`next`: this number and all above it were never given out."""

    next: int


class Numbers:
    """`path` is the note. Until `start`, numbers are those of a daemon that remembers nothing: 1, 2, 3."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 1
        self._reserved = 0  # all below it were marked
        self._fails = False
        self._writing: asyncio.Task[None] | None = None
        self._started = False

    async def start(self, known: int | None) -> None:
        """Begin behind all that were given out. `known`: the highest in the history, None when that is not known."""
        self._started = True
        note = await asyncio.to_thread(read_note, self._path, _Note)
        if note is not None:
            first = note.next
        elif known is None or await asyncio.to_thread(self._path.exists):
            first = int(time.time())
        else:
            first = known + BLOCK if known else 1
        self._next = max(first, (known or 0) + 1, self._next)
        await self._reserve()
        if note is None and self._next > 1 and not self._fails:
            log.warning("Which numbers jobs have had before is not known for sure; they go on with %d", self._next)

    def take(self) -> int:
        """A number that nobody has had."""
        if self._started and self._next >= self._reserved:
            # A later daemon may begin with any number that can be counted up to from the last mark: where none can be
            # made, or is not made yet.
            self._next = max(self._next, int(time.time()))
        number = self._next
        self._next += 1
        if self._started and self._reserved - self._next < BLOCK // 2 and self._writing is None:
            self._writing = asyncio.create_task(self._reserve(), name="numbers of jobs")
        return number

    async def stop(self) -> None:
        """Leave nothing out."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._started:
            await self._mark(self._next)

    async def _reserve(self) -> None:
        await self._mark(self._next + BLOCK)
        self._writing = None

    async def _mark(self, until: int) -> None:
        try:
            await asyncio.to_thread(write_note, self._path, _Note(until))
        except LashdError as error:
            if not self._fails:
                log.warning("Numbers of jobs cannot be marked as given out: %s", error.message)
            self._fails = True
        else:
            self._fails, self._reserved = False, until
