# SPDX-License-Identifier: Apache-2.0
"""When weekly windows are open.

A window is what a clock on the wall shows. In the night in which the clock is put forward, times that it never shows
are in no window; in the night in which it is put back, a window in the hour that comes twice is open twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

from lashd.words.window import Window, parse

__all__ = ["Window", "next_opening", "now_here", "open_at", "parse"]

LOCAL_TIME = Path("/etc/localtime")
# A clock change may leave a weekly window out once, never twice running.
_HORIZON = timedelta(days=15)
_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
_MINUTES_A_WEEK = 7 * 24 * 60


def now_here() -> datetime:
    """Now, in the host's own time zone as /etc/localtime says it at this moment; in UTC where it says nothing."""
    from zoneinfo import ZoneInfo

    try:
        with LOCAL_TIME.open("rb") as file:
            return datetime.now(ZoneInfo.from_file(file))
    except (OSError, ValueError):
        return datetime.now(UTC)


def open_at(windows: Iterable[Window], now: datetime) -> bool:
    """Whether one of `windows` is open. `now` is aware; its time zone is that of windows that name none."""
    return any(_is_open(window, now.astimezone(_zone(window, now))) for window in windows)


def next_opening(windows: Iterable[Window], now: datetime) -> float | None:
    """When one of `windows` is open next, in seconds since the epoch; `now` itself when one is open.

    None when none of them ever opens.
    """
    found = (_next(window, now.astimezone(UTC), _zone(window, now)) for window in windows)
    return min((each for each in found if each is not None), default=None)


def _zone(window: Window, now: datetime) -> tzinfo:
    if not window.zone:
        assert now.tzinfo is not None, "an aware datetime is needed"
        return now.tzinfo
    from zoneinfo import ZoneInfo

    return ZoneInfo(window.zone)


def _is_open(window: Window, wall: datetime) -> bool:
    return window.shows(wall.weekday(), wall.hour * 60 + wall.minute)


def _next(window: Window, begin: datetime, zone: tzinfo) -> float | None:
    """Between two changes of the clock wall time runs evenly, so each such stretch needs one look."""
    end = begin + _HORIZON
    while begin < end:
        wall = begin.astimezone(zone)
        if _is_open(window, wall):
            return begin.timestamp()
        stop = _steady_until(begin, end, zone)
        opens = begin + _wait(window, wall)
        if opens < stop:
            return opens.timestamp()
        begin = stop
    return None


def _wait(window: Window, wall: datetime) -> timedelta:
    """How long, by an evenly running clock, from `wall` to the next time at which `window` begins."""
    midnight = wall.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    since_monday = wall.replace(tzinfo=None) - midnight + timedelta(days=wall.weekday())
    starts = (timedelta(days=day, minutes=window.start) for day in window.days)
    return min((start - since_monday) % timedelta(minutes=_MINUTES_A_WEEK) for start in starts)


def _steady_until(begin: datetime, end: datetime, zone: tzinfo) -> datetime:
    """The first change of the clock of `zone` after `begin` (both in UTC, to the second), `end` if there is none."""
    offset = begin.astimezone(zone).utcoffset()
    # Changes come on whole seconds: what lies between two of them would be stepped over by halves.
    low = begin.replace(microsecond=0)
    while low < end:
        high = low + _HOUR
        if high.astimezone(zone).utcoffset() != offset:
            while high - low > _SECOND:
                middle = low + timedelta(seconds=(high - low) // _SECOND // 2)
                if middle.astimezone(zone).utcoffset() == offset:
                    low = middle
                else:
                    high = middle
            return min(high, end)
        low = high
    return end
