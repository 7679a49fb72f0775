# SPDX-License-Identifier: Apache-2.0
"""The one place that starts a subprocess.

Argument list (never a shell line made of data), a fixed environment, standard error captured, a time limit, and a
process group of its own that ends with the task, and with the daemon should that be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lashd.words.errors import ErrorName, LashdError

# A child that ignores SIGTERM for this long is killed.
GRACE_SECONDS = 3.0
# What was killed is gone in an instant, unless the kernel holds it (a dead disk): after so many looks, 5 ms apart,
# nobody waits for it any more.
KILLED_LOOKS = 400
# Enough of standard error to explain any failure, and never the whole of a babbling child.
STDERR_LIMIT = 64 * 1024

# Whatever writes below /sysroot does so in a mount namespace of its own, and only in there is it writable. The
# target is remounted only when it is a mount point: a sysroot that is a plain directory needs no remount.
_WRITABLE = (
    'if mountpoint -q "$0"; then '
    'mount -o remount,rw "$0" 2>/dev/null || mount -o remount,bind,rw "$0" || exit 125; '
    'fi; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Completed:
    """What a child left: its exit status (negative: the signal that ended it) and what it wrote."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every child: nothing of the daemon's leaks in, messages are in English."""
    fixed = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    }
    return fixed | dict(extra or {})


def writable(sysroot: Path, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in a private mount namespace in which `sysroot` is writable."""
    return ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _WRITABLE, os.fspath(sysroot), *argv]


@contextlib.asynccontextmanager
async def started(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | None = asyncio.subprocess.DEVNULL,
    stdout: int | None = asyncio.subprocess.PIPE,
    stderr: int | None = asyncio.subprocess.PIPE,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running child; when the block is left its whole process group is ended and waited for.

    Raises HostCommandFailed when the program is not installed.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            # The child must not outlive a daemon that was killed: nobody would be left to end it.
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment(env),
            cwd=cwd,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    )
    try:
        process = await asyncio.shield(starting)
    except FileNotFoundError as error:
        raise _not_installed(error.filename or argv[0]) from error
    except asyncio.CancelledError:
        # Cancelled in there, asyncio ends the child alone, and waits for as long as anybody has its pipes.
        with contextlib.suppress(OSError):
            await _end(await starting)
        raise
    try:
        yield process
    finally:
        await _end(process)


async def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run `argv` to its end, at most `timeout` seconds.

    Returns whatever its exit status is. Raises Timeout when the limit passes, HostCommandFailed when the program is not
    installed; cancelling ends the child's whole group first.
    """
    pipe = asyncio.subprocess.PIPE
    async with started(
        argv, env=env, cwd=cwd, stdin=pipe if stdin is not None else asyncio.subprocess.DEVNULL, pass_fds=pass_fds
    ) as process:
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr = await process.communicate(stdin)
        except TimeoutError as error:
            raise LashdError(
                ErrorName.TIMEOUT, f"'{argv[0]}' did not end within {timeout:.0f} seconds and was ended."
            ) from error
        status = process.returncode
    assert status is not None
    if status == 127 and b"setpriv: failed to execute" in stderr:
        raise _not_installed(argv[0])
    return Completed(tuple(argv), status, stdout, stderr[-STDERR_LIMIT:].decode(errors="replace"))


def _not_installed(program: str) -> LashdError:
    return LashdError(
        ErrorName.HOST_COMMAND_FAILED, f"The program '{program}' is not installed; install it.", retryable=False
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    try:
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await process.wait()
    finally:
        # Also after a normal end, or when the wait itself was cancelled: something may be left in the group.
        _signal_group(process.pid, signal.SIGKILL)
    if process.returncode is None:
        await process.wait()
    for _ in range(KILLED_LOOKS):
        # Whatever else was in the group is nobody's child here: it cannot be waited for, only asked after.
        if not _signal_group(process.pid, 0):
            break
        await asyncio.sleep(0.005)


def _signal_group(leader: int, number: int) -> bool:
    """Send signal `number` to the group of `leader` (0 sends nothing): whether anything is left in that group."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
