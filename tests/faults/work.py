# SPDX-License-Identifier: Apache-2.0
"""What is handed out to worker processes: a fault, or a look that says which faults there are to be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.faults.table import Row

# What the bars of the project ask for is this often; `--runs` makes it more or less.
FULL = 20
# From a number of runs for `FULL` to the one that is wanted.
Scale = Callable[[int], int]


@dataclass(frozen=True)
class Task:
    """`times` runs of what the module `kind` calls `name`; or a look that `finds` tasks whose names begin like that."""

    kind: str
    name: str
    times: int = 1
    arguments: tuple[Any, ...] = ()
    finds: tuple[str, ...] = ()

    def is_about(self, text: str) -> bool:
        """Whether it is, or may find, something with `text` in its name."""
        return any(text in name or (self.finds and name in text) for name in self.finds or (self.name,))


@dataclass
class Done:
    """What came of a task: rows, and the tasks that it found."""

    rows: list[Row] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)


def scale_to(runs: int) -> Scale:
    """At least one run of everything, however few are wanted."""
    return lambda full: max(1, round(full * runs / FULL))


def all_or_some(scale: Scale) -> int:
    """At most how many of something of which there are many: all of them in full, and two for each run of less."""
    return 1_000_000 if scale(FULL) >= FULL else 2 * scale(FULL)


def sliced(kind: str, name: str, times: int, most: int, *arguments: Any) -> Iterator[Task]:
    """`times` runs as tasks of at most `most` runs each."""
    while times > 0:
        yield Task(kind, name, min(times, most), arguments)
        times -= most
