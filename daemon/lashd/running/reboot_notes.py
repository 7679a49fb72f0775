# SPDX-License-Identifier: Apache-2.0
"""What is remembered about reboots: in /run what somebody asked for, below the state directory what must be told after.

Two small JSON files, each replaced whole. What cannot be read counts as not there.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lashd.steps.reboot import Wanted
from lashd.words.notes import read_note, write_note

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Request:
    """A reboot that somebody asked for and that has to wait. `when` is `window` or `ready`."""

    when: Wanted
    name: str
    uid: int
    asked: int  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Started:
    """A reboot that is under way: the unit, and the kernel's monotonic clock when it was started."""

    unit: str
    at: float


@dataclass(frozen=True, slots=True)
class Asked:
    """Of this boot only."""

    boot: str = ""
    request: Request | None = None
    started: Started | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A right to reboot that was asked for in boot `boot`, whatever the answer, and not given back since."""

    url: str
    group: str
    id: str
    boot: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Over a reboot. `boots` are those in which a reboot into `target` was started."""

    taken: Taken | None = None
    target: str = ""
    boots: tuple[str, ...] = ()

    def wasted(self, target: str, boot: str) -> int:
        """Reboots into `target` that were started in boots before `boot`, which is not a boot of it."""
        return len(set(self.boots) - {boot}) if target == self.target else 0


class Notes:
    """`boot` is the id of this boot. Writers raise NoSpace or Internal."""

    def __init__(self, run: Path, state: Path, boot: str) -> None:
        self._asked_file = run / "reboot.json"
        self._kept_file = state / "reboot.json"
        self.boot = boot
        asked = _read(self._asked_file, Asked) or Asked()
        # /run outlives a soft reboot, and so does the kernel's id of the boot: what was asked for then is checked.
        self.asked = asked if asked.boot == boot else Asked(boot)
        self.kept = _read(self._kept_file, Kept) or Kept()

    def ask(self, asked: Asked) -> None:
        if asked != self.asked:
            write_note(self._asked_file, asked, mode=0o600)
            self.asked = asked

    def keep(self, kept: Kept) -> None:
        """Durable when this returns."""
        if kept != self.kept:
            write_note(self._kept_file, kept, mode=0o600)
            self.kept = kept


def _read(path: Path, kind: type[_T]) -> _T | None:
    found = read_note(path, kind)
    if found is None and os.path.lexists(path):
        log.warning("%s cannot be understood, so what it says about reboots is forgotten", path)
    return found
