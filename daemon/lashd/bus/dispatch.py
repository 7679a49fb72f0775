# SPDX-License-Identifier: Apache-2.0
"""From a message to its handler and back. Runs unchanged on both D-Bus libraries.

What a caller does wrong gets D-Bus's own errors; what we do wrong is logged here and is `Internal` on the bus. Handlers
that take time run as tasks, of which every caller and every user may have only so many.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

from lashd.bus.library import BusError, Connection, Message
from lashd.bus.refusal import Refusal, explain
from lashd.bus.standard import INTERFACES as STANDARD_INTERFACES
from lashd.bus.standard import Standard
from lashd.bus.tree import Call, Handler, Tree

log = logging.getLogger(__name__)

# Calls that may be in progress at once: of one connection, of one user who is not root, and of everyone together.
PER_SENDER = 16
PER_USER = 64
ALL = 1024


class Dispatcher:
    """Serves `tree` on `connection`. `uid_of` gives the user behind a unique name, or raises BusError."""

    def __init__(self, connection: Connection, tree: Tree, uid_of: Callable[[str], Awaitable[int]]) -> None:
        self._connection = connection
        self._tree = tree
        self._standard = Standard(tree)
        self._uid_of = uid_of
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._by_sender: Counter[str] = Counter()
        self._by_user: Counter[int] = Counter()
        # Called when lashd is about to end, before its jobs are ended: nothing new may begin from then on.
        self.stopping: Callable[[], None] = lambda: None
        self.callers: set[str] = set()  # who has ever called and is still on the bus
        self.last_call = 0.0  # when, on the clock that never jumps

    def start(self) -> None:
        self._connection.serve(self.handle)

    def last_words(self, message: Message) -> None:
        """Answer what can be answered at once, although we are about to go; the rest is refused. Never raises."""
        try:
            handler, _ = self._find(message)
        except Exception:
            self.handle(message)  # which says what is wrong with it
            return
        if inspect.iscoroutinefunction(handler):
            self._refuse(message)
        else:
            self.handle(message)

    def _refuse(self, message: Message) -> None:
        self._connection.refuse(
            message, "org.freedesktop.DBus.Error.Disconnected", "lashd is being stopped; ask again in a moment."
        )

    async def stop(self) -> None:
        """End what is in progress; later calls are refused."""
        self._connection.serve(self._refuse)
        tasks = list(self._tasks)
        if not tasks:
            return
        # Who waits for a job that has just ended still gets its answer.
        _done, late = await asyncio.wait(tasks, timeout=0.2)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def sender_gone(self, sender: str) -> None:
        """Nobody waits for these answers any more, and what was not yet authorised must not happen."""
        self.callers.discard(sender)
        for task, owner in self._tasks.items():
            if owner == sender:
                task.cancel()

    @property
    def in_progress(self) -> int:
        return len(self._tasks)

    def handle(self, message: Message) -> None:
        """Answer one call, now or later. Never raises."""
        self.callers.add(message.sender)
        self.last_call = time.monotonic()
        try:
            handler, returns = self._find(message)
            if inspect.iscoroutinefunction(handler):
                self._begin(handler, returns, message)
            else:
                self._connection.reply(message, returns, cast("list[Any]", handler(Call(message))))
        except Exception as error:
            self._connection.refuse(message, *explain(error, message))

    def _find(self, message: Message) -> tuple[Handler, str]:
        """The handler and the signature of its reply. Raises Refusal."""
        path = message.path
        if path not in self._tree and not self._tree.children(path):
            self._tree.look_again()
            if path not in self._tree and message.interface != "org.freedesktop.DBus.Peer":
                raise Refusal("UnknownObject", f"There is no object {path}; it may have gone.")
        exports = self._tree.exports(path)
        candidates = {name: (export.methods, export.interface) for name, export in exports.items()} | {
            name: (self._standard.members(name), STANDARD_INTERFACES[name]) for name in self._standard.interfaces(path)
        }
        if message.interface:
            if message.interface not in candidates:
                raise Refusal("UnknownInterface", f"The object {path} has no interface '{message.interface}'.")
            candidates = {message.interface: candidates[message.interface]}
        for name, (methods, interface) in candidates.items():
            handler = methods.get(message.member)
            if handler is None:
                continue
            method = interface.methods[message.member]
            if method.takes != message.signature:
                raise Refusal(
                    "InvalidArgs",
                    f"{name}.{message.member} takes arguments of type '{method.takes}', not '{message.signature}'.",
                )
            return handler, method.returns
        where = message.interface or path
        raise Refusal("UnknownMethod", f"There is no method '{message.member}' in {where}.")

    # -- what takes time --------------------------------------------------------------------------------------------

    def _begin(self, handler: Handler, returns: str, message: Message) -> None:
        if self._by_sender[message.sender] >= PER_SENDER or len(self._tasks) >= ALL:
            raise _too_many()
        task = asyncio.create_task(self._run(handler, returns, message), name=f"{message.member} of {message.sender}")
        self._tasks[task] = message.sender
        self._by_sender[message.sender] += 1
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        sender = self._tasks.pop(task)
        self._by_sender[sender] -= 1
        if not self._by_sender[sender]:
            del self._by_sender[sender]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A call was not answered", exc_info=error)

    async def _run(self, handler: Handler, returns: str, message: Message) -> None:
        try:
            uid = await self._uid_of(message.sender)
        except BusError:
            return  # the caller has gone, so nobody knows on whose behalf this would happen
        try:
            answer = await self._for_user(uid, handler, Call(message, uid))
            self._connection.reply(message, returns, answer)
        except Exception as error:
            self._connection.refuse(message, *explain(error, message))

    async def _for_user(self, uid: int, handler: Handler, call: Call) -> list[Any]:
        if uid != 0 and self._by_user[uid] >= PER_USER:
            raise _too_many()
        self._by_user[uid] += 1
        try:
            return await cast("Awaitable[list[Any]]", handler(call))
        finally:
            self._by_user[uid] -= 1
            if not self._by_user[uid]:
                del self._by_user[uid]


def _too_many() -> Refusal:
    return Refusal("LimitsExceeded", "You have too many calls in progress; wait until some have been answered.")
