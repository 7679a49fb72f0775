# SPDX-License-Identifier: Apache-2.0
"""What a layer's tar becomes: a tree of what it adds and hides, its files already written as objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

Xattrs = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Owner:
    """What a tar entry says of an inode: permission bits, owner, and xattrs sorted by name (no NUL at their end)."""

    mode: int
    uid: int = 0
    gid: int = 0
    xattrs: Xattrs = ()


class Objects(Protocol):
    """Where content goes. Both return the checksum of the file object that was written."""

    def file(self, owner: Owner, size: int, content: Iterable[bytes]) -> str: ...

    def symlink(self, owner: Owner, target: str) -> str: ...


@dataclass(slots=True)
class Folder:
    """A directory; `owner` is None while only its children have been named."""

    owner: Owner | None = None
    children: dict[str, Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A file or symbolic link that has been written as object `checksum`; `link` is where it points."""

    checksum: str
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Whiteout:
    """What is below under this entry's name (without its prefix; all, for the opaque mark) is gone."""


@dataclass(frozen=True, slots=True)
class LowerLink:
    """A hard link to a file that this layer does not have."""

    target: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something ostree cannot hold."""

    what: str


Node = Folder | Leaf | Whiteout | LowerLink | Dropped


def is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
