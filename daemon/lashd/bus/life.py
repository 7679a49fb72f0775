# SPDX-License-Identifier: Apache-2.0
"""How long the daemon lives: what ends it, what tells systemd that it is alive, and how it goes when it is not needed.

All of it is quiet where there is no systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from lashd.bus.journal import notify, notify_address
from lashd.words.errors import LashdError
from lashd.words.events import MessageId, fields

if TYPE_CHECKING:
    from lashd.bus.dispatch import Dispatcher
    from lashd.bus.library import Connection, Message
    from lashd.words.config import Settings

log = logging.getLogger(__name__)

# Between two looks at whether anything is left to do (seconds), and while new settings wait for the end of a job.
LOOK_SECONDS = 15.0
WAIT_SECONDS = 0.5
# How long systemd may take to hear what it was told.
_BARRIER_SECONDS = 5.0


class End(Enum):
    """Why the daemon ends."""

    TOLD = auto()
    LOST = auto()  # the bus
    RESTING = auto()  # nobody needs it, and it is started again when somebody does
    ANEW = auto()  # with other settings, as the same process


class Living(Protocol):
    """What is asked of the service. `tell_settings` gets a sentence, empty when the files could be read."""

    def tell_settings(self, problem: str) -> None: ...
    def working(self) -> bool: ...
    def at_rest(self) -> bool: ...
    @property
    def last_asked(self) -> float: ...  # when, beside the bus, on the clock that never jumps


async def beat() -> None:
    """Tell systemd again and again that the loop turns, as often as it wants to hear it; returns when it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    # It may be meant for another process, whose child we are.
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(microseconds) / 1e6 / 4)


class Reload:
    """SIGHUP. `read` gives the settings, or raises LashdError; `current` are those in force.

    Nothing is changed in a running service: when the new settings are others, it is ended as soon as no job runs, and
    the same process begins anew. What cannot be read changes nothing, and the service tells it.
    """

    current: Settings

    def __init__(self, read: Callable[[], Settings]) -> None:
        self._read = read
        self._problem = ""
        self._asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        # Blocked by a process that has just begun anew, so that none gets lost.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    def begin(self, *, or_default: bool) -> str:
        """Read them for the first time; answers why those that lashd comes with are in force, if they are.

        That is with `or_default` only: else raises LashdError.
        """
        try:
            self.current = self._read()
        except LashdError as error:
            if not or_default:
                raise
            from lashd.words.config import without_files

            self.current = without_files()
            self._problem = f"{error.message} The settings that lashd comes with are used instead."
        return self._problem

    async def due(self, service: Living, close: Callable[[], None] = lambda: None) -> None:
        """Returns when it is time to begin anew; `close` lets nothing begin from that very moment on."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            wanted = self._look(service)
            while wanted and not self._asked.is_set():
                if not service.working():
                    close()
                    return
                await asyncio.sleep(WAIT_SECONDS)

    def _look(self, service: Living) -> bool:
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        wanted, said = False, "The settings have not changed."
        try:
            wanted = self._read() != self.current
        except LashdError as error:
            said = self._problem = f"{error.message} The settings from before stay in force."
            log.error("%s", said, extra=fields(MessageId.SETTINGS_BROKEN, error=error.name))
        else:
            if wanted and service.working():
                said = "The settings have changed; they are in force as soon as no job is running."
            elif wanted:
                said = "The settings have changed."
            self._problem = ""
            log.info("%s", said)
        service.tell_settings(self._problem)
        notify("READY=1", f"STATUS={' '.join(said.split())}")
        return wanted


def about_to_begin_anew() -> None:
    """From now on SIGHUP waits for what this process becomes."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


class Rest:
    """When the daemon is not needed any more: for `seconds` nothing to do, and nobody there who ever asked it anything.

    `arm` has the daemon started when what it watches changes, and says whether that worked.
    """

    def __init__(self, service: Living, dispatcher: Dispatcher, seconds: float, arm: Callable[[], Awaitable[bool]]):
        self._service = service
        self._dispatcher = dispatcher
        self._seconds = seconds
        self._arm = arm

    def quiet(self) -> bool:
        """Whoever has asked something and is still on the bus may follow what is told."""
        return not self._dispatcher.callers and not self._dispatcher.in_progress and self._service.at_rest()

    async def due(self) -> None:
        """Returns when it is time to go, and nothing begins from then on; never when `seconds` is 0."""
        while not self._seconds:
            await asyncio.Event().wait()
        since = time.monotonic()
        while True:
            await asyncio.sleep(min(self._seconds / 4, LOOK_SECONDS))
            since = max(since, self._dispatcher.last_call, self._service.last_asked)
            if not self.quiet():
                since = time.monotonic()
            elif time.monotonic() - since >= self._seconds:
                if await self._arm() and self.quiet():
                    self._dispatcher.stopping()
                    return
                since = time.monotonic()


async def leave(connection: Connection, dispatcher: Dispatcher, name: str) -> None:
    """Give up `name` so that no call is lost: systemd hears first that we go, and so whoever calls next starts us anew.

    What arrives between the two is kept, and answered when all of it is there.
    """
    kept: list[Message] = []
    connection.serve(kept.append)
    await asyncio.to_thread(_told, "STOPPING=1", "STATUS=There is nothing to do.")
    await connection.release_name(name)
    for message in kept:
        dispatcher.last_words(message)


def _told(*assignments: str) -> None:
    """Tell systemd, and return when it has heard it."""
    notify(*assignments)
    address = notify_address()
    if not address:
        return
    reading, writing = os.pipe()
    try:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with made as sender, contextlib.suppress(OSError):
            sender.connect(address)  # Python 3.11 sends descriptors to no other address
            socket.send_fds(sender, [b"BARRIER=1"], [writing])
        os.close(writing)
        writing = -1
        _closed(reading)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _closed(reading: int) -> None:
    import select

    poll = select.poll()
    poll.register(reading, 0)  # only that nobody has the other end any more
    poll.poll(_BARRIER_SECONDS * 1000)
