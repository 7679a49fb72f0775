# SPDX-License-Identifier: Apache-2.0
"""Reads files of a root filesystem that somebody else made, without ever leaving it and without ever waiting.

Links are followed here, as if the root were `/`, and the kernel opens what has none left on the way (openat2), so
neither an absolute link nor `..` leads out. A file is looked at before it is opened: opening a FIFO could wait for
ever, and opening a device does something. What is read is bounded.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

FILE_LIMIT = 1024 * 1024  # bytes; no unit or configuration file comes near
LINK_LIMIT = 40  # as the kernel's own
# What may be spent on one root, in units of about a quarter of a microsecond. A root with a thousand bound units needs
# less than half of it; one that was made to waste time is given up in less than a second.
BUDGET = 3_000_000

_SYS_OPENAT2 = 437  # the same number on every architecture that matters here
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_IN_ROOT = 0x10
_RESOLVE = _RESOLVE_IN_ROOT | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
# The kernel gives up when a directory is renamed while it walks; it asks to be asked again.
_ATTEMPTS = 32

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_OTHER_KINDS = (
    (stat.S_ISDIR, "is a directory"),
    (stat.S_ISFIFO, "is a FIFO"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
    (stat.S_ISLNK, "is a symbolic link"),
)

_REASONS = {
    errno.ENOENT: "does not exist in this root",
    errno.ELOOP: "is a symbolic link that leads in a circle",
    errno.ENOTDIR: "does not exist in this root: part of its path is not a directory",
    errno.ENAMETOOLONG: "has a name that is too long",
}


class Unreadable(Exception):
    """A file that cannot be used. `why` completes a sentence that begins with the file's name: `is a directory`.

    `number` is the errno where there is one.
    """

    def __init__(self, why: str, number: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.number = number

    @property
    def absent(self) -> bool:
        """Nothing is there that could be read as a file; programs that look in several places go on to the next."""
        return self.number in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR)


class TooMuch(Exception):
    """The files of this root take too much work to be read in good time; nothing is told of what depends on them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory. `link` and `directory` are of the entry itself; a link is not followed."""

    name: str
    link: bool
    directory: bool


class Root:
    """A directory that is `/` for everything that is read through it. Paths are written with or without a leading `/`.

    `/etc` is special: a deployment that has not been installed yet has its files in `usr/etc`. So where nothing is in
    `etc`, `usr/etc` stands for it, also in the middle of a chain of links. Where something is, only that counts: what
    somebody removed there is gone. What is staged is another matter: lashd.things.mergedroot. `/var` is that of the
    stateroot, where the root is a deployment in a sysroot.

    Whatever reads may raise TooMuch: a root is read at shutdown as well, and must not take that up.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError when `path` is not a directory that can be entered."""
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._var = _var_of(path)
        self._etc_is_used: bool | None = None
        self._links: dict[str, str | None] = {}
        self._left = BUDGET

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in (self._fd, self._var):
            if descriptor >= 0:
                os.close(descriptor)
        self._fd = self._var = -1

    def spend(self, cost: int) -> None:
        """Take `cost` from what may be spent on this root; for whoever works on what was read. Raises TooMuch."""
        self._left -= cost
        if self._left < 0:
            raise TooMuch

    def read(self, path: str, limit: int = FILE_LIMIT) -> bytes:
        """The content of a regular file of at most `limit` bytes. Raises Unreadable."""
        found = self._open(path, os.O_PATH)
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                raise _not_a_file(status.st_mode)
            if status.st_size > limit:
                raise _too_large(limit)
            # Through /proc this is the very file that was looked at, whatever has happened to its name.
            file = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(error) from error
        finally:
            os.close(found)
        try:
            return _read_all(file, limit)
        except OSError as error:
            raise unreadable(error) from error
        finally:
            os.close(file)

    def read_text(self, path: str, limit: int = FILE_LIMIT, *, price: int = 0) -> str:
        """The content of a regular text file: UTF-8, without a NUL. Raises Unreadable.

        `price` is what each byte costs whoever works on it (`spend`).
        """
        content = self.read(path, limit)
        self.spend(len(content) // 32 + price * len(content))
        if b"\0" in content:
            raise Unreadable("contains a NUL byte")
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise Unreadable("is not valid UTF-8") from error

    def real_path(self, path: str) -> str:
        """Where `path` ends when links are followed: a path in this root, without leading `/`. Raises Unreadable."""
        try:
            return self._find(path, follow_last=True)
        except OSError as error:
            raise unreadable(error) from error

    def link_target(self, path: str) -> str:
        """What the symbolic link `path` says. Raises Unreadable, also when it is not a link."""
        found = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink("", dir_fd=found)
        except OSError as error:
            raise unreadable(error) from error
        finally:
            os.close(found)

    def list(self, path: str) -> Iterator[Entry]:
        """The entries of the directory `path`, in no order. Raises Unreadable."""
        directory = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self.spend(4)
                    yield Entry(entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False))
        except OSError as error:
            raise unreadable(error) from error
        finally:
            os.close(directory)

    def is_directory(self, path: str) -> bool:
        try:
            os.close(self._open(path, os.O_PATH | os.O_DIRECTORY))
        except Unreadable:
            return False
        return True

    def _open(self, path: str, flags: int) -> int:
        try:
            return self._openat2(self._find(path, follow_last=not flags & os.O_NOFOLLOW), flags)
        except OSError as error:
            raise unreadable(error) from error

    def _openat2(self, place: str, flags: int) -> int:
        """Open `place`, on the way to which there are no links."""
        if self._var >= 0 and (place == "var" or place.startswith("var/")):
            return openat2(self._var, place[4:], flags)
        return openat2(self._fd, place, flags)

    def _find(self, path: str, *, follow_last: bool) -> str:
        """`path` without links. Step by step, because of the places where the kernel would look elsewhere.

        Raises OSError for what is not there; whether the last part is there is not looked at unless it is followed.
        """
        done: list[str] = []
        to_do = _parts(path)
        links = 0
        while to_do:
            part = to_do.popleft()
            self.spend(2 + len(done) // 4)
            if part == "..":
                del done[-1:]
                continue
            if part == ".":
                os.close(self._openat2("/".join(done), os.O_PATH | os.O_DIRECTORY))
                continue
            if part == "etc" and not done and not self._uses_etc():
                done += ("usr", "etc")
                continue
            done.append(part)
            target = self._link("/".join(done), last=not to_do) if to_do or follow_last else None
            if target is None:
                continue
            links += 1
            if links > LINK_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            del done[0 if target.startswith("/") else -1 :]
            to_do.extendleft(reversed(_parts(target)))
        return "/".join(done)

    def _link(self, place: str, *, last: bool) -> str | None:
        """What the link `place` says, None when it is none. Directories on the way are looked at once."""
        if last:
            return self._target(place)
        if place not in self._links:
            self._links[place] = self._target(place)
        return self._links[place]

    def _uses_etc(self) -> bool:
        """An empty `etc` is none: so ostree sees it, too."""
        if self._etc_is_used is None:
            try:
                etc = self._openat2("etc", os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                self._etc_is_used = False
            else:
                try:
                    with os.scandir(etc) as entries:
                        self._etc_is_used = next(entries, None) is not None
                finally:
                    os.close(etc)
        return self._etc_is_used

    def _target(self, place: str) -> str | None:
        found = self._openat2(place, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink("", dir_fd=found) if stat.S_ISLNK(os.fstat(found).st_mode) else None
        finally:
            os.close(found)


def openat2(directory: int, path: str, flags: int) -> int:
    """Open `path` as if the directory with that descriptor were `/`; no link may be on the way.

    Raises OSError: ELOOP where a link was all the same.
    """
    name = os.fsencode(path) or b"."
    if b"\0" in name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    for _ in range(_ATTEMPTS):
        opened: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(directory), name, how, ctypes.c_size_t(len(how))
        )
        if opened >= 0:
            return opened
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), path)


def _parts(path: str) -> deque[str]:
    """The names in `path`; with a `.` at the end where it says that it ends in a directory."""
    parts = deque(part for part in path.split("/") if part not in ("", "."))
    if path.endswith(("/", "/.")):
        parts.append(".")
    return parts


def _var_of(root: Path) -> int:
    """The /var of an ostree deployment is its stateroot's, two directories up. A descriptor, or -1."""
    if root.parent.name == "deploy":
        with contextlib.suppress(OSError):
            return os.open(root.parent.parent / "var", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return -1


def _read_all(file: int, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := os.read(file, min(limit + 1 - size, 65536)):
        parts.append(part)
        size += len(part)
        if size > limit:  # it has grown since it was looked at
            raise _too_large(limit)
    return b"".join(parts)


def _not_a_file(mode: int) -> Unreadable:
    why = next((text for test, text in _OTHER_KINDS if test(mode)), "is not a regular file")
    return Unreadable(why, errno.EISDIR if stat.S_ISDIR(mode) else 0)


def _too_large(limit: int) -> Unreadable:
    return Unreadable(f"is larger than {limit} bytes")


def unreadable(error: OSError) -> Unreadable:
    """What `error` means for the file that it is about."""
    number = error.errno or 0
    return Unreadable(_REASONS.get(number) or f"cannot be read ({os.strerror(number)})", number)
