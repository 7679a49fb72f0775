# SPDX-License-Identifier: Apache-2.0
"""Start a program and insist that it worked: the harness's own small helper (blocking, unlike the daemon's)."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Failed(Exception):
    """A program ended badly. The text names it, its status and the end of what it said."""


def call(
    argv: Sequence[str | Path],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> str:
    """Standard output of `argv`. Raises Failed when its exit status is not 0 or the limit (seconds) passes."""
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            env=env,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"no end after {timeout:.0f} s: {shown(argv)}") from error
    if done.returncode != 0:
        said = (done.stderr + done.stdout).decode(errors="replace").strip()[-3000:]
        raise Failed(f"status {done.returncode}: {shown(argv)}\n{said}")
    return done.stdout.decode(errors="replace")


def start(argv: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
    """A child with a process group of its own, for `end`; `streams` as subprocess takes them."""
    return subprocess.Popen(argv, start_new_session=True, **streams)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what `start` has started, unless it has ended by itself.

    With its whole group: what enters a pid namespace has a child in there that would not end with it.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def shown(argv: Sequence[str | Path]) -> str:
    """`argv` as one would type it, cut to a readable length."""
    text = shlex.join(str(word) for word in argv)
    return text if len(text) <= 300 else text[:300] + " …"
