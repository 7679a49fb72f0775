# SPDX-License-Identifier: Apache-2.0
"""Runs the worker: one process for each command, in a mount namespace in which the sysroot is writable."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lashd
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.run import STDERR_LIMIT, started, writable

# How long the worker waits for another program's lock on the sysroot.
LOCK_SECONDS = 30.0
SHUTDOWN_LOCK_SECONDS = 10.0
# Checking out and removing deployments on slow storage takes minutes.
_COMMAND_SECONDS = 1800.0


def require_root() -> None:
    if os.geteuid() != 0:
        raise LashdError(ErrorName.NOT_AUTHORIZED, "Only root can change this host; lashd has to run as root.")


# libostree freezes the filesystem of /boot for a moment while it writes boot entries. A worker that is killed just then
# leaves it frozen, and with it a host whose /boot is on the root filesystem. So these run as units of their own, where
# neither the end of lashd nor that of the job's processes reaches them. A reboot must not end them either, it could not
# unmount what is frozen: systemd wakes them instead of terminating them, and waits for their end as for any service.
_UNSTOPPABLE = ("set-first", "remove")
_UNIT = (
    *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec"),
    "--property=KillSignal=SIGCONT",
)


class Worker:
    """`shutting_down`: units cannot be started any more, and there is no time to wait for others."""

    def __init__(self, settings: Settings, *, booted: bool, shutting_down: bool = False) -> None:
        self._settings = settings
        self._sysroot = settings.host.sysroot
        self._booted = booted
        self._shutting_down = shutting_down

    async def change(self, command: str, **arguments: Any) -> Any:
        """A command on the list of deployments, under the sysroot's lock."""
        where = {"booted": self._booted, "timeout": SHUTDOWN_LOCK_SECONDS if self._shutting_down else LOCK_SECONDS}
        return await self.call(command, arguments | where)

    async def call(
        self,
        command: str,
        arguments: dict[str, Any],
        *,
        stdin: int | bytes = b"",
        on_bytes: Callable[[int], None] | None = None,
        reading: int = 0,
        stall: float = _COMMAND_SECONDS,
    ) -> Any:
        """The command's result.

        `stdin` is a descriptor or what to write there; `on_bytes` hears how many bytes of it were read. Until it has
        read `reading` bytes, not to hear of any for `stall` seconds is a Timeout. Raises LashdError.
        """
        require_root()
        argv = writable(self._sysroot, self._argv(command, arguments))
        if command in _UNSTOPPABLE and self._booted and not self._shutting_down:
            argv = [*_UNIT, *(f"--setenv={name}={value}" for name, value in _environment().items()), "--", *argv]
        pipe = asyncio.subprocess.PIPE
        descriptor = pipe if isinstance(stdin, bytes) else stdin
        async with started(argv, env=_environment(), stdin=descriptor) as process:
            answers = _Answers(on_bytes)
            try:
                async with asyncio.TaskGroup() as group:
                    if isinstance(stdin, bytes):
                        group.create_task(_write(process, stdin))
                    complaint = group.create_task(_tail(process))
                    await answers.listen(process, reading, stall)
                await process.wait()
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
        if answers.last is None:
            raise LashdError(
                ErrorName.HOST_COMMAND_FAILED,
                f"The ostree worker ended without an answer to '{command}' (status {process.returncode}): "
                f"{complaint.result() or 'it said nothing'}.",
            )
        if "error" in answers.last:
            name, message = ErrorName(answers.last["error"]), str(answers.last["message"])
            raise LashdError(name, message, retryable=bool(answers.last["retryable"]))
        return answers.last["result"]

    def _argv(self, command: str, arguments: dict[str, Any]) -> list[str]:
        # -P and -s: nothing of the working directory or of root's home is imported.
        program = [self._settings.tools.python, "-P", "-s", "-m", "lashd.things.ostree.worker"]
        return [*program, command, json.dumps({"sysroot": str(self._sysroot)} | arguments)]


def _environment() -> dict[str, str]:
    """Lets the system's interpreter find this very lashd, wherever it is installed, without writing beside it."""
    return {"PYTHONPATH": str(Path(lashd.__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}


async def _write(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(data)
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass  # its answer says why it did not want to hear more
    finally:
        process.stdin.close()


async def _tail(process: asyncio.subprocess.Process) -> str:
    """The end of what the worker complained of."""
    assert process.stderr is not None
    tail = b""
    while data := await process.stderr.read(STDERR_LIMIT):
        tail = (tail + data)[-STDERR_LIMIT:]
    return tail.decode(errors="replace").strip()


class _Answers:
    def __init__(self, on_bytes: Callable[[int], None] | None) -> None:
        self._on_bytes = on_bytes
        self._seen = 0
        self.last: dict[str, Any] | None = None

    async def listen(self, process: asyncio.subprocess.Process, reading: int, stall: float) -> None:
        assert process.stdout is not None
        rest = b""
        while True:
            limit = stall if self._seen < reading else _COMMAND_SECONDS
            try:
                async with asyncio.timeout(limit):
                    data = await process.stdout.read(STDERR_LIMIT)
            except TimeoutError:
                raise LashdError(ErrorName.TIMEOUT, _timeout_text(self._seen, reading, limit)) from None
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "bytes" not in message:
            self.last = message
            return
        self._seen = message["bytes"]
        if self._on_bytes is not None:
            self._on_bytes(self._seen)


def _timeout_text(seen: int, reading: int, limit: float) -> str:
    if seen < reading:
        return f"A layer of the host image stopped after {seen} of {reading} bytes: nothing came for {limit:.0f} s."
    return f"The ostree worker did not end within {limit:.0f} seconds and was ended."
