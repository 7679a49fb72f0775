# SPDX-License-Identifier: Apache-2.0
"""Hosts of bootc's composefs backend: the note of what is staged, and the flag in it that keeps it from booting.

There is no lock file. The flag `finalization_locked` is part of the JSON note that bootc writes, as a whole and
without any lock: `upgrade` with false, `upgrade --download-only` with true, `--from-downloaded` with false again. So
whatever is done here is done to the very file that was read, or not at all, and all of its other content stays.

A flag is ours when the file that it is in has the modification time that only lashd gives, as with ostree's lock file:
whoever else writes the note, even with the same bytes, gives it another one.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lashd.words import files, shape
from lashd.words.config import Settings
from lashd.words.text import one_line

STAGED = "staged-deployment"
# The fs-verity digest of the deployment's EROFS image, SHA-512 (bootc's) or SHA-256.
DEPLOYMENT = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")

_TIME_NS = 1_000_000_000  # of a note whose flag lashd has set: one second after the epoch
_LIMIT = 64 * 1024
_NAME = "finalization_locked"
_KEY = b'"finalization_locked"'
_FLAG = re.compile(rb'"finalization_locked"([ \t\r\n]*:[ \t\r\n]*)(true|false)')
_TRIES = 8
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_libc = ctypes.CDLL(None, use_errno=True)

# What tells whether a file is the very same, and was not written since.
_Stamp = tuple[int, int, int, int]


class Unreadable(ValueError):
    """The note is there and cannot be understood; the message, a part of a sentence, says why."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is staged. `locked` is bootc's flag, None where the note has none; `ours` says that lashd has set it.

    A flag that is not `changeable` stands in the file in a way that no single word of it decides about; it stays.
    """

    deployment: str
    locked: bool | None
    changeable: bool
    ours: bool
    content: bytes
    stamp: _Stamp

    @property
    def foreign(self) -> bool:
        """Whether somebody else than lashd forbids that it is finalised."""
        return bool(self.locked) and not self.ours

    def with_flag(self, locked: bool) -> bytes:
        """The note's content with the flag as given, and all else as it is."""
        return _changed(self.content, locked) if self.changeable else self.content


@dataclass(frozen=True, slots=True)
class _Staged:
    depl_id: str
    finalization_locked: bool | None = None


def is_host(settings: Settings) -> bool:
    """Whether the running system was booted by bootc's composefs backend, and not from ostree."""
    root = settings.paths.root
    if (root / "run/ostree-booted").exists():
        return False
    if (settings.paths.composefs_run / STAGED).exists():
        return True
    try:
        words = (root / "proc/cmdline").read_text("ascii", "replace").split()
    except OSError:
        return False
    # An ostree host may have a composefs root as well, but is not told of it in this way.
    return any(word.startswith("composefs=") for word in words)


def is_id(checksum: str) -> bool:
    """Whether that of a deployment is an id of bootc's (SHA-512) and no commit of ostree's."""
    return len(checksum) == 128


def unlocking(checksum: str) -> str:
    """The command that takes somebody else's lock from the staged deployment, in quotes."""
    return f"'{'bootc upgrade --from-downloaded' if is_id(checksum) else 'ostree admin lock-finalization --unlock'}'"


def letting_through(deployment: str) -> str:
    """How an operator lets `deployment` through although its content cannot be read: a whole sentence."""
    return (
        f"To let it boot as it is, have it staged and run '/usr/lib/lashd/gate release {deployment}' before the "
        "reboot; or, for all that will be staged, set 'policy = \"warn\"' in the section [gate] of the settings."
    )


