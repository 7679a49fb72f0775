# SPDX-License-Identifier: Apache-2.0
"""Durable files: what has been written is on disk, whole, or the old content is still there."""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def write_durably(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `content`: new file, fsync, rename, fsync of the directory. Raises OSError."""
    partial = path.with_name(f".{path.name}.new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_small(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; never waits for a FIFO, never follows a link.

    Raises OSError, or ValueError when it is no such file.
    """
    return read_regular(path, limit, flags=os.O_NOFOLLOW)[0]


def read_regular(
    path: Path | str, limit: int, *, flags: int = 0, directory: int | None = None
) -> tuple[bytes, os.stat_result]:
    """As `read_small`, but follows links unless `flags` (O_NOFOLLOW) say otherwise; with what fstat(2) says of it.

    `directory`: the descriptor that a relative `path` starts from.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise ValueError("it is no regular file of a sane size")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError("it grows beyond a sane size")
        return content, status
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames and removals in the directory `path` durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """Write back the whole filesystem that holds `path` (syncfs(2)). Blocks: call it in a thread. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(descriptor)
