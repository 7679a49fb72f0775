# SPDX-License-Identifier: Apache-2.0
"""The decision table: what is released, and what is held and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.steps.decide import Decision, at_shutdown, decide, unread
from lashd.words.model import BadEntry, BoundImage, Deployment, Discovery, ImageState, Order, Record, RecordedImage
from lashd.words.reference import Reference

DIGEST = f"sha256:{'1' * 64}"
FLOATING = BoundImage("agent.container", "quay.io/edge/agent:v1", Reference("quay.io", "edge/agent", "v1"))
PINNED = BoundImage("db.image", f"quay.io/edge/db@{DIGEST}", Reference("quay.io", "edge/db", "", DIGEST))
BAD = BadEntry("web.container", "The unit file names no image.")
BOTH = Record(
    "key", None, tuple(RecordedImage(str(each.reference), DIGEST, "2" * 64) for each in (FLOATING, PINNED)), 1
)
PINNED_ONLY = Record("key", None, BOTH.images[1:], 1)
EMPTY = Record("key", None, (), 1)

P, U, M = ImageState.PRESENT, ImageState.UNVERIFIED, ImageState.MISSING
A, D = FLOATING.unit, PINNED.unit


@pytest.mark.parametrize(
    ("images", "bad", "record", "states", "codes"),
    [
        # nothing is bound
        ((), (), None, {}, []),
        ((), (), EMPTY, {}, []),
        # everything is present
        ((FLOATING, PINNED), (), BOTH, {A: P, D: P}, []),
        ((FLOATING, PINNED), (), None, {A: P, D: P}, []),
        # a bad entry holds, whatever the others are
        ((), (BAD,), None, {}, ["bad-entry"]),
        ((FLOATING,), (BAD,), BOTH, {A: P}, ["bad-entry"]),
        ((FLOATING,), (BAD,), BOTH, {A: M}, ["bad-entry", "missing"]),
        # each state but present holds
        ((FLOATING,), (), BOTH, {A: U}, ["unverified"]),
        ((FLOATING,), (), None, {A: U}, ["unverified"]),
        ((FLOATING,), (), BOTH, {A: M}, ["missing"]),
        ((FLOATING,), (), BOTH, {A: ImageState.INCOMPLETE}, ["incomplete"]),
        ((FLOATING,), (), BOTH, {A: ImageState.DRIFTED}, ["drifted"]),
        ((FLOATING,), (), BOTH, {A: ImageState.PULLING}, ["pulling"]),
        ((FLOATING,), (), BOTH, {A: ImageState.FAILED}, ["failed"]),
        ((FLOATING,), (), BOTH, {A: ImageState.INVALID}, ["invalid"]),
        ((FLOATING, PINNED), (), BOTH, {A: P, D: M}, ["missing"]),
        ((FLOATING, PINNED), (), BOTH, {A: M, D: M}, ["missing", "missing"]),
        # unknown is not present
        ((FLOATING, PINNED), (), BOTH, {A: P}, ["unknown"]),
        ((FLOATING,), (), None, {}, ["unknown"]),
        ((FLOATING,), (), BOTH, {"other.container": P}, ["unknown"]),
        # a record that does not say what a floating name is to mean
        ((FLOATING, PINNED), (), PINNED_ONLY, {A: P, D: P}, ["unrecorded"]),
        ((FLOATING,), (), EMPTY, {A: P}, ["unrecorded"]),
        # a pinned reference says it itself
        ((PINNED,), (), EMPTY, {D: P}, []),
        # a state of something that is not bound is of no interest
        ((PINNED,), (), None, {D: P, "old.container": M}, []),
    ],
)
def test_the_table(
    images: tuple[BoundImage, ...],
    bad: tuple[BadEntry, ...],
    record: Record | None,
    states: dict[str, ImageState],
    codes: list[str],
) -> None:
    decision = decide(Discovery(images, bad), record, states)
    assert [code for code, _ in decision.reasons] == codes
    assert decision.release is (not codes)
    for _, sentence in decision.reasons:
        assert sentence.endswith(".")
        assert any(unit in sentence for unit in (A, D, BAD.unit)), "the unit is named"


@given(st.dictionaries(st.sampled_from([A, D]), st.sampled_from(ImageState)), st.sampled_from([None, BOTH, EMPTY]))
def test_release_means_that_every_image_is_present(states: dict[str, ImageState], record: Record | None) -> None:
    decision = decide(Discovery((FLOATING, PINNED)), record, states)
    if decision.release:
        assert states == {A: P, D: P}
    assert decision.release is (decision == Decision(True))


@pytest.mark.parametrize("state", [state for state in ImageState if state is not P])
def test_every_state_has_its_sentence(state: ImageState) -> None:
    (reason,) = decide(Discovery((FLOATING,)), None, {A: state}).reasons
    assert reason[0] == state.value
    assert "quay.io/edge/agent:v1" in reason[1]


# ---- at shutdown ----

STAGED = Deployment("os", "a" * 64, 0, Path("/nowhere"), digest=DIGEST)
HOLD = Order(STAGED.key, DIGEST, True, 7, "not today", 1)
LET = replace(HOLD, hold=False)
# For another deployment, and for the same one made from another image.
OTHERS = (replace(LET, deployment="b" * 64 + ".0"), replace(LET, digest=f"sha256:{'2' * 64}"), replace(LET, digest=""))
YES, NO = Decision(True), Decision(False, (("missing", "It is not there."),))


@pytest.mark.parametrize(
    ("seen", "order", "policy", "release", "codes"),
    [
        (YES, None, "hold", True, []),
        (NO, None, "hold", False, ["missing"]),
        (NO, None, "warn", True, ["missing"]),
        (NO, None, "off", True, ["missing"]),
        (NO, LET, "hold", True, ["missing", "ordered"]),
        (YES, LET, "hold", True, ["ordered"]),
        (YES, HOLD, "hold", False, ["ordered"]),
        (YES, HOLD, "warn", False, ["ordered"]),
        (YES, HOLD, "off", False, ["ordered"]),
        *((NO, other, "hold", False, ["missing"]) for other in OTHERS),
        *((YES, replace(other, hold=True), "hold", True, []) for other in OTHERS),
    ],
)
def test_the_table_at_shutdown(
    seen: Decision, order: Order | None, policy: Literal["hold", "warn", "off"], release: bool, codes: list[str]
) -> None:
    decision = at_shutdown(STAGED, seen, order, policy)
    assert (decision.release, [code for code, _ in decision.reasons]) == (release, codes)
    for foreign in (False, True):
        for key in (False, True):
            if foreign or key:
                deployment = replace(STAGED, foreign_lock=foreign, key_locked=key)
                decision = at_shutdown(deployment, seen, order, policy)
                assert not decision.release
                assert decision.reasons[-1][0] == ("foreign-lock" if foreign else "locked-key")
    assert not at_shutdown(replace(STAGED, digest=None), NO, LET, "hold").release
    assert at_shutdown(replace(STAGED, digest=None), NO, replace(LET, digest=""), "hold").release


@given(
    st.builds(Deployment, st.just("os"), st.just("a" * 64), st.just(0), st.just(Path("/")), foreign_lock=st.booleans()),
    st.sampled_from([YES, NO]),
    st.none() | st.builds(Order, st.sampled_from([STAGED.key, "b.0"]), st.sampled_from(["", DIGEST]), st.booleans(),
                          st.integers(0), st.text(), st.integers(0)),
    st.sampled_from(["hold", "warn", "off"]),
    st.booleans(),
)  # fmt: skip
def test_nothing_passes_without_a_ground(deployment, seen, order, policy, key) -> None:
    decision = at_shutdown(replace(deployment, key_locked=key), seen, order, policy)
    concerned = order is not None and (order.deployment, order.digest) == (deployment.key, deployment.digest or "")
    if decision.release:
        assert not deployment.foreign_lock
        assert not key
        assert not (concerned and order.hold)
        assert seen.release or policy != "hold" or concerned
    else:
        assert decision.reasons
    assert all(sentence.endswith(".") for _, sentence in decision.reasons)


def test_an_order_to_hold_is_good_for_the_same_content_staged_again() -> None:
    again = replace(STAGED, serial=STAGED.serial + 1)
    assert not at_shutdown(again, YES, HOLD, "hold").release
    assert not at_shutdown(again, NO, LET, "hold").release


# ---- bootc's composefs backend ----


def test_what_nobody_has_read() -> None:
    staged = replace(STAGED, checksum="c3" * 64)
    seen = unread(staged)
    ((code, sentence),) = seen.reasons
    assert (seen.release, code) == (False, "unread")
    assert f"'/usr/lib/lashd/gate release {staged.checksum}'" in sentence
    assert 'policy = "warn"' in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(("id", "command"), [("c3" * 64, "bootc upgrade"), ("c3" * 32, "ostree admin")])
def test_who_has_locked_it_and_what_takes_that_away(id: str, command: str) -> None:
    locked = replace(STAGED, checksum=id, foreign_lock=True)
    ((code, sentence),) = at_shutdown(locked, YES, LET, "off").reasons
    assert code == "foreign-lock"
    assert f"'{command}" in sentence
