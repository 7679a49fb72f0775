# SPDX-License-Identifier: Apache-2.0
"""A short run of `make fuzz`, and that it would see what it is there to see."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.fuzz import run
from tests.fuzz.targets import TARGETS, OptionTarget, ReferenceTarget, StagedTarget, Target, UnitFileTarget

SHORT = 2_000


@pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.name)
def test_nothing_crashes_and_nothing_hangs(kind: type[Target]) -> None:
    tally = run.block(kind.name, seed=20261124, number=0, inputs=SHORT * kind.share // 20)
    assert (tally.crashes, tally.hangs) == (0, 0), tally.detail
    assert tally.inputs == SHORT * kind.share // 20
    # Neither all right nor all wrong: what is made up is worth reading.
    assert 0 < tally.accepted < tally.inputs
    assert bool(tally.kept) == bool(kind.modules)


def test_the_shares_are_of_a_hundred() -> None:
    assert sum(kind.share for kind in TARGETS) == 100


@pytest.mark.parametrize("kind", [UnitFileTarget, ReferenceTarget, StagedTarget, OptionTarget])
def test_the_same_seed_makes_the_same_inputs(kind: type[Target]) -> None:
    def inputs(seed: str) -> Iterator[str]:
        target, pick = kind(), random.Random(seed)
        corpus = target.corpus()
        for _ in range(200):
            yield repr(target.make(pick, corpus))

    assert list(inputs("1 a 0")) == list(inputs("1 a 0"))
    assert list(inputs("1 a 0")) != list(inputs("1 a 1"))


def test_a_crash_a_hang_and_a_wrong_answer_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ReferenceTarget):
        name = "broken"
        count = 0

        def take(self, value: str) -> None:
            Broken.count += 1
            if Broken.count == 50:
                raise RecursionError("too deep")
            while Broken.count == 60:
                pass
            super().take(value)

    monkeypatch.setattr(run, "TARGETS", (Broken,))
    monkeypatch.setattr(run, "TIME_LIMIT", 0.05)
    tally = run.block("broken", seed=1, number=0, inputs=100)
    assert (tally.inputs, tally.crashes, tally.hangs) == (100, 1, 1)
    assert "RecursionError: too deep" in tally.detail[0]
    assert "took more than 0.05 s" in tally.detail[1]
