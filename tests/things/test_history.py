# SPDX-License-Identifier: Apache-2.0
"""The file of the history: what is written is there, whatever happened to the file, and it stays small."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from lashd.things import history_rows
from lashd.things.history import HistoryFile
from lashd.things.history_rows import JobEntry, SetSeen
from lashd.words.errors import ErrorName, LashdError
from tests.bus.conftest import REPOSITORY

BOOT, NEXT_BOOT = "boot-1", "boot-2"
JOB = JobEntry(
    *(7, "u-7", "upgrade", True, BOOT, 1000, 1000, "session-1.scope", "lashctl", {"reason": "patch day", "deep": True}),
    stage="pull",
)
WEB = ("registry.example/web:1", "sha256:" + "1" * 64)
SET = SetSeen(BOOT, "c" * 64 + ".0", "registry.example/os:1", "sha256:" + "2" * 64, "41", (WEB,), True, 30.0, 5000)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[HistoryFile]:
    made = HistoryFile(tmp_path / "state/history.db", tmp_path / "run/history.lock")
    yield made
    made.close()


def again(file: HistoryFile) -> HistoryFile:
    """The same file, as the next daemon opens it."""
    file.close()
    return HistoryFile(file.path, file.path.parent.parent / "run/history.lock")


def job(number: int, *, slot: bool = True, ended: int = 1) -> JobEntry:
    return JobEntry(number, f"u-{number}", "bind", slot, BOOT, number, 0, ended=ended, result="unchanged")


def test_a_job_is_there_from_its_start_and_is_replaced_by_its_end(file: HistoryFile) -> None:
    file.write([JOB])
    assert file.unfinished() == [JOB]
    done = replace(JOB, ended=1100, result="failed", error_name="NoSpace", error_message="Full.", details={"bytes": 5})
    file.write([done])
    later = again(file)
    assert (later.unfinished(), later.jobs(limit=5), later.last_number()) == ([], [done], 7)
    # Another job of the same number never takes its place.
    later.write([replace(JOB, uuid="another")])
    assert later.jobs(limit=5) == [done]
    assert file.path.stat().st_mode & 0o777 == 0o600
    later.close()


def test_what_is_asked_for(file: HistoryFile) -> None:
    file.write([job(1, ended=10), job(2, ended=20), job(3, ended=0)])
    assert [one.id for one in file.jobs(limit=2)] == [3, 2]
    assert [one.id for one in file.jobs(limit=9, since=15)] == [3, 2]
    assert [one.id for one in file.jobs(limit=9, number=1)] == [1]
    assert file.jobs(limit=9, number=2**64 - 1, since=2**64 - 1) == []
    assert file.sets(limit=9, since=2**64 - 1) == []


def test_what_json_or_sqlite_would_not_take(file: HistoryFile) -> None:
    odd = "a file called \udcff"
    many = {"findings": ["x" * 90] * 1000, "note": odd, "images": 3, "path": Path("/x")}
    file.write([replace(JOB, error_message=odd, options={"reason": odd}, details=many)])
    (found,) = file.jobs(limit=1)
    assert found.error_message == "a file called ?"
    assert found.options == {"reason": "a file called ?"}
    assert len(found.details["findings"]) == history_rows.LONGEST_LIST
    file.write([replace(JOB, details={"findings": ["x" * 9000] * 100, "changed": True, "images": 3})])
    assert file.jobs(limit=1)[0].details == {"changed": True, "images": 3}


def test_sets_have_a_row_for_each_boot_in_order_whatever_the_clock_says(file: HistoryFile) -> None:
    file.write([], SET)
    (row,) = file.sets(limit=9)
    assert (row.begun, row.seen, row.bound, row.ready) == (4970, 5000, (WEB,), True)
    # The clock is set: when it began is put right.
    file.write([], replace(SET, uptime=630.0, seen=1_790_000_600, ready=False))
    (row,) = file.sets(limit=9)
    assert (row.begun, row.seen, row.ready) == (1_789_999_970, 1_790_000_600, False)
    # Another one in the same boot, as after a soft reboot, ends it; and the one before may come back.
    other = replace(SET, deployment="d" * 64 + ".0", uptime=1000.0, seen=1_790_000_970)
    file.write([], other)
    file.write([], replace(other, uptime=1100.0, seen=1_790_001_070))
    file.write([], replace(SET, uptime=1200.0, seen=1_790_001_170))
    # The next boot's clock is wrong again.
    file.write([], replace(SET, boot=NEXT_BOOT, uptime=20.0, seen=100))
    assert file.sets(limit=1)[0].begun == 80
    # And is set, to a moment at which by its uptime it would have begun before the last one ended.
    file.write([], replace(SET, boot=NEXT_BOOT, uptime=30.0, seen=1_790_001_180))
    rows = again(file).sets(limit=9)
    assert [(row.boot, row.deployment[0], row.begun, row.seen) for row in rows] == [
        (NEXT_BOOT, "c", 1_790_001_170, 1_790_001_180),
        (BOOT, "c", 1_790_001_170, 1_790_001_170),
        (BOOT, "d", 1_790_000_970, 1_790_001_170),
        (BOOT, "c", 1_789_999_970, 1_790_000_970),
    ]
    assert [row.id for row in rows] == [4, 3, 2, 1]


@pytest.mark.parametrize("damage", ["rubbish", "cut", "a page", "a table", "a directory", "a link"])
def test_a_damaged_file_is_set_aside(file: HistoryFile, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    file.write([job(number) for number in range(1, 200)])
    file.close()
    content = file.path.read_bytes()
    if damage == "rubbish":
        file.path.write_bytes(b"what is this? " * 1000)
    elif damage == "cut":
        file.path.write_bytes(content[: len(content) // 2])
    elif damage == "a page":
        file.path.write_bytes(content[:4096] + b"\xff" * 4096 + content[8192:])
    elif damage == "a table":
        with sqlite3.connect(file.path) as database:
            database.execute("DROP TABLE jobs")
    else:
        file.path.unlink()
        file.path.mkdir() if damage == "a directory" else file.path.symlink_to("/nowhere")
    later = again(file)
    assert later.jobs(limit=1) == []
    assert later.lost
    later.write([job(300)])
    assert [one.id for one in later.jobs(limit=9)] == [300]
    assert "a new one begins" in caplog.text
    assert os.path.lexists(f"{file.path}.damaged")
    later.close()


@pytest.mark.parametrize(
    "change",
    ["ended = 'abc'", "created = x'00ff'", "uid = 1.5", "kind = x'41'", "details = x'00ff'", "slot = 'x'"],
)
def test_a_row_that_nobody_has_written_like_this_is_damage(file: HistoryFile, change: str) -> None:
    """SQLite checks what a page looks like, and keeps any value in any column."""
    file.write([job(1), job(2)], SET)
    file.close()
    with sqlite3.connect(file.path) as database:
        database.execute(f"UPDATE jobs SET {change} WHERE id = 1")
    later = again(file)
    assert later.unfinished() == later.jobs(limit=9) == []
    assert later.lost
    later.write([job(3)])
    assert [one.id for one in later.jobs(limit=9)] == [3]
    later.close()


def test_text_that_is_not_utf_8_is_shown_all_the_same(file: HistoryFile) -> None:
    file.write([job(1)], SET)
    file.close()
    with sqlite3.connect(file.path) as database:
        database.execute("UPDATE jobs SET initiator = CAST(x'41ff' AS TEXT), details = CAST(x'ff' AS TEXT)")
        database.execute("UPDATE sets SET version = CAST(x'41ff' AS TEXT)")
    later = again(file)
    assert [(one.initiator, one.details) for one in later.jobs(limit=9)] == [("A\ufffd", {})]
    assert [one.version for one in later.sets(limit=9)] == ["A\ufffd"]
    later.close()


@pytest.mark.parametrize("change", ["begun = 'abc'", "uptime = 'abc'", "bound = x'00'", "mark = x'00'"])
def test_a_set_that_nobody_has_written_like_this_is_damage(file: HistoryFile, change: str) -> None:
    file.write([], SET)
    file.close()
    with sqlite3.connect(file.path) as database:
        database.execute(f"UPDATE sets SET {change}")
    later = again(file)
    # Also what only the next one needs.
    later.write([], replace(SET, deployment="d" * 64 + ".0"))
    later.sets(limit=9)
    assert later.lost
    later.write([], SET)
    assert later.sets(limit=1)[0].deployment == SET.deployment
    later.close()


def test_damage_while_it_is_open(file: HistoryFile) -> None:
    file.write([job(number) for number in range(1, 2000)])
    with file.path.open("r+b") as raw:
        raw.seek(16)
        raw.write(b"\xff" * 16 * 4096)
    file.write([job(3000)])
    assert [one.id for one in file.jobs(limit=3)] == [3000]
    # And when somebody removes it.
    file.path.unlink()
    file.write([job(3001)])
    assert [one.id for one in again(file).jobs(limit=3)] == [3001]


def test_a_file_of_a_later_version_is_kept_for_it(file: HistoryFile) -> None:
    file.write([job(1)])
    file.close()
    with sqlite3.connect(file.path) as database:
        database.execute(f"PRAGMA user_version = {history_rows.VERSION + 1}")
    later = again(file)
    assert later.jobs(limit=9) == []
    aside = file.path.with_name(f"history.db.version-{history_rows.VERSION + 1}")
    with sqlite3.connect(aside) as database:
        assert database.execute("SELECT id FROM jobs").fetchall() == [(1,)]
    later.close()


def test_two_daemons_do_not_write_one_history(file: HistoryFile) -> None:
    file.write([JOB])
    second = HistoryFile(file.path, file.path.parent.parent / "run/history.lock")
    with pytest.raises(LashdError) as caught:
        second.unfinished()
    assert caught.value.name is ErrorName.BUSY
    file.close()
    assert second.unfinished() == [JOB]
    second.close()


def test_somebody_else_reads_it_at_his_leisure(file: HistoryFile) -> None:
    file.write([job(1)])
    with sqlite3.connect(file.path) as reader:
        assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
        reader.execute("BEGIN IMMEDIATE")
        with pytest.raises(LashdError) as caught:
            file.write([job(2)])
        assert (caught.value.name, "locked" in caught.value.message) == (ErrorName.INTERNAL, True)
        assert [one.id for one in file.jobs(limit=9)] == [1]
    file.write([job(2)])
    assert [one.id for one in file.jobs(limit=9)] == [2, 1]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of half a megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "state"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_and_a_read_only_filesystem(small: Path, file: HistoryFile) -> None:
    file.write([job(1)])
    filler = small / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 1024 * 1024)
    many = [replace(job(number), error_message="x" * 2000) for number in range(2, 60)]
    with pytest.raises(LashdError) as caught:
        file.write(many)
    assert caught.value.name is ErrorName.NO_SPACE
    assert [one.id for one in file.jobs(limit=9)] == [1]
    filler.unlink()
    file.write(many)
    file.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    later = again(file)
    assert later.last_number() == 59
    with pytest.raises(LashdError, match="readonly"):
        later.write([job(60)])
    later.close()
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    file.path.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(LashdError, match="Read-only"):
        later.last_number()


@bounds(max_examples=6, deadline=None)
@given(
    runs=st.lists(st.tuples(st.booleans(), st.integers(0, 3000)), min_size=1, max_size=30),
    keep=st.integers(1, 9),
    looks=st.integers(1, 9),
)
def test_it_never_grows_beyond_what_is_kept(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[bool, int]], keep: int, looks: int
) -> None:
    """What stays are the newest, each kind by itself; and not more bytes than may be."""
    base = tmp_path_factory.mktemp("grows")
    file = HistoryFile(base / "history.db", base / "lock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_rows, "KEEP_JOBS", keep)
        patch.setattr(history_rows, "KEEP_LOOKS", looks)
        entries = [
            replace(job(number, slot=slot), error_message="x" * length)
            for number, (slot, length) in enumerate(runs, start=1)
        ]
        for entry in entries:
            file.write([entry], replace(SET, boot=f"boot {entry.id}"))
            written = [one.id for one in entries if one.id <= entry.id and one.slot][-keep:]
            looked = [one.id for one in entries if one.id <= entry.id and not one.slot][-looks:]
            assert [one.id for one in file.jobs(limit=99)] == sorted([*written, *looked], reverse=True)
        # Empty tables take some pages of their own.
        patch.setattr(history_rows, "KEEP_JOBS", 2000)
        patch.setattr(history_rows, "KEEP_BYTES", 48 * 1024)
        for number in range(100, 140):
            file.write([replace(job(number), error_message="x" * 8000)])
            assert file.path.stat().st_size <= 150 * 1024
        assert [one.id for one in file.jobs(limit=2)] == [139, 138]
    file.close()


KILLED = """
import os, sys
from pathlib import Path
from lashd.things.history import HistoryFile
from lashd.things.history_rows import JobEntry
file = HistoryFile(Path(sys.argv[1]) / "state/history.db", Path(sys.argv[1]) / "run/history.lock")
for number in range(1, 100000):
    file.write([JobEntry(number, f"u-{number}", "bind", True, "b", 1, 0, ended=1, error_message="x" * 5000)])
    os.write(1, b"%d\\n" % number)
"""


def test_what_was_written_survives_a_power_cut(file: HistoryFile) -> None:
    """As SQLite promises it for just these settings."""
    database = file._usable()
    settings = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["truncate", 2]


def test_what_was_written_survives_a_kill_at_any_moment(file: HistoryFile, tmp_path: Path) -> None:
    last = 0
    for seconds in (0.0, 0.011, 0.023):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY / "daemon")},
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        time.sleep(seconds)
        process.kill()
        said += process.stdout.read()
        process.wait()
        process.stdout.close()
        last = max(last, int(said.split()[-1]))
        assert file.last_number() in (last, last + 1)
        assert not file.lost
        file.close()
