# SPDX-License-Identifier: Apache-2.0
"""No layer has two owners at a time, nobody waits longer than for the layer it needs, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.steps.schedule import Schedule, delay, most_at_once
from lashd.words.config import PullSettings
from lashd.words.errors import ErrorName, LashdError

SIZES = {f"L{number}": 10 ** (number % 4) for number in range(6)}
GRAPHS = st.lists(st.frozensets(st.sampled_from(sorted(SIZES))), min_size=1, max_size=7)


def scheduled(*images: str) -> Schedule[str]:
    """Images named by their layers, one letter each; upper-case layers are large."""
    schedule: Schedule[str] = Schedule()
    for layers in images:
        schedule.add(layers, {layer: 1000 if layer.isupper() else 1 for layer in layers})
    return schedule


@pytest.mark.parametrize(
    ("images", "first"),
    [
        (["A", "b"], "A"),  # nothing shared: the largest
        (["sB", "sc", "D"], "sc"),  # shared first, by the one with the least of its own
        (["sB", "D", "sc", "tE", "tf", "tg"], "tf"),  # what frees most
        (["SB", "sc", "Sd", "se"], "Sd"),  # by bytes, not by count
        ([""], ""),  # only its name is missing
    ],
)
def test_the_best_one_comes_first(images: list[str], first: str) -> None:
    assert scheduled(*images).next() == first


def test_an_image_waits_for_the_layer_and_not_for_its_owner() -> None:
    schedule = scheduled("sA", "sb")
    assert schedule.start("sb") == {"s", "b"}
    assert schedule.next() is None
    assert schedule.blocking == {"s"}
    schedule.arrived(["s"])
    assert schedule.next() == "sA"
    assert schedule.start("sA") == {"A"}
    assert schedule.blocking == frozenset()


def test_what_a_failed_owner_did_not_bring_is_free_again() -> None:
    schedule = scheduled("stA", "st")
    schedule.start("st")
    schedule.arrived(["s"])
    assert schedule.next() is None
    schedule.leave("st")
    assert schedule.start("stA") == {"t", "A"}
    schedule.add("st", {"s": 1, "t": 1})
    assert schedule.next() is None
    assert schedule.waiting == 1


@given(GRAPHS, st.data())
def test_any_sharing_any_order(graph: list[frozenset[str]], data: st.DataObject) -> None:
    """Random images, random arrivals, ends and failures: each layer is fetched once for each time it is given up."""
    schedule: Schedule[int] = Schedule()
    fetched: Counter[str] = Counter()
    given_up: Counter[str] = Counter()
    here: set[str] = set()
    running: dict[int, frozenset[str]] = {}
    failures = 5
    for key, layers in enumerate(graph):
        schedule.add(key, {layer: SIZES[layer] for layer in layers})
    finished: set[int] = set()
    while len(finished) < len(graph):
        key = schedule.next()
        if key is None:
            assert running, "all wait, and nobody works"
            under_way = {layer for claim in running.values() for layer in claim} - here
            waiting = set(range(len(graph))) - finished - running.keys()
            assert all(graph[each] & under_way for each in waiting)
        actions = [
            *(["end"] if running else []),
            *(["start"] if key is not None else []),
            *(["arrive", "fail"] if running else []),
        ]
        action = data.draw(st.sampled_from(actions))
        if action == "start":
            assert key is not None
            claim = schedule.start(key)
            assert claim == graph[key] - here
            assert not any(claim & (other - here) for other in running.values())
            fetched.update(claim)
            running[key] = claim
            continue
        chosen = data.draw(st.sampled_from(sorted(running)))
        if action == "arrive":
            some = frozenset(sorted(running[chosen] - here)[:1])
            schedule.arrived(some)
            here |= some
        elif action == "end":
            schedule.arrived(running[chosen])
            here |= running.pop(chosen)
            schedule.leave(chosen)
            finished.add(chosen)
        elif failures:
            failures -= 1
            given_up.update(running.pop(chosen) - here)
            schedule.leave(chosen)
            schedule.add(chosen, {layer: SIZES[layer] for layer in graph[chosen]})
    for layer in here:
        assert fetched[layer] == 1 + given_up[layer]


@pytest.mark.parametrize(
    ("attempt", "told", "least", "most"),
    [(1, None, 1, 2), (2, None, 2, 4), (4, None, 5, 10), (400, None, 5, 10), (1, 7.0, 7, 7), (4, 1.0, 5, 10)],
)
def test_waits_grow_with_jitter_up_to_a_limit(attempt: int, told: float | None, least: float, most: float) -> None:
    settings = PullSettings(backoff_seconds=2.0, backoff_limit_seconds=10.0)
    error = LashdError(ErrorName.PULL_FAILED, retry_after=told)
    waits = {delay(settings, attempt, error) for _ in range(50)}
    assert all(least <= wait <= most for wait in waits)
    assert len(waits) > 1 or told == 7.0


def test_the_settings_decide_how_many_at_once_if_they_say() -> None:
    assert most_at_once(PullSettings(parallel=3)) == 3
    assert 8 <= most_at_once(PullSettings()) <= 32
