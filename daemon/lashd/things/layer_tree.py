# SPDX-License-Identifier: Apache-2.0
"""The files of one layer, as an archive names them, reached so that nothing outside the layer can be."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

CHUNK = 1024 * 1024
_LINKS = 40  # as many as the kernel follows


class Damaged(Exception):
    """A file of the layer is not what it was: the end of a sentence that begins with the file."""


class Unverifiable(Exception):
    """The layer cannot be put together again: the reason, as a clause."""


class Tree:
    """The files below one directory, reached one name at a time so that no link leads out of it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = -1
        # Entries of one directory follow each other in an archive.
        self._last: tuple[tuple[str, ...], int] = ((), -1)

    def __enter__(self) -> Tree:
        self._top = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        os.close(self._top)

    def look(self, name: str) -> os.stat_result:
        """lstat(2) of `name`. Raises Damaged when it is not there."""
        parent, base = self._find(name)
        try:
            return os.stat(base, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            raise Damaged(f"{name!r} is not there ({error.strerror})") from error

    def link_target(self, name: str) -> str:
        parent, base = self._find(name)
        return os.readlink(base, dir_fd=parent)

    def content(self, name: str, size: int) -> Iterator[bytes]:
        """The `size` bytes of the regular file `name`."""
        parent, base = self._find(name)
        try:
            # A FIFO would make this wait for a writer, a device would do who knows what: neither is opened to read.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            if not stat.S_ISREG(os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode):
                raise Damaged(f"{name!r} is not a regular file")
            descriptor = os.open(base, flags, dir_fd=parent)
        except OSError as error:
            raise Damaged(f"{name!r} cannot be read ({error.strerror})") from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                raise Damaged(f"{name!r} has {found.st_size} bytes, not {size}")
            left = size
            while left:
                data = os.read(descriptor, min(left, CHUNK))
                if not data:
                    raise Damaged(f"{name!r} ends too early")
                left -= len(data)
                yield data
        finally:
            os.close(descriptor)

    def _find(self, name: str) -> tuple[int, str]:
        """A descriptor of the directory that holds `name`, and the name in there; ours to close, not the caller's."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise Unverifiable(f"the name {name!r} leads upwards")
        base = parts.pop() if parts else "."
        above = tuple(parts)
        if not above:
            return self._top, base
        if self._last[0] != above:
            self._forget()
            self._last = (above, self._open(above, name))
        return self._last[1], base

    def _open(self, above: tuple[str, ...], name: str) -> int:
        try:
            try:
                return self._walk(above)
            except NotADirectoryError:
                # An archive may reach a directory through a link that it made itself.
                return self._walk(self._without_links(above))
        except OSError as error:
            raise Damaged(f"the directory of {name!r} is not there ({error.strerror})") from error

    def _walk(self, names: Sequence[str]) -> int:
        descriptor = os.dup(self._top)
        for name in names:
            try:
                below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def _without_links(self, names: Sequence[str]) -> list[str]:
        """The way to the directory `names` without links, as a process sees it whose root is the tree."""
        ahead, way, links = list(reversed(names)), list[str](), 0
        while ahead:
            name = ahead.pop()
            if name == "..":
                del way[-1:]
                continue
            if name in ("", "."):
                continue
            parent = self._walk(way)
            try:
                target = os.readlink(name, dir_fd=parent)
            except OSError:
                way.append(name)
                continue
            finally:
                os.close(parent)
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            way = [] if target.startswith("/") else way
            ahead.extend(reversed(target.split("/")))
        return way

    def _forget(self) -> None:
        if self._last[1] >= 0:
            os.close(self._last[1])
        self._last = ((), -1)
