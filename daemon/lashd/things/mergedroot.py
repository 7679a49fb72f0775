# SPDX-License-Identifier: Apache-2.0
"""The root of a staged deployment as it will be when it boots: its own files, and below /etc what ostree will merge."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from lashd.things.etcmerge import EtcMerge, Node
from lashd.things.rootfs import Entry, Root, unreadable


def open_root(path: Path, merges: Path | None = None) -> Root:
    """The root `path`; with `merges`, as it will be with the local changes of that deployment. Raises OSError."""
    return Root(path) if merges is None else MergedRoot(path, merges)


class MergedRoot(Root):
    """As Root, but everything may also raise Unmergeable.

    Links lead from the merged /etc into the new root's other files, and from there back into it.
    """

    def __init__(self, path: Path, merges: Path) -> None:
        super().__init__(path)
        try:
            self._etc = EtcMerge(path, merges)
        except OSError:
            super().close()
            raise

    def close(self) -> None:
        self._etc.close()
        super().close()

    def list(self, path: str) -> Iterator[Entry]:
        place = self.real_path(path)
        if not _is_in_etc(place):
            yield from super().list(place)
            return
        try:
            node = self._node(place)
            if not node.directory:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            yield from self._etc.entries(node)
        except OSError as error:
            raise unreadable(error) from error

    def _uses_etc(self) -> bool:
        return True

    def _openat2(self, place: str, flags: int) -> int:
        return self._etc.open(self._node(place), flags) if _is_in_etc(place) else super()._openat2(place, flags)

    def _node(self, place: str) -> Node:
        return self._etc.find(place.removeprefix("etc"))


def _is_in_etc(place: str) -> bool:
    return place == "etc" or place.startswith("etc/")
