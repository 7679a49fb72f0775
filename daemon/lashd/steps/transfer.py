# SPDX-License-Identifier: Apache-2.0
"""One attempt to copy one image into the store, watched from outside.

skopeo tells nothing while it works. It has a folder for what it downloads to itself, so the sizes of the files in there
are the bytes that have arrived; when all of them have, what is left is unpacking, which needs the CPU and not the line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

from lashd.steps.line import Load
from lashd.things.failures import explain
from lashd.words.errors import ErrorName, LashdError
from lashd.words.run import started

# How often the arriving bytes are looked at, in seconds. It also decides how soon a download slot is given on.
LOOK_SECONDS = 0.05
# Unpacking reads and writes all the time, but one large file on a slow disk may take its time to be written back.
UNPACK_PATIENCE = 5.0


class State(StrEnum):
    """What a transfer is doing: waiting for bytes from the line, or putting them into the store."""

    FETCHING = "fetching"
    UNPACKING = "unpacking"


class Transfer:
    """What `argv` gives copies an image of which `expected` bytes must come; `directory` is its own --tmpdir.

    `received` (bytes, never less than it was) and `state` may be read at any time; `look` is called after each look
    at them. `others_unpack` says whether another transfer is `unpacking`, for whose lock this one then waits.
    """

    def __init__(
        self,
        argv: Callable[[], Sequence[str]],
        directory: Path,
        expected: int,
        *,
        subject: str,
        stall_seconds: float,
        look: Callable[[], None],
        others_unpack: Callable[[], bool],
    ) -> None:
        self.received = 0
        self.state = State.FETCHING
        self._argv = argv
        self._directory = directory
        self._expected = expected
        self._subject = subject
        self._stall_seconds = stall_seconds
        self._look = look
        self._others_unpack = others_unpack
        self._moved: tuple[int, int] = (0, 0)
        self._moved_at = self._excused_at = time.monotonic()

    @property
    def load(self) -> Load:
        """What it is on the line, while it is fetching."""
        return Load(self._expected - self.received)

    @property
    def unpacking(self) -> bool:
        """Whether it is really at work in the store."""
        return self.state is State.UNPACKING and time.monotonic() - self._moved_at <= self._stall_seconds

    async def run(self) -> None:
        """Copy. When this returns or raises, the processes have ended and `directory` is gone.

        Raises what the failure table makes of skopeo's error; Timeout when nothing has moved for too long.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status, stderr = await self._watched()
        except OSError as error:
            raise _cannot_write(self._directory, error) from error
        finally:
            # Gigabytes may go here. The thread goes on to its end even if this task is cancelled once more.
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True))
        if status != 0:
            raise explain("skopeo", status, stderr, self._subject)

    async def _watched(self) -> tuple[int, str]:
        async with started(self._argv(), stdout=asyncio.subprocess.DEVNULL) as process:
            ended = asyncio.create_task(process.communicate())
            try:
                while not (await asyncio.wait({ended}, timeout=LOOK_SECONDS))[0]:
                    self._measure(process.pid)
                    self._look()
                    self._end_when_stalled()
                _, stderr = ended.result()
            finally:
                ended.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await ended
            assert process.returncode is not None
            return process.returncode, stderr.decode(errors="replace")

    def _measure(self, pid: int) -> None:
        self.received = max(self.received, min(_bytes_below(self._directory), self._expected))
        if self._expected and self.received >= self._expected:
            self.state = State.UNPACKING
        moved = (self.received, _traffic(pid) if self.state is State.UNPACKING else 0)
        if moved != self._moved:
            self._moved, self._moved_at = moved, time.monotonic()

    def _end_when_stalled(self) -> None:
        if self._others_unpack() and (not self.received or self.state is State.UNPACKING):
            # It may well wait for the store's lock, which is held while a layer is unpacked.
            self._excused_at = time.monotonic()
        patience = self._stall_seconds * (UNPACK_PATIENCE if self.state is State.UNPACKING else 1)
        if time.monotonic() - max(self._moved_at, self._excused_at) <= patience:
            return
        what = "was unpacked" if self.state is State.UNPACKING else "arrived"
        raise LashdError(
            ErrorName.TIMEOUT, f"The transfer of {self._subject} stalled: nothing {what} for {patience:.0f} seconds."
        )


def _bytes_below(directory: Path) -> int:
    """Sum of the sizes of all files below `directory`, which may be changing or gone."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total += _bytes_below(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _traffic(pid: int) -> int:
    """Bytes that the process has read and written so far, pipes to its own children included; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(value) for name, _, value in (line.partition(": ") for line in lines) if name in ("rchar", "wchar"))


def _cannot_write(directory: Path, error: OSError) -> LashdError:
    return LashdError(
        ErrorName.PULL_FAILED,
        f"The folder {directory} for downloads cannot be used: {error.strerror}.",
        retryable=False,
    )
