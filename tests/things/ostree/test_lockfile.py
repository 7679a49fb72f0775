# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from lashd.things.ostree.lockfile import (
    LOCK,
    STAGED,
    STAGING,
    Lock,
    disown_key,
    key_is_ours,
    own_key,
    read_lock,
    remove_lock,
    write_lock,
)

KEY = "a" * 64 + ".0"
OTHER = "b" * 64 + ".1"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_lock(tmp_path) is None
    for lock in (Lock(KEY), Lock(STAGING), Lock(KEY, ready=True)):
        assert write_lock(tmp_path, lock) == lock == read_lock(tmp_path)
        assert lock.ours
    assert (tmp_path / LOCK).stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    remove_lock(tmp_path)
    remove_lock(tmp_path)
    assert read_lock(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"lashd", b"lashd\n", b"other\nx\n", b"\xff\xfe" * 5000])
def test_what_others_wrote_stays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK).write_bytes(content)
    lock = read_lock(tmp_path)
    assert lock is not None
    assert not lock.ours
    assert not lock.is_for(KEY)
    assert write_lock(tmp_path, Lock(KEY)) == lock
    assert (tmp_path / LOCK).read_bytes() == content
    assert write_lock(tmp_path, Lock(KEY), take_over=True) == Lock(KEY) == read_lock(tmp_path)


def test_whom_it_is_for() -> None:
    assert Lock(KEY).is_for(KEY)
    assert not Lock(KEY).is_for(OTHER)
    assert Lock(STAGING).is_for(KEY)


def test_one_of_ours_that_was_touched_is_somebody_elses(tmp_path) -> None:
    write_lock(tmp_path, Lock(KEY, ready=True))
    os.utime(tmp_path / LOCK)
    assert read_lock(tmp_path) == Lock()
    assert write_lock(tmp_path, Lock(KEY)) == Lock()
    assert read_lock(tmp_path) == Lock()


def test_whose_key_it_is(tmp_path: Path) -> None:
    """Ours is the key in the very file that was staged; whoever changes anything about it puts another one there."""
    assert not key_is_ours(tmp_path)
    disown_key(tmp_path)
    (tmp_path / STAGED).write_bytes(b"a note")
    assert not key_is_ours(tmp_path)
    for _ in range(2):
        own_key(tmp_path)
        assert key_is_ours(tmp_path)
    (tmp_path / "new").write_bytes(b"a note")
    (tmp_path / "new").rename(tmp_path / STAGED)
    assert not key_is_ours(tmp_path)
    own_key(tmp_path)
    assert key_is_ours(tmp_path)
    (tmp_path / STAGED).unlink()
    assert not key_is_ours(tmp_path)
    disown_key(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.write_bytes(b"lashd\n" * 1000)])
def test_what_is_no_such_file_is_somebody_elses_and_not_waited_for(tmp_path: Path, make) -> None:
    make(tmp_path / LOCK)
    assert read_lock(tmp_path) == Lock()
    assert write_lock(tmp_path, Lock(KEY)) == Lock()
    assert read_lock(tmp_path) == Lock()