def refusal(settings: Settings, why: str = "") -> str:
    """That lashd cannot manage such a host, what becomes of what is staged there, and what to do.

    `why` is a whole sentence.
    """
    sentence = (
        f"This host was booted by bootc's composefs backend, and lashd cannot manage it. {why}{' ' if why else ''}What "
        "is staged there is held back at shutdown all the same, because nobody can tell whether its bound images are "
        "there."
    )
    try:
        note = read_note(settings.paths.composefs_run)
    except Unreadable as error:
        return f"{sentence} {settings.paths.composefs_run / STAGED} cannot be understood: {error}."
    if note is None:
        return f"{sentence} Nothing is staged now. {letting_through('ID')}"
    holder = "somebody else than lashd" if note.foreign else "lashd" if note.ours else "nobody before the shutdown"
    return f"{sentence} Staged is {note.deployment}, held by {holder}. {letting_through(note.deployment)}"


def read_note(run: Path) -> Note | None:
    """What is staged; None when nothing is. Raises Unreadable."""
    try:
        content, stamp = _read(run / STAGED)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unreadable(one_line(str(error))) from None
    try:
        staged = shape.from_json(_Staged, content)
    except shape.Misfit as error:
        raise Unreadable(one_line(str(error))) from None
    if not DEPLOYMENT.fullmatch(staged.depl_id):
        raise Unreadable(f"'{one_line(staged.depl_id)}' is not the id of a deployment")
    locked, changeable = staged.finalization_locked, _changeable(content)
    ours = locked is True and changeable and stamp[2] == _TIME_NS
    return Note(staged.depl_id, locked, changeable, ours, content, stamp)


def hold(run: Path) -> Note | None:
    """Set the flag of whatever is staged, unless it is set; what is staged then, None when nothing is.

    Unless it is `locked` in the answer, it cannot be held. Raises Unreadable, or OSError when it cannot be written.
    """
    for _ in range(_TRIES):
        note = read_note(run)
        if note is None or note.locked or not note.changeable:
            return note
        _replace(run, note.stamp, note.with_flag(True), ours=True)
    return read_note(run)


def release(run: Path, note: Note) -> bool:
    """Take our flag away if `note` is still what is staged, and the flag in it is ours; whether that was so.

    Raises OSError.
    """
    return note.ours and _replace(run, note.stamp, note.with_flag(False), ours=False)


def _changeable(content: bytes) -> bool:
    """Whether the flag can be changed where it stands, so that nothing but the flag means something else then."""
    if content.count(_KEY) != 1 or len(found := _FLAG.findall(content)) != 1:
        return False
    other = found[0][1] != b"true"
    try:
        return bool(_value(_changed(content, other)) == _value(content) | {_NAME: other})
    except (ValueError, RecursionError):
        return False


def _changed(content: bytes, locked: bool) -> bytes:
    return _FLAG.sub(lambda found: _KEY + found[1] + (b"true" if locked else b"false"), content)


def _value(content: bytes) -> dict[str, Any]:
    value = json.loads(content)
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> tuple[bytes, _Stamp]:
    """Content and stamp, of the same file. Raises OSError, ValueError."""
    for _ in range(_TRIES):
        before = _stamp(path)
        content = files.read_small(path, _LIMIT)
        if _stamp(path) == before:
            return content, before
    raise ValueError("it changes again and again while it is read")


def _replace(run: Path, before: _Stamp, content: bytes, *, ours: bool) -> bool:
    """Put `content` in the place of the note that `before` is the stamp of; when another one is there it stays."""
    path, partial = run / STAGED, run / f".{STAGED}.lashd.{os.getpid()}"
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
        if ours:
            os.utime(partial, ns=(_TIME_NS, _TIME_NS))
        expected, put = before, _stamp(partial)
        if _stamp(path) != before:
            return False
        # The two change places, so that what was there is not lost should it be another one all the same. Then it goes
        # back, and what comes out must be what was put there; if not, that is newer still.
        while (out := _exchanged(partial, path)) != expected:
            expected, put = put, out
        return expected == before
    except FileNotFoundError:
        return False  # nothing is staged any more
    finally:
        partial.unlink(missing_ok=True)


def _exchanged(partial: Path, path: Path) -> _Stamp:
    """Let the two change places; the stamp of what `path` was. Raises OSError."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(partial), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(path))
    return _stamp(partial)


def _stamp(path: Path) -> _Stamp:
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
