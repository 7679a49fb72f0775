# SPDX-License-Identifier: Apache-2.0
"""A polkit authentication agent, as a desktop has one: it is shown what a person reads, and answers or does not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUTHORITY = (
    "org.freedesktop.PolicyKit1",
    "/org/freedesktop/PolicyKit1/Authority",
    "org.freedesktop.PolicyKit1.Authority",
)
OBJECT = "/org/freedesktop/PolicyKit1/AuthenticationAgent"


@dataclass(frozen=True)
class Prompt:
    """What polkit asks the agent to show. `call` is the message that waits for the answer."""

    action: str
    message: str
    details: dict[str, str]
    cookie: str
    identities: list[Any]
    call: Any


class Agent:
    """Shows prompts in `shown` and takes them back into `cancelled`; a person answers by `give` or `dismiss`."""

    def __init__(self, library: Any, connection: Any) -> None:
        self._library = library
        self._connection = connection
        self._prompts: asyncio.Queue[Prompt] = asyncio.Queue()
        self.shown: list[Prompt] = []
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        connection.serve(self._called)

    async def look_after(self, pid: int) -> None:
        """Be the agent of process `pid`."""
        start = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        uid = Path(f"/proc/{pid}").stat().st_uid
        variant = self._library.Variant
        process = {"pid": variant("u", pid), "start-time": variant("t", start), "uid": variant("i", uid)}
        body = [["unix-process", process], "C", OBJECT]
        await self._connection.call(*AUTHORITY, "RegisterAuthenticationAgent", "(sa{sv})ss", body)

    async def prompt(self) -> Prompt:
        """The next one that is shown."""
        return await asyncio.wait_for(self._prompts.get(), 10)

    async def give(self, prompt: Prompt) -> None:
        """The password is typed, and it is right."""
        kind, who = prompt.identities[0]
        identity = [kind, {"uid": self._library.Variant("u", who["uid"])}]
        body = [0, prompt.cookie, identity]
        await self._connection.call(*AUTHORITY, "AuthenticationAgentResponse2", "us(sa{sv})", body)
        self._connection.reply(prompt.call, "", [])

    def dismiss(self, prompt: Prompt) -> None:
        self._connection.refuse(prompt.call, "org.freedesktop.PolicyKit1.Error.Cancelled", "Dismissed.")

    def _called(self, message: Any) -> None:
        if message.member == "BeginAuthentication":
            action, text, _icon, details, cookie, identities = self._library.plain(list(message.body))
            prompt = Prompt(action, text, details, cookie, identities, message)
            self.shown.append(prompt)
            self._prompts.put_nowait(prompt)
        else:
            self.cancelled.put_nowait(message.body[0])
            self._connection.reply(message, "", [])


@contextlib.asynccontextmanager
async def agent(library: Any, address: str) -> AsyncIterator[Agent]:
    """An agent on the bus at `address`. It is root, so that it can say that a password was right."""
    connection = await library.connect(address)
    try:
        yield Agent(library, connection)
    finally:
        await connection.disconnect()
