# SPDX-License-Identifier: Apache-2.0
"""Runs lashd, or its gate, and notes what it does outside of itself, and each success that it tells somebody.

python3 traced.py DIRECTORY lashd|gate    (in the guest; appends to DIRECTORY/log)

DIRECTORY/order may say `kill` or `stop`, which time, and what, a line each: then it kills or stops itself at that
moment, after it has made DIRECTORY/reached. An order is for the next start only.

The edges come from the runner of subprocesses, the file helpers and the lock file, so none can be forgotten in a list.
"""

import contextlib
import functools
import os
import signal
import sys
from collections import Counter
from pathlib import Path

directory, program = Path(sys.argv[1]), sys.argv[2]
order: list[str] = []
with contextlib.suppress(FileNotFoundError):
    order = (directory / "order").read_text().splitlines()
    (directory / "order").unlink()
    # Also after a power cut it is not there again.
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
count: Counter[str] = Counter()


def happened(what: str) -> None:
    count[what] += 1
    with (directory / "log").open("a") as file:
        file.write(f"{what}\n")
    if order and order[2] == what and int(order[1]) == count[what]:
        (directory / "reached").write_text(what)
        os.kill(os.getpid(), signal.SIGKILL if order[0] == "kill" else signal.SIGSTOP)


def edge(what: str) -> None:
    happened(f"edge: {what}")


def success(what: str) -> None:
    happened(f"success: {what}")


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


def succeeding(owner, name, told):
    """`told(result, *arguments)` is what the success of this function is called, empty for none."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*arguments, **more):
        result = function(*arguments, **more)
        if what := told(result, *arguments):
            success(what)
        return result

    setattr(owner, name, wrapper)


def succeeding_later(owner, name, what):
    function = getattr(owner, name)

    @functools.wraps(function)
    async def wrapper(*arguments, **more):
        result = await function(*arguments, **more)
        success(what)
        return result

    setattr(owner, name, wrapper)


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

# Before those that import it by name.
from lashd.steps import verify  # noqa: E402
from lashd.words.model import ImageState  # noqa: E402

seen: set[str] = set()


def present(found, *arguments):
    state, image = found
    if state is not ImageState.PRESENT or image.digest in seen:
        return ""
    seen.add(image.digest)
    return f"present {image.digest}"


succeeding(verify, "classify", present)

from lashd.steps.record import Records  # noqa: E402

succeeding(Records, "write", lambda result, *arguments: "record written")

if program == "gate":
    from lashd.running.gate import Gate, main

    succeeding(Gate, "shut_down", lambda verdict, *arguments: f"gate {verdict.result.value}")
    sys.exit(main(["stop"]))

from lashd.running.jobs import Jobs  # noqa: E402
from lashd.running.orders import Orders  # noqa: E402
from lashd.things.ostree.backend import OstreeBackend  # noqa: E402

succeeding(
    Jobs,
    "finished",
    lambda _, jobs, job: f"job {job.kind} {job.result}" if job.result in ("success", "unchanged") else "",
)
succeeding_later(OstreeBackend, "release", "declared ready")
succeeding_later(Orders, "hold", "ordered to hold")

sys.argv = ["lashd"]
from lashd.bus.service import main  # noqa: E402

sys.exit(main())
