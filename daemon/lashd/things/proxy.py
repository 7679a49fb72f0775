# SPDX-License-Identifier: Apache-2.0
"""skopeo's image proxy: manifest, configuration and layers of an image one by one, streamed, digests checked.

The protocol (0.2.x) is JSON over a SOCK_SEQPACKET socket; content comes through pipes whose ends are passed along. One
skopeo serves one blob at a time, because it ends a blob's pipe only in a call that waits for the blob: so whoever asks
for several at once gets a skopeo for each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from lashd.things.policy import require_no_signature
from lashd.things.proxy_connection import Connection, Pipe
from lashd.things.registry import policy_file
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import PullOptions

# Since this version of the protocol it is skopeo that applies policy.json.
_CHECKS_POLICY = (0, 2, 6)
_MANIFEST_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Image:
    """An opened image; `name` is TRANSPORT:REFERENCE."""

    name: str


class ImageProxy:
    """Images on demand: an asynchronous context manager. All errors are LashdErrors from the failure table."""

    def __init__(self, settings: Settings, options: PullOptions | None = None) -> None:
        self._settings = settings
        self._options = options or PullOptions()
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    async def __aenter__(self) -> Self:
        async with self._connection("The host image"):
            return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in list(self._all):
            await self._drop(connection)

    async def open(self, name: str) -> Image:
        """Open `docker://…`, or another of skopeo's transports. Raises also SignatureRejected."""
        async with self._connection(name) as connection:
            await self._open(connection, name)
        return Image(name)

    async def manifest(self, image: Image) -> tuple[str, bytes]:
        """(digest of the platform's manifest as the registry has it, its text converted to OCI where it was not)."""
        async with self._connection(image.name) as connection:
            pipe = await connection.fetch("GetManifest", await self._open(connection, image.name))
            return str(pipe.value), await self._content(connection, pipe)

    async def config(self, image: Image) -> bytes:
        """The whole image configuration, converted to OCI where it was not."""
        async with self._connection(image.name) as connection:
            pipe = await connection.fetch("GetFullConfig", await self._open(connection, image.name))
            return await self._content(connection, pipe)

    @contextlib.asynccontextmanager
    async def blob(self, image: Image, digest: str, size: int) -> AsyncIterator[int]:
        """A blocking pipe from which the `size` bytes of the blob can be read, here or in a child. It stays ours.

        What was read counts only when the block has been left without an error: only then has the digest been checked.
        An early end of the pipe is no news either; why it ended is raised when the block is left, in place of whatever
        exception the end caused. Leaving with an exception ends the transfer. How long no byte may come is for the
        reader to decide.
        """
        async with self._connection(f"{digest} of {image.name}") as connection:
            pipe = await connection.fetch("GetBlob", await self._open(connection, image.name), digest, size)
            finish = asyncio.create_task(connection.finish(pipe))
            try:
                yield pipe.descriptor
                # A reader may stop before the last bytes, such as the padding of an archive; the digest needs them.
                await self._rest(pipe)
                await finish
            except Exception as error:
                pipe.close()
                cause = await self._cause(connection, finish)
                if cause is not None and cause is not error:
                    raise cause from error
                raise
            finally:
                pipe.close()
                if not finish.done():
                    finish.cancel()
                    connection.broken = True
                    with contextlib.suppress(asyncio.CancelledError, LashdError):
                        await finish

    # Connections

    @contextlib.asynccontextmanager
    async def _connection(self, subject: str) -> AsyncIterator[Connection]:
        """An idle skopeo, or a new one, for the time of the block."""
        connection = self._idle.pop() if self._idle else await self._start(subject)
        connection.subject = subject
        try:
            yield connection
        finally:
            if connection.broken:
                await self._drop(connection)
            else:
                self._idle.append(connection)

    async def _start(self, subject: str) -> Connection:
        connection = Connection(self._settings, self._options, subject)
        self._all.add(connection)
        try:
            await connection.start()
        except BaseException:
            await self._drop(connection)
            raise
        return connection

    async def _drop(self, connection: Connection) -> None:
        self._all.discard(connection)
        await connection.close()

    async def _open(self, connection: Connection, name: str) -> int:
        """The connection's own number for the image."""
        if name not in connection.images:
            if connection.version < _CHECKS_POLICY:
                require_no_signature(policy_file(self._settings), name)
            number, _ = await connection.call("OpenImage", name)
            if not isinstance(number, int):
                raise LashdError(ErrorName.PULL_FAILED, f"skopeo gave no handle for {name}: {number!r}.")
            connection.images[name] = number
        return connection.images[name]

    # Pipes

    async def _content(self, connection: Connection, pipe: Pipe) -> bytes:
        """All that comes through a pipe of manifest size."""
        finish = asyncio.create_task(connection.finish(pipe))
        try:
            content = bytearray()
            async for data in pipe.read(self._settings.pull.stall_seconds):
                content += data
                if len(content) > _MANIFEST_LIMIT:
                    connection.broken = True
                    raise LashdError(
                        ErrorName.PULL_FAILED,
                        f"The manifest or configuration of {connection.subject} is larger than any real one.",
                        retryable=False,
                    )
            await finish
            return bytes(content)
        finally:
            pipe.close()
            finish.cancel()
            with contextlib.suppress(asyncio.CancelledError, LashdError):
                await finish

    async def _rest(self, pipe: Pipe) -> None:
        async for _ in pipe.read(self._settings.pull.stall_seconds):
            pass

    async def _cause(self, connection: Connection, finish: asyncio.Task[None]) -> LashdError | None:
        """What skopeo has to say about a transfer that failed; None when it only minds that nobody reads any more."""
        # While the line stalls, skopeo does not even notice that.
        done, _ = await asyncio.wait({finish}, timeout=1.0)
        if not done:
            return None
        failure = finish.exception()
        if isinstance(failure, LashdError) and not connection.unread:
            return failure
        return None
