# SPDX-License-Identifier: Apache-2.0
"""Several worlds at once: worker processes, each with a host of its own, to which tasks are handed out.

Nothing of a worker stays, however it ends: it goes when this process goes, in order when it is told to; what one that
was killed has left is removed by this process, or by the next run.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType

from demo import cgroups, rootfs
from demo.network import Network
from tests.faults.table import Row
from tests.faults.work import Done, Task
from tests.faults.world import World

_PREFIX = "faults-"
_END_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


def run(
    tasks: Iterable[Task],
    jobs: int,
    got: Callable[[list[Row]], None],
    wanted: Callable[[Task], bool] = lambda task: True,
) -> None:
    """Do `tasks`, and those `wanted` that they find, in `jobs` processes; `got` gets the rows of each."""
    sweep()
    waiting = list(tasks)
    workers = [_Worker(number) for number in range(min(jobs, max(1, len(waiting))))]
    try:
        idle, busy = list(workers), dict[Connection, tuple[_Worker, Task]]()
        while waiting or busy:
            while waiting and idle:
                worker, task = idle.pop(0), waiting.pop(0)
                worker.line.send(task)
                busy[worker.line] = (worker, task)
            if not busy:
                raise RuntimeError("no worker is left")
            for line in wait(list(busy)):
                assert isinstance(line, Connection)
                worker, task = busy.pop(line)
                try:
                    done: Done = line.recv()
                except (EOFError, OSError):
                    worker.end()
                    got([Row(task.name, 1, 1, detail=["the worker process died"])])
                    continue
                idle.append(worker)
                waiting += filter(wanted, done.tasks)
                got(done.rows)
    finally:
        for worker in workers:
            worker.ask_to_end()
        for worker in workers:
            worker.end()


class _Worker:
    def __init__(self, number: int) -> None:
        self.name = f"f{os.getpid()}-{number}"
        # Below the checkout's cache, because that is on a disk: /tmp may be memory.
        self.directory = rootfs.CACHE / f"{_PREFIX}{os.getpid()}-{number}"
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self.directory, self.name, os.getpid()))
        self._process.start()
        theirs.close()

    def ask_to_end(self) -> None:
        if self._process.is_alive():
            self._process.terminate()

    def end(self) -> None:
        """Returns when it has ended and nothing of it is left."""
        self.ask_to_end()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.line.close()
        clean_up(self.name, self.directory)


def clean_up(name: str, directory: Path) -> None:
    """Remove what a world called `name` has left of itself."""
    cgroups.end(f"lashd-{name}")
    Network(name).delete()
    shutil.rmtree(directory, ignore_errors=True)


def sweep() -> None:
    """Remove what runs that were killed have left."""
    for directory in rootfs.CACHE.glob(f"{_PREFIX}*-*"):
        pid, _, number = directory.name.removeprefix(_PREFIX).partition("-")
        if pid.isdigit() and number.isdigit() and not Path("/proc", pid).exists():
            clean_up(f"f{pid}-{number}", directory)


def _work(line: Connection, directory: Path, name: str, parent: int) -> None:
    """A worker process."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process, which ends us in order
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    directory.mkdir(parents=True)
    tempfile.tempdir = str(directory)  # so that whatever is left of us is found there
    try:
        with World(directory, name) as world:
            while True:
                line.send(_done(world, line.recv()))
    except EOFError:
        pass
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _done(world: World, task: Task) -> Done:
    try:
        done: Done = importlib.import_module(f"tests.faults.{task.kind}").do(world, task)
        return done
    except Exception:
        text = traceback.format_exc()
        print(f"  {task.name}: {text}", flush=True)
        return Done([Row(task.name, 1, 1, detail=[text[-3000:]])])
