# SPDX-License-Identifier: Apache-2.0
"""How many share the line, played through with lines of several kinds: no clock, no bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from lashd.steps.line import Line, Load

MB = 1_000_000
STEP = 0.05


def play(line: Line, sizes: Sequence[int], share: Callable[[int], float], begin: float = 0.5) -> tuple[float, int]:
    """Fetch images of these sizes over a line that gives each of n connections `share(n)` bytes a second.

    Each image waits `begin` seconds for its first byte. Returns the seconds that it took, and the most at one time.
    """
    now, received, most = 0.0, 0.0, 0
    waiting = list(sizes)
    active: list[list[float]] = []  # [bytes still to come, seconds until the first]
    while waiting or active:
        while waiting and line.has_room([Load(round(left)) for left, _ in active], 0):
            active.append([waiting.pop(0), begin])
        line.look(now, round(received), [Load(round(left)) for left, _ in active])
        most = max(most, len(active))
        flowing = [each for each in active if each[1] <= 0]
        for each in active:
            each[1] -= STEP
        for each in flowing:
            part = min(each[0], share(len(flowing)) * STEP)
            each[0] -= part
            received += part
        active = [each for each in active if each[0] >= 1]
        now += STEP
        assert now < 1000
    return now, most


def shared(rate: float) -> Callable[[int], float]:
    return lambda connections: rate / connections


def test_small_images_fill_all_the_places() -> None:
    _, most = play(Line(16, 4), [1 * MB] * 60, shared(125 * MB))
    assert most == 16


def test_large_images_are_fetched_a_few_at_a_time() -> None:
    seconds, most = play(Line(16, 4), [40 * MB] * 16, shared(25 * MB))
    assert most <= 4
    assert seconds < 1.05 * 16 * 40 / 25


def test_a_fast_line_does_not_idle_between_large_images() -> None:
    seconds, _ = play(Line(16, 4), [40 * MB] * 64, shared(250 * MB))
    assert seconds < 1.25 * 64 * 40 / 250


def test_more_share_the_line_where_each_connection_is_slow() -> None:
    seconds, most = play(Line(8, 4), [50 * MB] * 32, lambda connections: 10 * MB)
    assert most == 8
    assert seconds < 1.4 * 32 * 50 / 80


def test_a_line_that_is_full_is_tried_again_but_seldom() -> None:
    line, big = Line(16, 4), Load(10**12)
    count, trials, received = 2, [], 0.0
    for step in range(round(60 / STEP)):
        now = step * STEP
        room = line.has_room([big] * 2, 0)
        if room and count == 2:
            trials.append(now)
        count = 4 if room else 2
        received += 25 * MB * STEP
        line.look(now, round(received), [big] * count)
    assert len(trials) == 3
    assert all(later - earlier >= 20 for earlier, later in pairwise(trials))


@pytest.mark.parametrize(
    ("loads", "unpacking", "room"),
    [
        ([], 0, True),
        ([Load(10**9)], 0, True),
        ([Load(10**9)] * 2, 0, False),
        ([Load(MB)] * 2, 0, True),
        ([Load(MB)] * 3, 0, False),
        ([], 2, False),
    ],
)
def test_room(loads: list[Load], unpacking: int, room: bool) -> None:
    assert Line(3, 2).has_room(loads, unpacking) is room


def test_one_at_a_time_if_told_so() -> None:
    assert play(Line(1, 4), [40 * MB, MB, MB], shared(25 * MB))[1] == 1
