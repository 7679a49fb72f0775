# SPDX-License-Identifier: Apache-2.0
"""One measured figure, and the table and JSON file that all of them end in."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """`value` in `unit`; `bar` is what it is held against ('≥ 4.0'), `compared` what it was measured against."""

    name: str
    value: float
    unit: str
    bar: str
    compared: str
    samples: tuple[float, ...] = ()

    @property
    def met(self) -> bool:
        sign, _, number = self.bar.partition(" ")
        return self.value >= float(number) if sign == "≥" else self.value <= float(number)


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def report(figures: Sequence[Figure], path: Path) -> None:
    """Print the table and write {name: {value, unit, bar, compared, samples, met}} to `path`."""
    for figure in figures:
        mark = "ok  " if figure.met else "MISS"
        print(f"{mark} {figure.name:28} {figure.value:10.3f} {figure.unit:10} {figure.bar:10} {figure.compared}")
    path.parent.mkdir(exist_ok=True)
    table = {figure.name: asdict(figure) | {"met": figure.met} for figure in figures}
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
