# SPDX-License-Identifier: Apache-2.0
"""Cockpit's bridge as a process, spoken to over its standard input and output as cockpit-ws does.

A frame is the length of the rest in decimal, a newline, the channel's name (empty: control), a newline, and JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import Any

CHANNEL = "bus"


class BridgeError(Exception):
    """An error that came back over D-Bus: its name and its sentence."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        self.message = message
        super().__init__(f"{name}: {message}")


class Bridge:
    """A dbus-json3 channel to the service `name` on the system bus."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self._calls = 0

    async def open(self) -> None:
        control, hello = await self._receive()
        assert (control, hello["command"]) == ("", "init"), hello
        self._send("", {"command": "init", "version": 1, "host": "localhost"})
        self._send(
            "", {"command": "open", "channel": CHANNEL, "payload": "dbus-json3", "bus": "system", "name": self._name}
        )

    async def call(self, path: str, interface: str, member: str, signature: str, arguments: Sequence[Any]) -> Any:
        """The values of the reply; variants are {"t": type, "v": value}. Raises BridgeError."""
        self._calls += 1
        number = str(self._calls)
        call = [path, interface, member, list(arguments)]
        self._send(CHANNEL, {"call": call, "type": signature, "id": number})
        while True:
            channel, message = await self._receive()
            if channel == "" and message.get("command") == "close":
                raise ConnectionError(f"the bridge closed the channel: {message}")
            if channel == CHANNEL and message.get("id") == number:
                break
        if "error" in message:
            name, values = message["error"]
            raise BridgeError(name, values[0] if values else "")
        return message["reply"][0]

    def _send(self, channel: str, message: dict[str, Any]) -> None:
        content = f"{channel}\n{json.dumps(message)}".encode()
        assert self._process.stdin is not None
        self._process.stdin.write(f"{len(content)}\n".encode() + content)

    async def _receive(self) -> tuple[str, Any]:
        assert self._process.stdout is not None
        length = int(await asyncio.wait_for(self._process.stdout.readuntil(b"\n"), 30))
        channel, _, text = (await self._process.stdout.readexactly(length)).decode().partition("\n")
        return channel, json.loads(text)


@contextlib.asynccontextmanager
async def bridge(address: str, name: str) -> AsyncIterator[Bridge]:
    """Cockpit's bridge, with the bus at `address` for the system's and a channel to the service `name`."""
    with tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            "cockpit-bridge",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            limit=1 << 24,
            env={
                **{key: os.environ[key] for key in ("PATH", "LC_ALL") if key in os.environ},
                "HOME": home,
                "XDG_RUNTIME_DIR": home,
                "DBUS_SESSION_BUS_ADDRESS": address,
                "DBUS_SYSTEM_BUS_ADDRESS": address,
            },
        )
        try:
            opened = Bridge(process, name)
            await opened.open()
            yield opened
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
            await process.communicate()
