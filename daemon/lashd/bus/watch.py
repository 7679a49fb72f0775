# SPDX-License-Identifier: Apache-2.0
"""Following signals, and believing only those of the service that one asked for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from lashd.bus.message import BUS, BUS_PATH, BusError, Match, Message, lost

if TYPE_CHECKING:
    from lashd.bus.library import Connection


class Watch:
    """An async iterator over signals. Ends with BusError Disconnected when the connection is lost.

    Anyone on the bus can send anyone a signal, so a signal counts only when it comes from the owner of `match.sender`.
    A change of that owner is passed on too, as the bus's NameOwnerChanged: the reader learns that the service went.
    """

    def __init__(self, connection: Connection, match: Match) -> None:
        self._connection = connection
        self._match = match
        self._owner = ""
        self._owner_match: Match | None = None
        if match.sender and match.sender != BUS and not match.sender.startswith(":"):
            self._owner_match = Match(BUS, BUS_PATH, "", BUS, "NameOwnerChanged", {0: match.sender})
        self._queue: asyncio.Queue[Message | None] = asyncio.Queue()
        self._lost = asyncio.create_task(self._wait_lost())

    async def open(self) -> None:
        self._connection.listen(self._received)
        try:
            if self._owner_match is not None:
                await self._connection.add_match(self._owner_match)
                with contextlib.suppress(BusError):
                    (self._owner,) = await self._connection.call_bus("GetNameOwner", "s", [self._match.sender])
            await self._connection.add_match(self._match)
        except BaseException:
            self._connection.ignore(self._received)
            self._lost.cancel()
            raise

    async def close(self) -> None:
        self._connection.ignore(self._received)
        self._lost.cancel()
        for match in (self._match, self._owner_match):
            if match is not None and self._connection.connected:
                with contextlib.suppress(BusError):
                    await self._connection.remove_match(match)

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Message:
        message = await self._queue.get()
        if message is None:
            self._queue.put_nowait(None)
            raise lost()
        return message

    def _received(self, message: Message) -> None:
        if self._owner_match is not None:
            if self._owner_match.accepts(message):
                self._owner = message.body[2]
                self._queue.put_nowait(message)
                return
            if message.sender != self._owner:
                return
        if self._match.accepts(message):
            self._queue.put_nowait(message)

    async def _wait_lost(self) -> None:
        await self._connection.lost()
        self._queue.put_nowait(None)
