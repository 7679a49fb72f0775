# SPDX-License-Identifier: Apache-2.0
"""What is remembered about reboots: in /run what somebody asked for, below the state directory what must be told after.

Two small JSON files, each replaced whole. What cannot be read counts as not there.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from lashd.words import files
from lashd.words.errors import ErrorName, LashdError

_LIMIT = 64 * 1024
_T = TypeVar("_T", "Asked", "Kept")


@dataclass(frozen=True, slots=True)
class Request:
    """A reboot that somebody asked for and that has to wait. `when` is `window` or `ready`."""

    when: str
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
        asked = _read(self._asked_file, Asked)
        # /run outlives a soft reboot, and so does the kernel's id of the boot: what was asked for then is checked.
        self.asked = asked if asked.boot == boot else Asked(boot)
        self.kept = _read(self._kept_file, Kept)

    def ask(self, asked: Asked) -> None:
        if asked != self.asked:
            _write(self._asked_file, asked)
            self.asked = asked

    def keep(self, kept: Kept) -> None:
        """Durable when this returns."""
        if kept != self.kept:
            _write(self._kept_file, kept)
            self.kept = kept


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return TypeAdapter(kind).validate_json(files.read_small(path, _LIMIT))
    except (OSError, ValueError):
        return kind()


def _write(path: Path, value: Asked | Kept) -> None:
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            files.sync_directory(path.parent.parent)
        files.write_durably(path, json.dumps(asdict(value), indent=1).encode() + b"\n", mode=0o600)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise LashdError(
            ErrorName.NO_SPACE if full else ErrorName.INTERNAL,
            f"The file {path} could not be written: {error.strerror}.",
        ) from error
