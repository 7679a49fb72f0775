# SPDX-License-Identifier: Apache-2.0
"""Disk images: sparse ext4 files."""

from __future__ import annotations

from pathlib import Path

from demo.shell import call

SIZE = 4 << 30  # bytes; only what is used takes space


def create(path: Path, size: int = SIZE) -> None:
    """An empty ext4 filesystem of `size` bytes in the sparse file `path`."""
    with path.open("wb") as file:
        file.truncate(size)
    call(["mkfs.ext4", "-q", "-F", "-O", "^metadata_csum_seed", "-E", "lazy_itable_init=1,nodiscard", path])


def copy(source: Path, target: Path) -> None:
    """A copy of a disk image, sparse, sharing its blocks where the filesystem can."""
    call(["cp", "--sparse=always", "--reflink=auto", source, target])


def loops(path: Path) -> list[str]:
    """The loop devices that stand on `path`."""
    return call(["losetup", "--noheadings", "--output=NAME", "--associated", path]).split()
