# SPDX-License-Identifier: Apache-2.0
"""Progress only grows, whatever the steps report."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lashd.running.tally import Tally
from lashd.words.progress import Event, ItemProgress, Stage, StageStarted

SIZES = st.integers(0, 10**9)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(StageStarted, st.sampled_from(list(Stage)), bytes_total=SIZES, items_total=st.integers(0, 5)),
    st.builds(
        ItemProgress,
        st.sampled_from("abc"),
        st.sampled_from(["waiting", "fetching", "retrying", "done", "failed"]),
        SIZES,
        SIZES,
        st.integers(1, 5),
    ),
)


@given(st.lists(EVENTS, max_size=40))
def test_never_backwards(events: list[Event]) -> None:
    tally, seen = Tally(), (0.0, 0)
    for event in events:
        tally.count(event)
        assert seen <= (tally.fraction, tally.bytes_done)
        assert seen[1] <= tally.bytes_done <= tally.bytes_total
        assert 0.0 <= tally.fraction <= 1.0
        seen = (tally.fraction, tally.bytes_done)
    tally.complete()
    assert tally.fraction == 1.0


def test_weighted_by_bytes_and_room_kept_for_the_bound_images() -> None:
    tally = Tally()
    tally.count(StageStarted(Stage.STAGE, bytes_total=100, items_total=2))
    tally.count(ItemProgress("base", "done", 90, 90))
    assert 0.44 < tally.fraction < 0.46
    tally.count(ItemProgress("top", "done", 10, 10))
    assert tally.fraction == 0.5
    tally.count(StageStarted(Stage.PULL, bytes_total=1000, items_total=1))
    assert (tally.items_total, tally.items_done, tally.bytes_total) == (1, 0, 1100)
    tally.count(ItemProgress("agent", "fetching", 500, 1000))
    assert 0.7 < tally.fraction < 0.76
    tally.count(ItemProgress("agent", "retrying", 0, 1000, attempt=2))
    assert (tally.bytes_done, tally.attempt) == (600, 2)
