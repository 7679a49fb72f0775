# SPDX-License-Identifier: Apache-2.0
"""Durable files: replaced whole or not at all, with the syncs that make it so, in their order."""

from __future__ import annotations

import os
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
