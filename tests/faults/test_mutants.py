# SPDX-License-Identifier: Apache-2.0
"""Every mutant still fits the code, and its judge is still there; `make mutants` makes them."""

from __future__ import annotations

import ast

import pytest

from tests.faults import gate, successes
from tests.faults.mutants import MUTANTS, REPOSITORY, Mutant, applied

FAULTS = {
    "gate": {fault.name for fault in (*gate.FAULTS, *gate.COMPLETE)},
    "successes": {successes.name(story.name) for story in successes.STORIES},
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_applies(mutant: Mutant) -> None:
    for edit in mutant.edits:
        content = applied(edit, REPOSITORY)
        if edit.path.endswith(".py"):
            ast.parse(content)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_judge_is_there(mutant: Mutant) -> None:
    if not isinstance(mutant.judge, str):
        assert mutant.judge.name in FAULTS[mutant.judge.kind]
        return
    path, _, test = mutant.judge.partition("::")
    names = {node.name for node in ast.walk(ast.parse((REPOSITORY / path).read_text())) if hasattr(node, "name")}
    assert not test or test in names


def test_names_are_unique() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_the_page_names_them_all() -> None:
    page = (REPOSITORY / "docs/faults.md").read_text()
    for mutant in MUTANTS:
        assert f"| {mutant.name} | `{mutant.shown}` |" in page
