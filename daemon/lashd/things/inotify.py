# SPDX-License-Identifier: Apache-2.0
"""Tells when something in a few directories changes; they need not exist yet, and may be replaced.

Linux's inotify watches inodes, not paths. So for each directory every directory on the way to it is watched as well,
for the one name in it that leads on, symbolic links included; whenever one of those names changes, the way is walked
anew. What inotify cannot see (a mount that covers a directory, its own limits) is left to whoever calls `renew` now
and then.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

# After the first event nothing is read for so long (seconds): what belongs together is told together.
SETTLE_SECONDS = 0.02
_READ = 64 * 1024
_LINKS = 40
_TRIES = 8

_HEADER = struct.Struct("iIII")
_CLOSE_WRITE, _ATTRIB = 0x8, 0x4
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_UNMOUNT, _OVERFLOW, _IGNORED = 0x2000, 0x4000, 0x8000
_ONLYDIR = 0x1000000
_NAMES = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
# Not IN_MODIFY: whoever writes a file closes it or moves it into place, and one that is written for minutes would wake
# us for every block.
_CONTENT = _NAMES | _CLOSE_WRITE | _ATTRIB

# A directory that went between being found and being watched.
_RACES = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

_libc = ctypes.CDLL(None, use_errno=True)

_Key = TypeVar("_Key", str, int)
# Real directory → the names in it that matter, None for all of them.
_Way = dict[str, set[str] | None]


class Watcher:
    """Calls `changed` in the event loop, soon after something in one of `directories` has changed.

    Something: entries appear, go, are renamed, written or have their times set; or the directory itself comes, goes or
    is replaced. Which they are may depend on what there is: then `directories` is asked whenever a name in one of them
    changes. Changes that follow quickly are told once, and a change may be told that was none.
    """

    def __init__(self, directories: Iterable[Path] | Callable[[], Iterable[Path]], changed: Callable[[], None]) -> None:
        if not callable(directories):
            directories = functools.partial(iter, tuple(directories))
        self._directories = directories
        self._changed = changed
        self._descriptor = -1
        self._watches: dict[int, set[str] | None] = {}
        self._settling: asyncio.TimerHandle | None = None
        self._complained = False

    @property
    def works(self) -> bool:
        """Whether changes are told at all; if not, it has to be looked by the clock."""
        return self._descriptor >= 0 and not self._complained

    def start(self) -> None:
        """Begin to watch. Never fails: without inotify nothing is told, and the log says so."""
        self.renew()

    def close(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1
        self._watches.clear()

    def renew(self) -> None:
        """Walk every way anew, for what inotify does not tell; and begin if that was not possible before."""
        if self._descriptor < 0:
            descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if descriptor < 0:
                self._complain(ctypes.get_errno())
                return
            self._descriptor = descriptor
            asyncio.get_running_loop().add_reader(descriptor, self._readable)
        self._walk()

    # -- events -----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        # Not read before it has settled: until then the kernel keeps and joins the events.
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._descriptor)
        self._settling = loop.call_later(SETTLE_SECONDS, self._settled)

    def _settled(self) -> None:
        self._settling = None
        # Whatever happens from here on is told again.
        asyncio.get_running_loop().add_reader(self._descriptor, self._readable)
        way = matters = False
        for watch, mask, name in self._events():
            if mask & _OVERFLOW:
                way = matters = True
            elif watch not in self._watches:
                continue  # of a watch that was taken away since
            elif mask & (_DELETE_SELF | _MOVE_SELF | _UNMOUNT | _IGNORED):
                way = matters = True
                if mask & _IGNORED:
                    del self._watches[watch]
            else:
                names = self._watches[watch]
                matters |= names is None or name in names
                # The name may be that of a directory that is on its way further down.
                way |= bool(mask & (_NAMES)) and (names is None or name in names)
        if way:
            self._walk()
        if matters:
            self._changed()

    def _events(self) -> Iterator[tuple[int, int, str]]:
        while True:
            try:
                data = os.read(self._descriptor, _READ)
            except (BlockingIOError, InterruptedError):
                return
            at = 0
            while at < len(data):
                watch, mask, _cookie, length = _HEADER.unpack_from(data, at)
                at += _HEADER.size
                name = data[at : at + length].rstrip(b"\0")
                at += length
                yield watch, mask, os.fsdecode(name)

    # -- watches ----------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        """Watch what there is now. What changes after a way was found as it had been watched is an event."""
        for _ in range(_TRIES):
            wanted: dict[int, set[str] | None] = {}
            # Ends last: one directory may be reached in two ways, and the later mask is the one that counts.
            ways = sorted(self._ways().items(), key=lambda way: way[1] is None)
            numbers = [self._add(directory, _CONTENT if names is None else _NAMES) for directory, names in ways]
            for number, (_, names) in zip(numbers, ways, strict=True):
                if number >= 0:
                    _join(wanted, number, names)
            failed = {-number for number in numbers if number < 0}
            same = wanted == self._watches and not failed & _RACES
            for watch in self._watches.keys() - wanted.keys():
                _libc.inotify_rm_watch(self._descriptor, watch)
            self._watches = wanted
            if same:
                self._complain(max(failed, default=0))
                return
        # Somebody changes the way faster than it can be walked: later again.
        if self._settling is None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self._settling = asyncio.get_running_loop().call_later(10 * SETTLE_SECONDS, self._again)

    def _again(self) -> None:
        self._settled()
        self._walk()
        self._changed()

    def _ways(self) -> _Way:
        ways: _Way = {}
        for directory in self._directories():
            for place, name in way_to(directory):
                _join(ways, place, None if name is None else {name})
        return ways

    def _add(self, directory: str, mask: int) -> int:
        """The number of the watch, or that of the error, negative."""
        watch = int(_libc.inotify_add_watch(self._descriptor, os.fsencode(directory), mask | _ONLYDIR))
        return watch if watch >= 0 else -ctypes.get_errno()

    def _complain(self, number: int) -> None:
        if number and not self._complained:
            log.warning("Changes are noticed late, by looking now and then: inotify fails: %s", os.strerror(number))
        self._complained = bool(number)


def way_to(directory: Path) -> list[tuple[str, str | None]]:
    """The real directories on the way to `directory`, each with the name in it that leads on; None: it is the end.

    It ends early where something is missing or no directory.
    """
    way: list[tuple[str, str | None]] = []
    place, links = Path("/"), 0
    ahead = list(directory.absolute().parts[1:])
    while ahead:
        name = ahead.pop(0)
        if name == "..":
            place = place.parent
            continue
        way.append((str(place), name))
        path = place / name
        try:
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) and links < _LINKS:
                links += 1
                target = path.readlink()
                place = Path("/") if target.is_absolute() else place
                ahead = [part for part in target.parts if part != "/"] + ahead
                continue
        except OSError:
            return way
        if not stat.S_ISDIR(mode):
            return way
        place = path
    return [*way, (str(place), None)]


def _join(ways: dict[_Key, set[str] | None], key: _Key, names: set[str] | None) -> None:
    known = ways.get(key, set())
    ways[key] = None if names is None or known is None else known | names
