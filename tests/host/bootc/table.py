# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/bootc.md, with the outcomes of the tests that they name. It is the document that says which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENT = REPOSITORY / "docs/bootc.md"
HERE = "tests/host/bootc"
# What a column says when its tests have passed, and when one has not.
WORDS = {
    "alone": ("shown", "NOT SHOWN"),
    "with lashd": ("gone", "STILL THERE"),
    "tests": ("ok", "FAILED"),
}
NOT_RUN = "not run"
_WIDTH = 110

# Whether each test that has run has passed, by its id without parameters.
Outcomes = Mapping[str, bool]


@dataclass(frozen=True)
class Cell:
    """The ids of the tests that a cell names (FILE::NAME); words alone, where there is none."""

    column: str
    tests: tuple[str, ...]
    words: str

    def verdict(self, outcomes: Outcomes) -> str:
        """What the tests came to; the words of a cell that names none."""
        if not self.tests:
            return self.words
        good, bad = WORDS[self.column]
        found = [outcomes.get(test) for test in self.tests]
        if False in found:
            return bad
        return NOT_RUN if None in found else good

    def fine(self, outcomes: Outcomes) -> bool:
        return not self.tests or self.verdict(outcomes) == WORDS[self.column][0]


@dataclass(frozen=True)
class Row:
    """One line of a table: a fault (columns `alone` and `with lashd`) or a scenario (`tests`)."""

    table: str
    what: str
    cells: tuple[Cell, ...]

    @property
    def tests(self) -> frozenset[str]:
        return frozenset(test for cell in self.cells for test in cell.tests)


def tests_here() -> dict[str, str]:
    """The tests of this directory: id by name. A name stands for one test."""
    found: dict[str, str] = {}
    for path in sorted((REPOSITORY / HERE).glob("test_*.py")):
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE):
            if name in found:
                raise ValueError(f"{name} is the name of two tests: in {found[name]} and in {path.name}")
            found[name] = f"{HERE}/{path.name}::{name}"
    return found


def rows(text: str | None = None) -> tuple[Row, ...]:
    """The rows of every table that has a column of WORDS. Raises ValueError for a test that is not there."""
    here = tests_here()
    found: list[Row] = []
    table: tuple[str, ...] = ()
    for line in (DOCUMENT.read_text(encoding="utf-8") if text is None else text).splitlines():
        if not line.startswith("|"):
            table = ()
            continue
        cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
        if not table:
            table = cells
        elif table[1] in WORDS and set(line) - set("|-"):
            made: list[Cell] = []
            for column, cell in zip(table[1:], cells[1:], strict=True):
                tests = made[-1].tests if cell == "the same" else _ids(cell, here)
                made.append(Cell(column, tests, cell))
            found.append(Row(table[0], cells[0], tuple(made)))
    return tuple(found)


def _ids(cell: str, here: Mapping[str, str]) -> tuple[str, ...]:
    """`test_x` is a test of this directory, `FILE::test_x` one of another."""
    found = []
    for file, name in re.findall(r"`(?:(tests/\S+?\.py)::)?(test_\w+)`", cell):
        if not file and name not in here:
            raise ValueError(f"docs/bootc.md names {name}, which is not in {HERE}")
        if file and not re.search(rf"^(?:async )?def {name}\b", (REPOSITORY / file).read_text(), re.MULTILINE):
            raise ValueError(f"docs/bootc.md names {name}, which is not in {file}")
        found.append(f"{file}::{name}" if file else here[name])
    return tuple(found)


def show(found: Iterable[Row], outcomes: Outcomes) -> bool:
    """Print the tables; whether every cell is fine."""
    found = list(found)
    for title in dict.fromkeys(row.table for row in found):
        table = [row for row in found if row.table == title]
        lines = [[title, *(cell.column for cell in table[0].cells)]]
        lines += [[_short(row.what), *(cell.verdict(outcomes) for cell in row.cells)] for row in table]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print()
        for line in lines:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    return all(cell.fine(outcomes) for row in found for cell in row.cells)


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
