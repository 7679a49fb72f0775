# SPDX-License-Identifier: Apache-2.0
"""What BlockedBy says where a file says nonsense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lashd.running.blocked import Situation, gate_ignored, moment, reasons
from lashd.steps.decide import Decision
from lashd.words.model import Deployment, Order, Owed, Passed, Role, Verdict

STAGED = Deployment("os", "e" * 64, 0, Path("/nowhere"), frozenset({Role.STAGED}), locked=True)


def test_a_time_as_people_read_it() -> None:
    assert moment(0) == "1970-01-01 00:00:00 UTC"
    assert moment(1763922896) == "2025-11-23 18:34:56 UTC"


@pytest.mark.parametrize("time", [2**56, -(2**56), 2**63 - 1, 2**63, 2**64, -(2**70), 10**40])
def test_any_number_is_taken_for_a_time(time: int) -> None:
    owed = Owed(STAGED.key, "os", STAGED.checksum, "", "", "before", since=time, wasted=time)
    order = Order(STAGED.key, "", True, uid=time, reason="", given=time)
    decision = Decision(False, (("missing", "It is missing."),))
    told = reasons(Situation(staged=STAGED, decision=decision, order=order, owed=owed, next_try=time))
    assert [code for code, _ in told if code in ("order-hold", "waiting", "next-try")] == [
        *("order-hold", "waiting", "next-try")
    ]
    assert all("an unknown time" in sentence for code, sentence in told if code in ("waiting", "next-try"))
    (lost, *_) = reasons(Situation(owed=owed))
    assert "staged since an unknown time" in lost[1]


RUNS = Deployment("os", "a" * 64, 0, Path("/nowhere"), frozenset({Role.BOOTED}))
OTHER = replace(RUNS, stateroot="other")
HELD = Verdict(Passed.HELD, "before", 1, STAGED.key, stays=RUNS.name)
ENDED = ("gate-not-finished", "It was ended.")


@pytest.mark.parametrize(
    ("verdict", "booted", "said"),
    [
        (None, RUNS, ""),
        (HELD, None, ""),
        (HELD, RUNS, ""),
        (HELD, STAGED, "was held at the last shutdown and is running all the same"),
        (replace(HELD, stays=""), STAGED, "was held at the last shutdown and is running all the same"),
        # Something else was first in the boot order, and could not be looked at or put behind it.
        (HELD, OTHER, "although what ran before was to come up again"),
        (replace(HELD, deployment=OTHER.key, reasons=(ENDED,)), OTHER, "did not come to its end"),
        (replace(HELD, deployment="", reasons=(ENDED,)), STAGED, "did not come to its end"),
        # Somebody put another one first, and it had its images.
        (replace(HELD, stays=""), OTHER, ""),
        (replace(HELD, stays=OTHER.name, deployment=RUNS.key), OTHER, ""),
        (replace(HELD, result=Passed.RELEASED), STAGED, ""),
        (replace(HELD, boot="now"), STAGED, ""),
    ],
)
def test_what_runs_although_it_was_held(verdict: Verdict | None, booted: Deployment | None, said: str) -> None:
    assert gate_ignored(verdict, booted, "now") is bool(said)
    found = [text for code, text in reasons(Situation(verdict=verdict, booted=booted, boot="now"))]
    assert [said in text for text in found] == ([True] if said else [])


@pytest.mark.parametrize("holds", [True, False])
def test_a_lock_that_a_killed_worker_left_is_told_where_nothing_else_is_held(holds: bool) -> None:
    """Where everything is held the daemon takes it away with its own release, and says why that has to wait."""
    left = replace(STAGED, key_locked=True)
    told = dict(reasons(Situation(staged=left, holds=holds)))
    assert ("locked-key" in told) is not holds
    assert holds or f"lashctl release {STAGED.checksum}" in told["locked-key"]
