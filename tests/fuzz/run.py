# SPDX-License-Identifier: Apache-2.0
"""Runs blocks of inputs. A block is made from its seed alone, so that each of its inputs can be made again."""

from __future__ import annotations

import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import lashd
from tests.fuzz.targets import TARGETS, Target

BLOCK = 10_000
# Processor time after which an input hangs (seconds); most take some microseconds.
TIME_LIMIT = 1.0
# Of so many inputs one is traced: one that reaches a line that none before it reached joins the corpus.
TRACED = 25
_LARGEST_CORPUS = 400

_PACKAGE = str(Path(lashd.__file__).parent)


class Hang(BaseException):
    """An input took longer than TIME_LIMIT. No Exception, so that nothing on the way catches it."""


@dataclass
class Tally:
    """What came of the inputs of one target. `slowest`: in seconds of processor time."""

    target: str
    inputs: int = 0
    accepted: int = 0
    kept: int = 0
    crashes: int = 0
    hangs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    detail: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for name in ("inputs", "accepted", "kept", "crashes", "hangs", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest = max(self.slowest, other.slowest)
        self.detail += other.detail[:5]


def block(name: str, seed: int, number: int, inputs: int = BLOCK) -> Tally:
    """Give `inputs` inputs to the target `name`; those of one (seed, number) are always the same."""
    target = next(kind for kind in TARGETS if kind.name == name)()
    began = time.perf_counter()
    try:
        with _time_limit():
            tally = _run(target, random.Random(f"{seed} {name} {number}"), inputs, f"seed {seed}, block {number}")
    finally:
        target.close()
    tally.seconds = time.perf_counter() - began
    tally.accepted = target.accepted
    return tally


def _run(target: Target, pick: random.Random, inputs: int, where: str) -> Tally:
    tally = Tally(target.name)
    corpus = target.corpus()
    guide = _Guide(target.modules)
    for value in corpus if target.guided else ():
        guide.is_new(target.take, value)
    for count in range(inputs):
        value = target.make(pick, corpus)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
        try:
            if not target.guided or count % TRACED or len(corpus) >= _LARGEST_CORPUS:
                target.take(value)
            elif guide.is_new(target.take, value):
                corpus.append(value)
                tally.kept += 1
        except Hang:
            tally.hangs += 1
            tally.detail.append(f"{where}, input {count}: took more than {TIME_LIMIT} s: {value!r}"[:3000])
        except Exception as error:
            tally.crashes += 1
            at = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__}: {error} ({Path(at.filename).name}, line {at.lineno}: {at.line})"
            tally.detail.append(f"{where}, input {count}: {why[:1500]}: {value!r}"[:3000])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        tally.slowest = max(tally.slowest, time.process_time() - began)
        tally.inputs += 1
    return tally


class _Guide:
    """Knows the lines of `modules` that were reached so far."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._files = {f"{_PACKAGE}/{module}" for module in modules}
        self._seen: set[tuple[str, int]] = set()

    def is_new(self, take: Callable[[Any], None], value: Any) -> bool:
        """Whether `take` reaches a new line with `value`. Raises what it raises."""
        before = len(self._seen)
        sys.settrace(self._enter)
        try:
            take(value)
        finally:
            sys.settrace(None)
        return len(self._seen) > before

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


@contextmanager
def _time_limit() -> Iterator[None]:
    def over(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, over)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)
