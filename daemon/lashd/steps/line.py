# SPDX-License-Identifier: Apache-2.0
"""When one more image may be fetched at the same time. Pure: told the time and the bytes, it answers yes or no.

Small images spend their time in round trips, so many of them share the line. Large ones that share it would all end at
the same moment, and the line would idle while the CPU unpacks them: a few at a time fill it as well, and one is
unpacked while the next is fetched. Where each connection has a limit of its own, more of them do bring more: that is
tried out, and kept for as long as it helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# So many large images at first: while one begins, or waits for the store's lock, the other keeps the line busy.
FEW = 2
# What is under way must keep the line busy for so many seconds, until the next image's first byte ...
AHEAD_SECONDS = 2.0
# ... and never be less than this many bytes.
AHEAD_BYTES = 32 * 1024 * 1024
# A rate is measured over so many seconds, after so many in which those that were added began.
SETTLE_SECONDS = 0.5
MEASURE_SECONDS = 1.5
# More connections are worth it if each one added brings at least this part of what one brought on average before.
WORTH = 0.5
# After a trial that did not help, seconds until the next one.
TRY_AGAIN_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """One image on the line: bytes still to come."""

    outstanding: int


class Line:
    """The line that all transfers of a pull share; at most `most` on it, at most `unpacking` being unpacked."""

    def __init__(self, most: int, unpacking: int) -> None:
        self._most = most
        self._unpacking = unpacking
        self._few = min(FEW, most)
        self._rate = 0.0  # bytes a second, as measured last
        self._tried_from: tuple[int, float] | None = None  # while a trial runs: how many before, and the rate then
        self._next_trial = 0.0
        # Where the measurement that is under way begins: time, and bytes as soon as it has begun.
        self._since: tuple[float, int | None] | None = None

    def has_room(self, loads: Sequence[Load], unpacking: int) -> bool:
        """Whether one more image may go on the line, beside `loads` and so many that are being unpacked."""
        if len(loads) >= self._most or unpacking >= self._unpacking:
            return False
        if len(loads) < self._few:
            return True
        return sum(load.outstanding for load in loads) < max(AHEAD_BYTES, self._rate * AHEAD_SECONDS)

    def look(self, now: float, received: int, loads: Sequence[Load]) -> None:
        """Take note: `received` bytes have come in all since the start, at `now` (seconds of any steady clock)."""
        if len(loads) < self._few:
            # A rate says nothing of the line while not as many are at work as may be.
            self._since = None
        elif self._since is None:
            self._since = now + SETTLE_SECONDS, None
        elif now >= self._since[0] and self._since[1] is None:
            self._since = now, received
        elif self._since[1] is not None and now - self._since[0] >= MEASURE_SECONDS:
            self._rate = (received - self._since[1]) / (now - self._since[0])
            self._since = None
            self._judge(now)

    def _judge(self, now: float) -> None:
        if self._tried_from is not None:
            few, rate = self._tried_from
            self._tried_from = None
            if self._rate < rate * (1 + WORTH * (self._few - few) / few):
                self._few = few
                self._next_trial = now + TRY_AGAIN_SECONDS
        if self._few < self._most and now >= self._next_trial:
            self._tried_from = self._few, self._rate
            self._few = min(2 * self._few, self._most)
