# SPDX-License-Identifier: Apache-2.0
"""One running `skopeo experimental-image-proxy`: calls, answers, and the pipes that come with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lashd.things.failures import explain
from lashd.things.registry import proxy_argv
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import PullOptions
from lashd.words.run import started

_PACKET = 64 * 1024
_CHUNK = 64 * 1024
_DEATH_SECONDS = 1.0


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore")

    success: bool
    value: Any = None
    pipeid: int = 0
    error: str = ""
    error_code: str = ""  # since 0.2.8


class Pipe:
    """The read end of a pipe on which content comes, and the number by which skopeo knows it."""

    def __init__(self, value: Any, descriptor: int, number: int) -> None:
        self.value = value
        self.descriptor = descriptor
        self.number = number
        # Go leaves pipes in either mode; a child that reads this one wants it to block.
        os.set_blocking(descriptor, True)

    async def read(self, stall_seconds: float) -> AsyncIterator[bytes]:
        """What is left in the pipe, to its end. Raises Timeout when nothing comes for so long."""
        os.set_blocking(self.descriptor, False)
        while True:
            try:
                data = os.read(self.descriptor, _CHUNK)
            except BlockingIOError:
                try:
                    async with asyncio.timeout(stall_seconds):
                        await _readable(self.descriptor)
                except TimeoutError as error:
                    raise LashdError(
                        ErrorName.TIMEOUT, f"The registry sent nothing more for {stall_seconds:.0f} seconds."
                    ) from error
                continue
            if not data:
                return
            yield data

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Connection:
    """One skopeo. `broken`: no more calls, because an answer is outstanding or it has died."""

    def __init__(self, settings: Settings, options: PullOptions, subject: str) -> None:
        self.subject = subject
        self.broken = False
        self.unread = False  # the last failure was only that we had stopped to read
        self.version: tuple[int, ...] = ()
        self.images: dict[str, int] = {}
        self._settings = settings
        self._options = options
        self._lock = asyncio.Lock()
        self._stack = contextlib.AsyncExitStack()
        self._socket: socket.socket | None = None

    async def start(self) -> None:
        """Start skopeo and agree on the protocol. Raises UnsupportedHost for one that is too old or too new."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._stack.callback(ours.close)
            ours.setblocking(False)
            self._socket = ours
            # A file, because nobody reads it unless something has failed.
            stderr = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            self._stderr = stderr.fileno()
            self._process = await self._stack.enter_async_context(
                started(
                    proxy_argv(self._options, self._settings, sockfd=theirs.fileno()),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=self._stderr,
                    pass_fds=[theirs.fileno()],
                )
            )
        version, _ = await self.call("Initialize")
        try:
            self.version = tuple(int(part) for part in str(version).split("."))
        except ValueError:
            self.version = ()
        if self.version[:2] != (0, 2) or self.version < (0, 2, 3):
            raise LashdError(
                ErrorName.UNSUPPORTED_HOST,
                f"This host's skopeo speaks version {version} of the image proxy's protocol, and 0.2.3 or a later 0.2 "
                "is needed; install skopeo 1.9 or newer.",
            )

    async def close(self) -> None:
        self.broken = True
        await self._stack.aclose()

    async def call(self, method: str, *arguments: object) -> tuple[Any, Pipe | None]:
        """(value, pipe or None) of one call that should be answered soon. Raises LashdError."""
        limit = self._settings.pull.stall_seconds
        try:
            async with asyncio.timeout(limit):
                return await self._call(method, *arguments)
        except TimeoutError as error:
            raise LashdError(
                ErrorName.TIMEOUT,
                f"{self.subject} could not be fetched: the registry did not answer for {limit:.0f} seconds.",
            ) from error

    async def fetch(self, method: str, *arguments: object) -> Pipe:
        """A call whose answer is a pipe."""
        _, pipe = await self.call(method, *arguments)
        if pipe is None:
            self.broken = True
            raise LashdError(ErrorName.PULL_FAILED, f"skopeo gave no pipe for {self.subject}.")
        return pipe

    async def finish(self, pipe: Pipe) -> None:
        """Wait until all that goes into `pipe` is in it, and end it. Raises why it was not all, or not right."""
        await self._call("FinishPipe", pipe.number)

    async def _call(self, method: str, *arguments: object) -> tuple[Any, Pipe | None]:
        async with self._lock:
            if self.broken or self._socket is None:
                raise LashdError(ErrorName.PULL_FAILED, f"The transfer of {self.subject} was broken off.")
            # Until the answer is here: whatever interrupts us leaves one that nobody waits for.
            self.broken = True
            loop = asyncio.get_running_loop()
            try:
                await loop.sock_sendall(self._socket, json.dumps({"method": method, "args": arguments}).encode())
                packet, descriptors = await self._receive(self._socket)
            except OSError as error:
                raise await self._died() from error
            if not packet:
                raise await self._died()
            self.broken = False
        try:
            reply = _Reply.model_validate_json(packet)
        except ValidationError as error:
            _close_all(descriptors)
            self.broken = True
            raise LashdError(ErrorName.PULL_FAILED, f"skopeo's answer about {self.subject} makes no sense.") from error
        if not reply.success:
            _close_all(descriptors)
            self.unread = reply.error_code == "EPIPE" or "broken pipe" in reply.error
            raise explain("skopeo", 1, " ".join(reply.error.split()), self.subject)
        _close_all(descriptors[1:])
        pipe = Pipe(reply.value, descriptors[0], reply.pipeid) if descriptors else None
        return reply.value, pipe

    async def _receive(self, connection: socket.socket) -> tuple[bytes, list[int]]:
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(connection, _PACKET, 4, socket.MSG_CMSG_CLOEXEC)
                return packet, list(descriptors)
            except BlockingIOError:
                await _readable(connection.fileno())

    async def _died(self) -> LashdError:
        status = 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_SECONDS):
                status = await self._process.wait()
        size = os.fstat(self._stderr).st_size
        said = os.pread(self._stderr, _PACKET, max(0, size - _PACKET)).decode(errors="replace")
        return explain("skopeo", status, said, self.subject)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


async def _readable(descriptor: int) -> None:
    """Wait until `descriptor` can be read, or has ended."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
