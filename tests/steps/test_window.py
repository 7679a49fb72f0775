# SPDX-License-Identifier: Apache-2.0
"""When windows are open: against a clock that is looked at minute by minute, above all when it is changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lashd.steps import window as step
from lashd.steps.window import Window, next_opening, now_here, open_at, parse

BERLIN = ZoneInfo("Europe/Berlin")  # forward on 2026-03-29 at 02:00, back on 2026-10-25 at 03:00
# Half an hour (Lord Howe), at midnight (Havana, Santiago), never (Tokyo), another half of the year (Santiago).
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana", "America/Santiago", "Asia/Tokyo")
MINUTE = timedelta(minutes=1)


def berlin(text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold)


@pytest.mark.parametrize(
    ("window", "moment", "is_open"),
    [
        ("Mon..Fri 23:00-05:00", berlin("2026-11-20 23:00"), True),  # a Friday
        ("Mon..Fri 23:00-05:00", berlin("2026-11-21 04:59:59"), True),  # the night of Friday
        ("Mon..Fri 23:00-05:00", berlin("2026-11-21 05:00"), False),
        ("Mon..Fri 23:00-05:00", berlin("2026-11-21 23:30"), False),
        ("Mon..Fri 23:00-05:00", berlin("2026-11-23 04:00"), False),  # Monday morning is Sunday's night
        ("Sun 23:00-05:00", berlin("2026-11-23 04:00"), True),
        ("Sat 00:00-24:00", berlin("2026-11-21 23:59:59"), True),
        ("Sat 00:00-24:00", berlin("2026-11-22 00:00"), False),
        ("Sat 12:00-13:00 Asia/Tokyo", berlin("2026-11-21 04:30"), True),
        ("Sat 12:00-13:00 Asia/Tokyo", berlin("2026-11-21 12:30"), False),
        # Begins in the hour that is left out: opens when the clock has been put forward.
        ("Sun 02:30-04:00", berlin("2026-03-29 01:59:59"), False),
        ("Sun 02:30-04:00", berlin("2026-03-29 03:00"), True),
        # Lies in the hour that comes twice: open both times.
        ("Sun 02:15-02:45", berlin("2026-10-25 02:20"), True),
        ("Sun 02:15-02:45", berlin("2026-10-25 02:50"), False),
        ("Sun 02:15-02:45", berlin("2026-10-25 02:10", fold=1), False),
        ("Sun 02:15-02:45", berlin("2026-10-25 02:20", fold=1), True),
    ],
)
def test_open(window: str, moment: datetime, is_open: bool) -> None:
    assert open_at([parse(window)], moment) is is_open
    there = moment.astimezone(UTC)
    assert open_at([parse(window if window.count(" ") == 2 else f"{window} Europe/Berlin")], there) is is_open


@pytest.mark.parametrize(
    ("window", "moment", "opens"),
    [
        ("Sun 02:30-04:00", berlin("2026-03-29 01:00"), berlin("2026-03-29 03:00")),
        # Never shown by the clock in that night: a week later.
        ("Sun 02:15-02:45", berlin("2026-03-29 01:00"), berlin("2026-04-05 02:15")),
        ("Sun 02:15-02:45", berlin("2026-10-25 02:50"), berlin("2026-10-25 02:15", fold=1)),
        # Open when the clock is put back, although its beginning is not shown again.
        ("Sun 01:30-02:30", berlin("2026-10-25 02:40"), berlin("2026-10-25 02:00", fold=1)),
        ("Sun 02:15-02:45", berlin("2026-10-25 02:46", fold=1), berlin("2026-11-01 02:15")),
        ("daily 03:00-04:00", berlin("2026-11-21 03:59:59.5"), berlin("2026-11-21 03:59:59.5")),
        ("daily 03:00-04:00", berlin("2026-11-21 04:00"), berlin("2026-11-22 03:00")),
    ],
)
def test_next(window: str, moment: datetime, opens: datetime) -> None:
    assert next_opening([parse(window)], moment) == opens.timestamp()


def test_the_first_of_several() -> None:
    windows = [parse("Sun 02:00-03:00"), parse("Sat 02:00-03:00 Asia/Tokyo"), parse("Sat 02:00-03:00")]
    assert next_opening(windows, berlin("2026-11-20 12:00")) == berlin("2026-11-20 18:00").timestamp()
    assert next_opening([], berlin("2026-11-20 12:00")) is None
    assert not open_at([], berlin("2026-11-20 12:00"))


@st.composite
def near_a_change(draw: st.DrawFn) -> datetime:
    """Moments, most of them within days of a change of the clock somewhere, in one of ZONES."""
    zone = ZoneInfo(draw(st.sampled_from(ZONES)))
    day = draw(st.sampled_from(["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-05", "2026-09-06"]))
    moment = datetime.fromisoformat(day).replace(tzinfo=UTC)
    moment += timedelta(seconds=draw(st.integers(-3 * 86400, 3 * 86400)), microseconds=draw(st.integers(0, 999_999)))
    return moment.astimezone(zone)


weekly = st.builds(
    Window,
    st.frozensets(st.integers(0, 6), min_size=1, max_size=2),
    st.integers(0, 1439),
    st.integers(1, 1440),
    st.sampled_from(["", *ZONES]),
).filter(lambda window: window.start != window.end)
# Most changes happen at night.
nightly = st.builds(Window, st.just(frozenset({5, 6})), st.integers(0, 200), st.integers(1, 240), st.just("")).filter(
    lambda window: window.start != window.end
)


def shown(window: Window, moment: datetime) -> bool:
    """Brute force: read the clock and say whether the window's words fit what it shows."""
    wall = moment.astimezone(ZoneInfo(window.zone)) if window.zone else moment
    minute, today, yesterday = wall.hour * 60 + wall.minute, wall.weekday(), (wall.weekday() + 6) % 7
    if window.start < window.end:
        return today in window.days and minute in range(window.start, window.end)
    return (today in window.days and minute >= window.start) or (yesterday in window.days and minute < window.end)


