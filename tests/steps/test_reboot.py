# SPDX-License-Identifier: Apache-2.0
"""What to do next about a reboot: the table, and every combination of facts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from lashd.steps.reboot import ATTEMPTS, Facts, Manner, Right, Step, Wanted, choose_manner, decide

# All that has to hold does.
GO = Facts(
    wanted=Wanted.WINDOW,
    pending=True,
    ready=True,
    window_open=True,
    inhibitors=(),
    shared=True,
    right=Right.HELD,
)


@pytest.mark.parametrize(
    ("change", "step", "codes"),
    [
        ({}, Step.START, []),
        ({"shared": False, "right": Right.NONE}, Step.START, []),
        ({"wanted": Wanted.NOW, "window_open": False}, Step.START, []),
        ({"wanted": Wanted.READY, "window_open": False}, Step.START, []),
        ({"inhibitors": None}, Step.LOOK, []),
        ({"inhibitors": None, "right": Right.NONE}, Step.LOOK, []),
        ({"right": Right.NONE}, Step.TAKE, []),
        ({"right": Right.PERHAPS}, Step.TAKE, []),
        ({"right": Right.NONE, "tried": True, "refusal": "No."}, Step.WAIT, ["fleetlock"]),
        ({"right": Right.PERHAPS, "tried": True, "refusal": "No."}, Step.WAIT, ["fleetlock"]),
        ({"right": Right.NONE, "window_open": False}, Step.WAIT, ["outside-window"]),
        ({"right": Right.NONE, "inhibitors": ("A.", "B.")}, Step.WAIT, ["inhibited", "inhibited"]),
        ({"right": Right.NONE, "ready": False}, Step.WAIT, []),
        ({"right": Right.NONE, "pending": False}, Step.WAIT, []),
        ({"right": Right.NONE, "wanted": Wanted.NEVER}, Step.WAIT, []),
        ({"right": Right.NONE, "failure": "It failed."}, Step.WAIT, ["reboot-failed"]),
        ({"right": Right.NONE, "wasted": ATTEMPTS}, Step.WAIT, ["reboot-without-effect"]),
        ({"right": Right.NONE, "wasted": ATTEMPTS - 1}, Step.TAKE, []),
        ({"wasted": ATTEMPTS, "by_person": True}, Step.START, []),
        # Held, and of no use any more.
        ({"window_open": False}, Step.GIVE_BACK, ["outside-window"]),
        ({"inhibitors": ("A.",)}, Step.GIVE_BACK, ["inhibited"]),
        ({"ready": False}, Step.GIVE_BACK, []),
        ({"pending": False}, Step.GIVE_BACK, []),
        ({"wanted": Wanted.NEVER}, Step.GIVE_BACK, []),
        ({"wanted": Wanted.NEVER, "right": Right.PERHAPS}, Step.GIVE_BACK, []),
        ({"wanted": Wanted.NEVER, "right": Right.PERHAPS, "tried": True}, Step.WAIT, []),
        ({"failure": "It failed."}, Step.GIVE_BACK, ["reboot-failed"]),
        # Under way: nothing more is done, and above all the right is not given back.
        ({"started": True}, Step.WAIT, []),
        ({"started": True, "ready": False, "wanted": Wanted.NEVER}, Step.WAIT, []),
    ],
)
def test_table(change: dict[str, object], step: Step, codes: list[str]) -> None:
    decision = decide(replace(GO, **change))
    assert decision.step is step
    assert [code for code, _ in decision.reasons] == codes
    assert all(sentence.endswith(".") for _, sentence in decision.reasons)


def test_every_combination() -> None:
    for (
        wanted,
        by_person,
        pending,
        ready,
        window_open,
        inhibitors,
        shared,
        right,
        tried,
        failure,
        wasted,
        started,
    ) in product(
        *(Wanted, (False, True), (False, True), (False, True), (False, True), (None, (), ("A.",)), (False, True)),
        *(Right, (False, True), ("", "It failed."), (0, ATTEMPTS), (False, True)),
    ):
        facts = Facts(
            wanted,
            by_person,
            pending,
            ready,
            window_open,
            "",
            inhibitors,
            shared,
            right,
            "",
            tried,
            failure,
            wasted,
            started,
        )
        decision = decide(facts)
        may = wanted is not Wanted.NEVER and pending and ready and not failure and not started
        may = may and (wanted is not Wanted.WINDOW or window_open) and (by_person or not wasted)
        if decision.step is Step.START:
            assert may
            assert inhibitors == ()
            assert right is Right.HELD or not shared
        if decision.step in (Step.LOOK, Step.TAKE):
            assert may, "nobody is bothered for a reboot that cannot be"
        if decision.step is Step.TAKE:
            assert inhibitors == (), "the right is asked for last"
            assert not tried
        if decision.step is Step.WAIT and right is not Right.NONE and not started:
            assert tried, "a right that is of no use is given back"
        if decision.step is Step.WAIT and may:
            assert decision.reasons, "whoever wants a reboot is told why there is none"


@pytest.mark.parametrize(
    ("wish", "finalised", "ostree", "failed", "soft", "words"),
    [
        (False, True, (2025, 9), False, False, ""),
        (True, True, (2025, 3), False, True, ""),
        (True, True, (2026, 1), False, True, ""),
        (True, True, (2025, 2), False, False, "ostree (2025.2) cannot prepare a soft reboot, which needs 2025.3"),
        (True, True, (), False, False, "ostree (of unknown version) cannot"),
        (True, False, (2025, 9), False, False, "finalised at shutdown only"),
        (True, True, (2025, 9), True, False, "The soft reboot failed; it is an ordinary one."),
    ],
)
def test_manner(wish: bool, finalised: bool, ostree: tuple[int, ...], failed: bool, soft: bool, words: str) -> None:
    manner = choose_manner(wish=wish, finalised=finalised, ostree=ostree, failed_before=failed)
    assert manner.soft is soft
    assert words in manner.hindrance
    assert bool(manner.hindrance) is bool(words)
    assert manner == Manner(True) if soft else True
