# SPDX-License-Identifier: Apache-2.0
"""Runs lashd with a tracer: each moment at which it has done something outside of itself is an edge.

    python3 -m traced LOG [NUMBER]      (in the guest; LOG is appended to, and at edge NUMBER it kills itself, once)

The edges come from the runner of subprocesses, the file helpers and the lock file, so none can be forgotten in a list.
"""

import contextlib
import functools
import os
import signal
import sys
from pathlib import Path

log, number = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
died = log.with_suffix(".died")
count = 0


def edge(what: str) -> None:
    global count
    count += 1
    with log.open("a") as file:
        file.write(f"{count} {what}\n")
    if count == number and not died.exists():
        died.write_text(what)
        os.kill(os.getpid(), signal.SIGKILL)


def traced(module, name):
    function = getattr(module, name)

    @functools.wraps(function)
    def wrapper(*arguments, **more):
        edge(f"before {name}")
        try:
            return function(*arguments, **more)
        finally:
            edge(f"after {name}")

    setattr(module, name, wrapper)


from lashd.words import files, run  # noqa: E402

started = run.started


@contextlib.asynccontextmanager
async def traced_process(argv, **more):
    shown = " ".join(os.fspath(word) for word in argv if not os.fspath(word).startswith("if mountpoint"))[:120]
    edge(f"before process {shown}")
    try:
        async with started(argv, **more) as process:
            edge(f"process runs {shown}")
            yield process
    finally:
        edge(f"after process {shown}")


run.started = traced_process
for name in ("write_durably", "sync_directory", "sync_filesystem"):
    traced(files, name)

from lashd.things.ostree import lockfile  # noqa: E402

for name in ("write_lock", "remove_lock"):
    traced(lockfile, name)

sys.argv = ["lashd"]
from lashd.bus.service import main  # noqa: E402

sys.exit(main())
