# SPDX-License-Identifier: Apache-2.0
"""bootc's note of what is staged: what is understood, and that a flag is only ever changed by who may change it."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things import composefs
from lashd.things.composefs import STAGED, Unreadable, hold, read_note, release
from lashd.words.config import PathSettings, Settings

ID, OTHER = "a1" * 64, "b2" * 64
OURS_NS = 1_000_000_000


def text(deployment: str = ID, *, locked: bool = False) -> bytes:
    """As bootc writes it."""
    return json.dumps({"depl_id": deployment, "finalization_locked": locked}, separators=(",", ":")).encode()


def write(run: Path, content: bytes) -> None:
    """As bootc does: a new file in the place of the old one."""
    (run / "bootc").write_bytes(content)
    (run / "bootc").rename(run / STAGED)


def same(path: Path) -> tuple[int, int, int]:
    """What a file that nobody has touched keeps; reading it changes its other time."""
    found = path.lstat()
    return found.st_ino, found.st_mtime_ns, found.st_mode


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


ODD = (
    b'\n{ "new": {"of": ["bootc", "\xc3\xa9\\""]},\r\n\t"finalization_locked" : false,"depl_id":"%s", "n": 1e3}\n\n'
    % ID.encode()
)


@pytest.mark.parametrize("content", [text(), text(OTHER[:64]), ODD], ids=["bootc's", "of SHA-256", "with more in it"])
def test_held_and_released_only_the_flag_changes(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, content)
    (tmp_path / STAGED).chmod(0o604)
    held = hold(tmp_path)
    assert held is not None
    assert (held.locked, held.ours, held.foreign) == (True, True, False)
    assert (tmp_path / STAGED).read_bytes() == content.replace(b"false", b"true")
    assert hold(tmp_path) == held, "once is enough"
    assert (tmp_path / STAGED).stat().st_mode & 0o777 == 0o604
    assert release(tmp_path, held)
    assert (tmp_path / STAGED).read_bytes() == content
    assert names(tmp_path) == [STAGED]
    released = read_note(tmp_path)
    assert released is not None
    assert (released.locked, released.ours) == (False, False)
    assert not release(tmp_path, held), "it is another file now"


def test_nothing_is_staged(tmp_path: Path) -> None:
    for run in (tmp_path, tmp_path / "nowhere"):
        assert read_note(run) is None
        assert hold(run) is None
    assert names(tmp_path) == []


def by_hand(run: Path) -> None:
    (run / STAGED).write_bytes((run / STAGED).read_bytes())


@pytest.mark.parametrize(
    "how",
    [
        lambda run: write(run, text(locked=True)),  # bootc upgrade --download-only; the very bytes that we write
        lambda run: (run / STAGED).write_bytes(text(locked=True)),
        lambda run: (run / STAGED).touch(),  # how a person holds by hand
        by_hand,
    ],
    ids=["bootc", "in place", "touched", "written as it was"],
)
def test_what_somebody_else_locked_stays_locked(tmp_path: Path, how: Callable[[Path], None]) -> None:
    write(tmp_path, text())
    ours = hold(tmp_path)
    how(tmp_path)
    before = same(tmp_path / STAGED)
    note = hold(tmp_path)
    assert note is not None
    assert ours is not None
    assert (note.locked, note.ours, note.foreign) == (True, False, True)
    assert not release(tmp_path, note)
    assert not release(tmp_path, ours)
    assert same(tmp_path / STAGED) == before
    assert note.content == text(locked=True)


NOT_CHANGEABLE = {
    "no flag": b'{"depl_id":"%s"}' % ID.encode(),
    "null": b'{"depl_id":"%s","finalization_locked":null}' % ID.encode(),
    "twice": b'{"depl_id":"%s","finalization_locked":false,"finalization_locked":false}' % ID.encode(),
    "in another object, too": b'{"depl_id":"%s","finalization_locked":false,"x":{"finalization_locked":false}}'
    % ID.encode(),
    "only in another object": b'{"depl_id":"%s","x":{"finalization_locked":false}}' % ID.encode(),
    "escaped": b'{"depl_id":"%s","finalization\\u005flocked":false}' % ID.encode(),
    "as a value": b'{"depl_id":"%s","x":"finalization_locked"}' % ID.encode(),
}


@pytest.mark.parametrize("content", NOT_CHANGEABLE.values(), ids=NOT_CHANGEABLE)
def test_what_cannot_be_held_is_left_alone(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, content)
    before = same(tmp_path / STAGED)
    note = hold(tmp_path)
    assert note is not None
    assert (note.deployment, bool(note.locked), note.changeable) == (ID, False, False)
    assert note.with_flag(True) == content
    assert not release(tmp_path, note)
    assert (same(tmp_path / STAGED), (tmp_path / STAGED).read_bytes()) == (before, content)


DAMAGED = {
    "empty": b"",
    "cut": text()[:-1],
    "no object": b"[]",
    "no id": b'{"finalization_locked":false}',
    "a short id": text("a1" * 10),
    "a path": text("../" * 20 + "etc"),
    "a word": text().replace(b"false", b'"no"'),
    "more behind it": text() + text(),
    "deep": b'{"x":' + b"[" * 30000 + b"]" * 30000 + b"}",
    "NUL": text() + b"\0",
    "too large": text().replace(b"}", b',"x":"' + b"y" * 70000 + b'"}'),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_what_is_not_understood_is_left_alone(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, content)
    before = same(tmp_path / STAGED)
    for look in (read_note, hold):
        with pytest.raises(Unreadable):
            look(tmp_path)
    assert (same(tmp_path / STAGED), names(tmp_path)) == (before, [STAGED])


def test_no_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(text())
    (tmp_path / STAGED).symlink_to("elsewhere")
    with pytest.raises(Unreadable):
        hold(tmp_path)
    (tmp_path / STAGED).unlink()
    os.mkfifo(tmp_path / STAGED)
    with pytest.raises(Unreadable):
        hold(tmp_path)
    assert (tmp_path / "elsewhere").read_bytes() == text()


# ---- others write meanwhile ----

# What somebody may do to the note at any moment: stage, lock, unlock (a new file each time), drop it.
_DEEDS = st.one_of(
    st.none(),
    st.builds(lambda deployment, locked: text(deployment, locked=locked), st.sampled_from([ID, OTHER]), st.booleans()),
)


@contextmanager
def meanwhile(run: Path, deeds: Iterator[bytes | None], done: list[bytes | None]) -> Iterator[None]:
    """Let somebody do one of `deeds` before each step that hold and release take; `done` lists them."""

    def before(step: Callable[..., object]) -> Callable[..., object]:
        def stepped(*arguments: object) -> object:
            for deed in itertools.islice(deeds, 1):
                if deed != b"":  # else he is idle
                    done.append(deed)
                    write(run, deed) if deed is not None else (run / STAGED).unlink(missing_ok=True)
            return step(*arguments)

        return stepped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_stamp", "_exchanged", "_read"):
            patch.setattr(composefs, name, before(getattr(composefs, name)))
        yield


@given(st.lists(st.one_of(st.just(b""), _DEEDS), max_size=14), st.booleans(), st.booleans())
def test_the_last_word_is_theirs(deeds: list[bytes | None], locked: bool, releases: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        first = text(locked=locked)
        write(run, first)
        held = hold(run) if releases else None
        done: list[bytes | None] = []
        with meanwhile(run, iter(deeds), done), suppress(Unreadable):  # it never stood still
            if held is None:
                hold(run)
            elif release(run, held) and not done:
                assert (run / STAGED).read_bytes() == first
        last = done[-1] if done else first
        assert set(names(run)) <= {STAGED}
        if last is None:
            assert not (run / STAGED).exists(), "what was dropped does not come back"
            return
        note = read_note(run)
        assert note is not None
        assert note.deployment == json.loads(last)["depl_id"], "what was staged last is what is staged"
        if json.loads(last)["finalization_locked"]:
            assert (note.content, note.ours) == (last, False), "what they locked stays theirs"
        # As soon as nobody writes any more, it is held.
        now = hold(run)
        assert now is not None
        assert now.locked
        assert now.ours is not json.loads(last)["finalization_locked"]


def test_what_is_staged_between_reading_and_writing_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is held in the next attempt."""
    write(tmp_path, text())
    exchanged, news = composefs._exchanged, [text(OTHER, locked=True), text(OTHER)]

    def late(partial: Path, path: Path) -> object:
        if news:
            write(tmp_path, news.pop())
        return exchanged(partial, path)

    monkeypatch.setattr(composefs, "_exchanged", late)
    note = hold(tmp_path)
    assert note is not None
    assert (note.deployment, note.foreign) == (OTHER, True)
    assert names(tmp_path) == [STAGED]


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, text())

    def fails(*_: object) -> int:
        ctypes.set_errno(errno.EROFS)
        return -1

    monkeypatch.setattr(composefs._libc, "renameat2", fails, raising=False)
    with pytest.raises(OSError, match=STAGED):
        hold(tmp_path)
    assert (names(tmp_path), (tmp_path / STAGED).read_bytes()) == ([STAGED], text())


# ---- which hosts ----


@pytest.mark.parametrize(
    ("cmdline", "booted", "staged", "wanted"),
    [
        (f"root=UUID=1 composefs={ID} rw", False, False, True),
        (f"composefs=?{ID}", False, False, True),
        (f"composefs={ID}", True, False, False),
        ("ostree=/ostree/boot.1/x/0 ostree.prepare-root.composefs=signed", False, False, False),
        ("root=UUID=1", False, False, False),
        ("root=UUID=1", False, True, True),
        ("ostree=/ostree/boot.1/x/0", True, True, False),
        (None, False, False, False),
    ],
)
def test_which_hosts(tmp_path: Path, cmdline: str | None, booted: bool, staged: bool, wanted: bool) -> None:
    settings = Settings(paths=replace(PathSettings(), root=tmp_path, composefs_run=tmp_path / "run/composefs"))
    (tmp_path / "run/composefs").mkdir(parents=True)
    if cmdline is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cmdline").write_text(cmdline + "\n")
    if booted:
        (tmp_path / "run/ostree-booted").touch()
    if staged:
        write(tmp_path / "run/composefs", text())
    assert composefs.is_host(settings) is wanted