def minute_by_minute(windows: list[Window], moment: datetime) -> float | None:
    if any(shown(window, moment) for window in windows):
        return moment.timestamp()
    there = moment.astimezone(UTC).replace(second=0, microsecond=0)
    for _ in range(15 * 24 * 60):
        there += MINUTE
        if any(shown(window, there.astimezone(moment.tzinfo)) for window in windows):
            return there.timestamp()
    return None


@settings(max_examples=60, deadline=None)
@given(st.lists(weekly | nightly, min_size=1, max_size=2), near_a_change())
@example([parse("Sun 02:15-02:45")], berlin("2026-03-29 01:00"))
@example([parse("Sun 00:00-00:30")], datetime(2026, 3, 8, tzinfo=ZoneInfo("America/Havana")) - MINUTE)
def test_is_what_a_clock_shows(windows: list[Window], moment: datetime) -> None:
    assert open_at(windows, moment) is any(shown(window, moment) for window in windows)
    assert next_opening(windows, moment) == minute_by_minute(windows, moment)


@given(weekly | nightly, near_a_change())
def test_opens_when_it_says(window: Window, moment: datetime) -> None:
    opens = next_opening([window], moment)
    assert opens is not None
    assert opens >= moment.timestamp()
    then = datetime.fromtimestamp(opens, moment.tzinfo)
    assert open_at([window], then)
    if opens > moment.timestamp():
        before = then.astimezone(UTC) - timedelta(microseconds=1)  # not by the clock on the wall, which may jump
        assert not open_at([window], before.astimezone(moment.tzinfo))


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(hours=-3), timedelta(hours=3), timedelta(days=4000)])
def test_only_the_time_it_is_now_counts(jump: timedelta) -> None:
    """There is nothing to remember, so a clock that jumps changes nothing but the time."""
    windows = [parse("Sat 02:00-04:00")]
    later = berlin("2026-11-21 03:00") + jump
    open_at(windows, berlin("2026-11-21 03:00"))
    assert open_at(windows, later) is shown(windows[0], later)


def test_the_hosts_own_time_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "LOCAL_TIME", tmp_path / "localtime")
    assert now_here().utcoffset() == timedelta(0)
    (tmp_path / "localtime").symlink_to("/usr/share/zoneinfo/Asia/Tokyo")
    assert now_here().utcoffset() == timedelta(hours=9)
    (tmp_path / "localtime").unlink()
    (tmp_path / "localtime").write_text("rubbish")
    assert now_here().utcoffset() == timedelta(0)
    assert abs(now_here() - datetime.now(timezone(timedelta(hours=3)))) < timedelta(seconds=5)
