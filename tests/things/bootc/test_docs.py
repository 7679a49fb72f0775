# SPDX-License-Identifier: Apache-2.0
"""docs/bootc.md names tests: each is there, no host test is forgotten, and `make bootc` tells how they end."""

from __future__ import annotations

import re

import pytest

from tests.host.bootc import table

TEXT = """
| fault | alone | with lashd |
|---|---|---|
| one | `test_an_upgrade_through_bootc_and_back` | `tests/things/bootc/test_docs.py::test_the_tables`, see above |
| two | nobody asks | `test_an_upgrade_through_bootc_and_back` |
| three | `test_an_upgrade_through_bootc_and_back` | the same |

| who | what |
|---|---|
| `test_nothing` | is no table of tests |
"""


def test_every_test_of_the_booted_host_is_named() -> None:
    named = {test for row in table.rows() for test in row.tests}
    assert set(table.tests_here().values()) <= named


def test_the_tables() -> None:
    one, two, three = table.rows(TEXT)
    host, unit = one.cells[0].tests[0], one.cells[1].tests[0]
    assert host == "tests/host/bootc/test_upgrade.py::test_an_upgrade_through_bootc_and_back"
    assert unit == "tests/things/bootc/test_docs.py::test_the_tables"
    assert (two.cells[0].tests, two.cells[0].words) == ((), "nobody asks")
    assert one.tests == {host, unit}
    assert three.cells[1].tests == (host,)


@pytest.mark.parametrize(
    ("outcomes", "verdicts"),
    [
        ((True, True), ["shown", "gone"]),
        ((False, True), ["NOT SHOWN", "gone"]),
        ((True, False), ["shown", "STILL THERE"]),
        ((True, None), ["shown", "not run"]),
    ],
)
def test_what_it_says_is_what_the_tests_came_to(
    outcomes: tuple[bool | None, ...], verdicts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, _ = table.rows(TEXT)
    ids = [cell.tests[0] for cell in one.cells]
    known = {test: passed for test, passed in zip(ids, outcomes, strict=True) if passed is not None}
    assert table.show([one, two], known) is (verdicts == ["shown", "gone"])
    head, first, second = capsys.readouterr().out.strip().splitlines()
    assert re.split(r"  +", head) == ["fault", "alone", "with lashd"]
    assert re.split(r"  +", first) == ["one", *verdicts]
    assert "nobody asks" in second


@pytest.mark.parametrize("name", ["`test_that_is_not_there`", "`tests/things/bootc/test_docs.py::test_that_is_not`"])
def test_a_test_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match="names test_that_is_not"):
        table.rows(TEXT.replace("nobody asks", name))
