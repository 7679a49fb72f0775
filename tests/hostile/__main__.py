# SPDX-License-Identifier: Apache-2.0
"""`make hostile`: ten thousand bad calls and 200 clients that hang, on both buses and both libraries.

Prints a table and writes build/hostile.json. python -m tests.hostile [--calls N] [--seed N] [--only TEXT]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from demo import rootfs
from tests.bus.conftest import REPOSITORY
from tests.hostile.attack import Tally
from tests.hostile.scene import scene
from tests.support import brokers, wire

HUNG = 200
IMAGES = 10
# Before the count begins: code is loaded by the first of every kind, and Python's heap gets its size.
WARM_UP = 1_000
TIME_LIMIT = 900.0  # seconds for each bus and library


@dataclass
class Outcome:
    """Memory in KiB, times in milliseconds; `cpu` is the daemon's processor time for one bad call.

    `seconds` it took, of which the daemon `waited` for a processor that other processes had.
    """

    name: str
    calls: int
    errors: int
    unanswered: int
    wrong: int
    mistakes: int
    seconds: float
    waited: float
    cpu: float
    memory: tuple[int, int]
    descriptors: tuple[int, int]
    questions: int
    median: float
    p99: float
    longest: float

    @property
    def failures(self) -> list[str]:
        """What does not hold."""
        found = []
        if self.wrong or self.mistakes or self.unanswered:
            found.append(f"{self.wrong} wrong answers, {self.unanswered} calls without one, {self.mistakes} tracebacks")
        for what, (before, after) in (("memory", self.memory), ("descriptors", self.descriptors)):
            if after > before * 1.05:
                found.append(f"{what} grew from {before} to {after}")
        if self.p99 > 50:
            found.append(f"the good caller's p99 is {self.p99:.0f} ms")
        return found


async def attack(work: Path, broker: str, library: str, calls: int, seed: int) -> tuple[Outcome, Tally]:
    """Attack the daemon on `broker` with `library`, while a good caller asks."""
    async with scene(work, broker, library, IMAGES) as target, asyncio.timeout(TIME_LIMIT):
        await target.attack(WARM_UP, seed + 100)
        await target.list_bound()
        memory, descriptors, cpu = target.resident(), target.descriptors(), target.processor_time()
        hung: list[wire.Client] = []
        began = waited = 0.0

        def begin() -> None:
            nonlocal began, waited
            began, waited = time.monotonic(), target.waited()
            target.latencies.clear()
            hung.extend(target.hang(HUNG))

        async with target.good_caller():
            tally = await target.attack(calls, seed, begin)
        seconds = time.monotonic() - began
        waited = target.waited() - waited
        after = (target.resident(), target.descriptors(), target.processor_time())
        for client in hung:
            client.close()
        latencies = [1000 * one for one in target.latencies]
        outcome = Outcome(
            name=f"{broker}, {library}",
            calls=tally.sent,
            errors=tally.errors,
            unanswered=tally.unanswered.total(),
            wrong=len(tally.wrong),
            mistakes=target.log.count("Traceback"),
            seconds=round(seconds, 1),
            waited=round(waited, 1),
            cpu=round(1000 * (after[2] - cpu) / tally.sent, 2),
            memory=(memory, after[0]),
            descriptors=(descriptors, after[1]),
            questions=len(latencies),
            median=round(statistics.median(latencies), 1),
            p99=round(statistics.quantiles(latencies, n=100, method="inclusive")[98], 1),
            longest=round(max(latencies), 1),
        )
        return outcome, tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.hostile", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="bad calls on each bus and library")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other calls")
    parser.add_argument("--only", default="", metavar="TEXT", help="only those with TEXT in their name")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build/hostile.json", help="where the figures go")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("This makes a sysroot, and calls as root and as somebody else: run it as root.")
    rows = {}
    failed = False
    for broker, library in itertools.product(brokers.NAMES, ("dbus_next", "dbus_fast")):
        if options.only not in f"{broker}, {library}":
            continue
        rootfs.CACHE.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="hostile-", dir=rootfs.CACHE))
        try:
            outcome, tally = asyncio.run(attack(work, broker, library, options.calls, options.seed))
        finally:
            shutil.rmtree(work, ignore_errors=True)
        failed |= bool(outcome.failures)
        show(outcome, tally)
        rows[outcome.name] = asdict(outcome) | {"names": dict(tally.names), "detail": tally.wrong[:20]}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if failed or not rows else 0


def show(one: Outcome, tally: Tally) -> None:
    """Print a row of the table, and what does not hold."""
    (memory, memory_after), (descriptors, descriptors_after) = one.memory, one.descriptors
    print(
        f"{'BAD ' if one.failures else 'ok  '} {one.name:22} {one.calls} bad calls in {one.seconds:.0f} s "
        f"({one.waited} s without a processor): "
        f"{one.errors} errors, {one.unanswered} unanswered, {one.wrong} wrong, {one.mistakes} tracebacks, "
        f"{one.cpu} ms of work for each\n"
        f"       memory {memory} to {memory_after} KiB, descriptors {descriptors} to {descriptors_after}; "
        f"ListBound {one.median} ms, p99 {one.p99}, longest {one.longest} ({one.questions} questions)",
        flush=True,
    )
    for failure in one.failures:
        print(f"       {failure}")
    for wrong in tally.wrong[:5]:
        print(f"       {wrong[:300]}")


if __name__ == "__main__":
    sys.exit(main())
