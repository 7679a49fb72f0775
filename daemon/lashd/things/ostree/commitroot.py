# SPDX-License-Identifier: Apache-2.0
"""A commit's content as a root to be read, without a checkout: straight from the repository's objects.

In the repository of a sysroot (mode `bare`) a file object is the very file, link or not, so only directories have to be
looked up. Nothing is written, no lock is taken and no process started; objects never change once they are there.
"""

from __future__ import annotations

import configparser
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lashd.things.gvariant import parse
from lashd.things.ostree.facts import COMMIT_TYPE, read
from lashd.things.rootfs import Entry, Root, TooMuch, openat2, unreadable

_CONTENTS = 6  # where a commit has the checksum of its root directory
_TREE_TYPE = "(a(say)a(sayay))"


class _Directory(NamedTuple):
    """Name → checksum of the object: of a file's content, of a directory's list."""

    files: dict[str, str]
    directories: dict[str, str]


class CommitRoot(Root):
    """See Root. As nothing has been deployed yet, `usr/etc` stands for `etc`, and `var` is what the image has in it.

    What a directory that was opened shows by its descriptor is not its content: `list` does that.
    """

    def __init__(self, repository: Path, commit: str) -> None:
        """Raises TooMuch; OSError when the repository is of another mode than `bare`, or has not all of the commit."""
        if not _is_bare(repository):
            raise OSError(errno.EOPNOTSUPP, "its files are not kept as they are", os.fspath(repository))
        self._repository = repository
        self._known: dict[str, _Directory] = {}
        super().__init__(repository / "objects")
        try:
            self._top = parse(COMMIT_TYPE, self._object(commit, "commit"))[_CONTENTS].hex()
            self._directory(self._top)
        except TooMuch:
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            raise OSError(errno.ENOENT, f"it has no whole commit {commit}", os.fspath(repository)) from error

    def list(self, path: str) -> Iterator[Entry]:
        try:
            directory = self._directory_at(self.real_path(path))
            for name, checksum in directory.files.items():
                self.spend(4)
                status = os.stat(_place(checksum), dir_fd=self._fd, follow_symlinks=False)
                yield Entry(name, stat.S_ISLNK(status.st_mode), False)
            for name in directory.directories:
                self.spend(4)
                yield Entry(name, False, True)
        except OSError as error:
            raise unreadable(error) from error

    def _uses_etc(self) -> bool:
        return False

    def _openat2(self, place: str, flags: int) -> int:
        above, _, name = place.rpartition("/")
        directory = self._directory_at(above)
        if not name or name in directory.directories:
            # Any directory does: what is in this one is told by `list`.
            return openat2(self._fd, "", flags)
        if name not in directory.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        return openat2(self._fd, _place(directory.files[name]), flags)

    def _directory_at(self, place: str) -> _Directory:
        """The directory `place`, on the way to which there are no links. Raises OSError."""
        found = self._directory(self._top)
        for name in place.split("/") if place else ():
            if name not in found.directories:
                number = errno.ENOTDIR if name in found.files else errno.ENOENT
                raise OSError(number, os.strerror(number), place)
            found = self._directory(found.directories[name])
        return found

    def _directory(self, checksum: str) -> _Directory:
        known = self._known.get(checksum)
        if known is None:
            raw = self._object(checksum, "dirtree")
            self.spend(len(raw))
            try:
                files, directories = parse(_TREE_TYPE, raw)
            except ValueError as error:
                raise OSError(errno.EIO, os.strerror(errno.EIO), checksum) from error
            known = self._known[checksum] = _Directory(
                {name: content.hex() for name, content in files},
                {name: tree.hex() for name, tree, _ in directories},
            )
        return known

    def _object(self, checksum: str, kind: str) -> bytes:
        if not re.fullmatch("[0-9a-f]{64}", checksum):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), checksum)
        return read(self._repository / "objects" / _place(checksum, kind))


def _place(checksum: str, kind: str = "file") -> str:
    return f"{checksum[:2]}/{checksum[2:]}.{kind}"


def _is_bare(repository: Path) -> bool:
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read_string(read(repository / "config").decode("utf-8", "replace"))
    except configparser.Error:
        return False
    return config.get("core", "mode", fallback="") == "bare"
