# SPDX-License-Identifier: Apache-2.0
"""Weekly windows as settings write them: `Mon..Fri 23:00-05:00 Europe/Berlin`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lashd.words.errors import ErrorName, LashdError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
EVERY_DAY = frozenset(range(7))
_WHOLE_DAY = 24 * 60
_TIMES = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,64}(/[A-Za-z0-9_+-]{1,64}){0,3}", re.ASCII)
_EXAMPLE = (
    "Write days, times and perhaps a time zone, such as 'Sat,Sun 02:00-04:30' or 'Mon..Fri 23:00-05:00 Asia/Tokyo'."
)


@dataclass(frozen=True, slots=True)
class Window:
    """Open from minute `start` to before minute `end` of each of `days` (0 is Monday), as a clock on the wall shows it.

    Minutes count from midnight, `start` 0 to 1439, `end` 1 to 1440. With `end` not after `start` the window passes
    midnight and belongs to the day on which it opens. `zone` is an IANA time zone, empty for the host's own.
    """

    days: frozenset[int]
    start: int
    end: int
    zone: str = ""

    @property
    def passes_midnight(self) -> bool:
        return self.end <= self.start

    def shows(self, weekday: int, minute: int) -> bool:
        """Whether it is open when the clock shows `minute` (since midnight) on `weekday`."""
        if not self.passes_midnight:
            return weekday in self.days and self.start <= minute < self.end
        return (weekday in self.days and minute >= self.start) or ((weekday - 1) % 7 in self.days and minute < self.end)

    def __str__(self) -> str:
        days = "daily" if self.days == EVERY_DAY else ",".join(DAYS[day] for day in sorted(self.days))
        return f"{days} {_clock(self.start)}-{_clock(self.end)} {self.zone}".rstrip()


def parse(text: str) -> Window:
    """The window that `text` describes. Raises InvalidArgument with a sentence that quotes it."""
    words = text.split()
    if len(words) not in (2, 3):
        raise _wrong(text, _EXAMPLE)
    days = _days(text, words[0])
    start, end = _times(text, words[1])
    zone = _zone(text, words[2]) if len(words) == 3 else ""
    return Window(days, start, end, zone)


def _days(text: str, word: str) -> frozenset[int]:
    if word == "*" or word.lower() == "daily":
        return EVERY_DAY
    found: set[int] = set()
    for part in word.split(","):
        first, dots, last = part.partition("..")
        begin = _day(text, first)
        stop = _day(text, last) if dots else begin
        # Fri..Mon passes the end of the week.
        found.update((begin + step) % 7 for step in range((stop - begin) % 7 + 1))
    return frozenset(found)


def _day(text: str, word: str) -> int:
    try:
        return DAYS.index(word.capitalize())
    except ValueError:
        raise _wrong(text, f"'{word}' is no day; the days are {', '.join(DAYS)}, and 'daily'.") from None


def _times(text: str, word: str) -> tuple[int, int]:
    match = _TIMES.fullmatch(word)
    if match is None:
        raise _wrong(text, f"'{word}' are no times; write them as in 23:00-05:00.")
    hours, minutes, end_hours, end_minutes = (int(number) for number in match.groups())
    start, end = hours * 60 + minutes, end_hours * 60 + end_minutes
    if minutes > 59 or end_minutes > 59 or start >= _WHOLE_DAY or end > _WHOLE_DAY:
        raise _wrong(text, f"'{word}' names a time that no clock shows.")
    if end == 0:
        end = _WHOLE_DAY  # until midnight
    if start == end:
        raise _wrong(text, "it ends when it begins; for a whole day write 00:00-24:00.")
    return start, end


def _zone(text: str, word: str) -> str:
    # Imported here: most hosts have no window.
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        if _ZONE.fullmatch(word) is None:
            raise ValueError
        ZoneInfo(word)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise _wrong(
            text,
            f"the time zone '{word}' is not known on this host; use a name such as Europe/Berlin, "
            "and see that the host's time zone data is installed.",
        ) from None
    return word


def _wrong(text: str, why: str) -> LashdError:
    return LashdError(ErrorName.INVALID_ARGUMENT, f"'{text}' is not a weekly window: {why}")


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
