# SPDX-License-Identifier: Apache-2.0
"""The decision table: what is released, and what is held and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.steps.decide import Decision, decide
from lashd.words.model import BadEntry, BoundImage, Discovery, ImageState, Record, RecordedImage
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
