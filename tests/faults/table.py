# SPDX-License-Identifier: Apache-2.0
"""Rows of `make faults`: how often a fault was made, and how often a promise did not hold then."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


class NotReached(Exception):
    """The fault could not be made: what it was to hit never came. Nothing is known then, so it counts as no run."""


@dataclass
class Row:
    """One fault. `detail` says of each violation what was seen.

    `excused`: runs in which a person had to stage again because nobody could know of it (see `edges`).
    """

    fault: str
    runs: int = 0
    violations: int = 0
    not_reached: int = 0
    excused: int = 0
    seconds: float = 0.0
    detail: list[str] = field(default_factory=list)

    def run(self, once: Callable[[], str], excuses: list[str] | None = None) -> None:
        """Make the fault once; `once` answers what did not hold, or nothing. What it raises did not hold either.

        What `once` adds to `excuses` is counted.
        """
        before, began = len(excuses or []), time.monotonic()
        try:
            wrong = once()
        except NotReached as error:
            self.not_reached += 1
            print(f"  {self.fault}: not reached: {error}", flush=True)
            return
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        self.runs += 1
        self.excused += len(excuses or []) - before
        took = time.monotonic() - began
        self.seconds += took
        if wrong:
            self.violations += 1
            self.detail.append(wrong[-3000:])
        print(f"  {self.fault}: {wrong.splitlines()[0][:160] if wrong else 'held'} ({took:.0f} s)", flush=True)

    def add(self, other: Row) -> None:
        """Count what `other` says of the same fault."""
        self.runs += other.runs
        self.violations += other.violations
        self.not_reached += other.not_reached
        self.excused += other.excused
        self.seconds += other.seconds
        self.detail += other.detail


def merged(rows: Iterable[Row]) -> list[Row]:
    """One row for each fault, in the order in which they came."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.fault, Row(row.fault)).add(row)
    return list(found.values())


def show(rows: Iterable[Row]) -> None:
    """Print the table."""
    rows = list(rows)
    width = max((len(row.fault) for row in rows), default=0)
    for row in rows:
        more = "".join(
            f", {count} {what}" for count, what in ((row.not_reached, "not reached"), (row.excused, "excused")) if count
        )
        good = row.runs and not row.violations
        print(f"{'ok  ' if good else 'BAD '} {row.fault:{width}} {row.runs:4} runs, {row.violations} violations{more}")


def save(rows: Iterable[Row], path: Path, *, keep: Callable[[str], bool] = lambda fault: True) -> None:
    """Put the rows into the JSON file `path`, in place of what it says of the same faults.

    Of other faults it keeps those that `keep` says. Whoever reads it meanwhile sees the old or the new one; two
    programs may do it at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = json.loads(path.read_text()) if path.exists() else {}
        known = {fault: row for fault, row in known.items() if keep(fault)}
        for row in rows:
            facts = {key.replace("_", "-"): value for key, value in asdict(row).items() if key != "fault"}
            known[row.fault] = facts | {"seconds": round(row.seconds, 1)}
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(known, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
        partial.rename(path)
