# SPDX-License-Identifier: Apache-2.0
"""Rows of `make faults`: how often a fault was made, and how often a promise did not hold then."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Row:
    """One fault. `detail` says of each violation what was seen."""

    fault: str
    runs: int = 0
    violations: int = 0
    detail: list[str] = field(default_factory=list)

    def run(self, once: Callable[[], str]) -> None:
        """Make the fault once; `once` answers what did not hold, or nothing. What it raises did not hold either."""
        self.runs += 1
        try:
            wrong = once()
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            self.violations += 1
            self.detail.append(wrong[-3000:])
        print(f"  {self.fault}, run {self.runs}: {wrong.splitlines()[0][:160] if wrong else 'held'}", flush=True)


def report(rows: list[Row], path: Path) -> None:
    """Print the table, and put the rows into the JSON file `path` beside those of other runs."""
    known = json.loads(path.read_text()) if path.exists() else {}
    for row in rows:
        print(
            f"{'ok  ' if not row.violations else 'BAD '} {row.fault:60} {row.runs:4} runs, {row.violations} violations"
        )
        known[row.fault] = {"runs": row.runs, "violations": row.violations, "detail": row.detail}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
