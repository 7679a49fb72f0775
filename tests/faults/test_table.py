# SPDX-License-Identifier: Apache-2.0
"""What counts as a run, and what the file says afterwards."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.table import NotReached, Row, merged, save
from tests.faults.work import FULL, Task, all_or_some, scale_to, sliced


def test_a_row() -> None:
    row, excuses = Row("one"), ["an earlier one"]

    def never() -> str:
        raise NotReached("it did not come")

    def breaks() -> str:
        raise OSError("gone")

    def excused() -> str:
        excuses.append("nobody could know")
        return ""

    for once in (lambda: "", lambda: "two came up", never, breaks, excused):
        row.run(once, excuses)
    assert (row.runs, row.violations, row.not_reached, row.excused) == (4, 2, 1, 1)
    assert row.detail == ["two came up", "OSError: gone"]
    (both,) = merged([row, Row("one", 3, 1, detail=["more"])])
    assert (both.runs, both.violations, both.detail[-1]) == (7, 3, "more")


def test_rows_of_several_runs_are_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "build/rows.json"
    save([Row("one", 1), Row("mutant: two", 1, 1)], path)
    save([Row("one", 5), Row("three", 2)], path)
    known = json.loads(path.read_text())
    assert {fault: row["runs"] for fault, row in known.items()} == {"one": 5, "mutant: two": 1, "three": 2}
    assert known["mutant: two"]["violations"] == 1
    # A whole run leaves nothing of earlier ones.
    save([Row("four", 1)], path, keep=lambda fault: fault.startswith("mutant: "))
    assert set(json.loads(path.read_text())) == {"mutant: two", "four"}
    assert not list(path.parent.glob(".*.json.[0-9]*"))


def test_how_often() -> None:
    assert [scale_to(runs)(20) for runs in (1, 10, 20, 40)] == [1, 10, 20, 40]
    assert [scale_to(runs)(2) for runs in (1, 20, 40)] == [1, 2, 4]
    assert (all_or_some(scale_to(1)), all_or_some(scale_to(FULL)) > 1000) == (2, True)
    assert [task.times for task in sliced("gate", "killed", 12, 5)] == [5, 5, 2]


def test_what_is_asked_for() -> None:
    look = Task("edges", "which are there", finds=("edges: daemon killed",))
    assert look.is_about("")
    assert look.is_about("daemon")
    assert look.is_about("edges: daemon killed, rebooted at once")
    assert not look.is_about("host")
    assert not Task("gate", "killed").is_about("killed at once")
