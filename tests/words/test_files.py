# SPDX-License-Identifier: Apache-2.0
"""Durable files: replaced whole or not at all, with the syncs that make it so, in their order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lashd.words import files


def test_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "record"
    files.write_durably(path, b"one")
    files.write_durably(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record"]


def test_failure_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record"
    files.write_durably(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record"]


def test_synced_before_and_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it durable: the file before it gets its name, the directory after it."""
    path, seen = tmp_path / "record", []
    sync = os.fsync

    def traced(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", traced)
    files.write_durably(path, b"new")
    assert seen == [(".record.new", False), (tmp_path.name, True)]


def test_sync_filesystem(tmp_path: Path) -> None:
    files.sync_filesystem(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.sync_filesystem(tmp_path / "absent")


@pytest.mark.parametrize("read", [files.read_small, lambda path, limit: files.read_regular(path, limit)[0]])
def test_only_regular_files_of_a_sane_size_are_read(tmp_path: Path, read: Callable[[Path, int], bytes]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read(path, 5) == b"12345"
    os.mkfifo(tmp_path / "fifo")
    for odd, limit in ((path, 4), (tmp_path / "fifo", 5), (tmp_path, 5), (Path("/dev/null"), 5)):
        with pytest.raises(ValueError, match="no regular file"):
            read(odd, limit)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none", 5)


def test_links_are_followed_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    content, status = files.read_regular(tmp_path / "link", 5)
    assert (content, status.st_ino) == (b"1", (tmp_path / "file").stat().st_ino)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert files.read_regular("file", 5, directory=directory)[0] == b"1"
        with pytest.raises(OSError, match="symbolic links"):
            files.read_regular("link", 5, flags=os.O_NOFOLLOW, directory=directory)
    finally:
        os.close(directory)
    with pytest.raises(OSError, match="symbolic links"):
        files.read_small(tmp_path / "link", 5)
