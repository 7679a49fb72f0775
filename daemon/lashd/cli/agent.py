# SPDX-License-Identifier: Apache-2.0
"""Somebody who can be asked for a password on a terminal: polkit's own agent, while lashctl asks for something.

A desktop has an agent, and that one is asked then. A text console and a session over ssh have none.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from subprocess import DEVNULL

PROGRAM = "pkttyagent"
# It registers with polkit, which may have to be started first (seconds).
START_SECONDS = 5.0


@asynccontextmanager
async def agent() -> AsyncIterator[None]:
    """An agent for this process, on its terminal. Does nothing for root, nor where polkit has no such program."""
    process = await _start() if os.geteuid() != 0 and shutil.which(PROGRAM) else None
    try:
        yield
    finally:
        if process is not None:
            await _end(process)


async def _start() -> Process | None:
    """The agent, registered, or as far as it got in the time it has."""
    registered, at_work = os.pipe()
    with open(registered, "rb", buffering=0) as reading:
        try:
            # It speaks with the person on /dev/tty. What else it says is about itself, and lashd says what came of it.
            process = await asyncio.create_subprocess_exec(
                *(PROGRAM, "--fallback", "--process", str(os.getpid()), "--notify-fd", str(at_work)),
                pass_fds=(at_work,),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
            )
        except OSError:
            return None
        finally:
            os.close(at_work)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(START_SECONDS):
                    await _closed(reading.fileno())
        except BaseException:
            await _end(process)
            raise
        return process


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    await process.wait()


async def _closed(descriptor: int) -> None:
    """Returns when the other end of the pipe `descriptor` is closed."""
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()
    loop.add_reader(descriptor, closed.set)
    try:
        await closed.wait()
    finally:
        loop.remove_reader(descriptor)
