# SPDX-License-Identifier: Apache-2.0
"""A process of another user that calls methods on a bus, one line of JSON for each call, and lives on between them.

As a program: `caller.py ADDRESS` reads {"id", "path", "interface", "member", "signature", "body", "interactive"} and
writes {"id", "answer"} or {"id", "error", "message"}. In a body, ["variant", SIGNATURE, VALUE] stands for a variant.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.support.users import as_user

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "io.github.lashd1"
ROOT = "/io/github/lashd1"


class Caller:
    """The process from outside."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())
        self.pid = process.pid
        self.name = name  # its unique name on the bus

    async def call(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        path: str = ROOT,
        interface: str = f"{NAME}.Manager",
        interactive: bool = False,
    ) -> str:
        """How it went: the last part of the error's name, or nothing. `said` has the sentence, `answer` the values."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        asked = {"id": number, "path": path, "interface": interface, "member": member}
        asked |= {"signature": signature, "body": body, "interactive": interactive}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        told = await asyncio.wait_for(self._waiting[number], 40)
        self.said, self.answer = told.get("message", ""), told.get("answer", [])
        return str(told.get("error", "")).rpartition(".")[2]

    async def leave(self) -> None:
        """End the process, whatever it waits for."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            self._waiting.pop(told["id"]).set_result(told)


@contextlib.asynccontextmanager
async def caller(address: str, uid: int) -> AsyncIterator[Caller]:
    """A caller that runs as `uid` on the bus at `address`."""
    process = await asyncio.create_subprocess_exec(
        *(as_user(uid) if uid else ()),
        *(sys.executable, "-m", "tests.support.caller", address),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": f"{REPOSITORY}/daemon:{REPOSITORY}", "PATH": "/usr/bin:/bin"},
        cwd=REPOSITORY,
        limit=1 << 20,
    )
    assert process.stdout is not None
    name = json.loads(await process.stdout.readline())
    made = Caller(process, name)
    try:
        yield made
    finally:
        await made.leave()


async def _serve(address: str) -> None:
    from lashd.bus import library

    def unwrap(value: Any) -> Any:
        if isinstance(value, list) and value[:1] == ["variant"]:
            return library.Variant(value[1], value[2])
        if isinstance(value, dict):
            return {key: unwrap(item) for key, item in value.items()}
        return value

    def tell(what: Any) -> None:
        print(json.dumps(what), flush=True)

    async def serve(asked: dict[str, Any]) -> None:
        body = [unwrap(value) for value in asked["body"]]
        try:
            answer = await bus.call(
                *(NAME, asked["path"], asked["interface"], asked["member"], asked["signature"], body),
                timeout=None,
                interactive=asked["interactive"],
            )
        except library.BusError as error:
            tell({"id": asked["id"], "error": error.name, "message": error.message})
        else:
            tell({"id": asked["id"], "answer": answer})

    bus = await library.connect(address)
    tell(bus.name)
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = set()
    while line := await reader.readline():
        tasks.add(asyncio.create_task(serve(json.loads(line))))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
