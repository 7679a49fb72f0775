# SPDX-License-Identifier: Apache-2.0
"""The history beside the event loop, numbers of jobs, and what is said of those that were interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from lashd.running import history as module
from lashd.running.history import History, Past
from lashd.running.interrupted import Found, is_rest_of, recalled, told
from lashd.running.jobs import Initiator, Job, Jobs, Outcome
from lashd.running.numbers import BLOCK, Numbers
from lashd.running.ownwork import OwnWork
from lashd.running.sets import Sets
from lashd.running.starting import ITSELF
from lashd.things import history as file_module
from lashd.things.history_rows import JobEntry
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage, Record, RecordedImage, Role

ANN = Initiator(1000, "session-1.scope", "lashctl")
BOOT = "this boot"


def late(past: Past) -> None:
    raise AssertionError("it was in time")


async def begun(tmp_path: Path, boot: str = BOOT) -> tuple[History, Jobs, Past]:
    history = History(tmp_path / "state", tmp_path / "run", boot)
    past = await history.start(late)
    assert past is not None
    jobs = Jobs()
    jobs.subscribe(history)
    return history, jobs, past


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[tuple[History, Jobs]]:
    history, jobs, _ = await begun(tmp_path)
    yield history, jobs
    await jobs.stop()
    await history.stop()


async def unchanged(job: Job) -> Outcome:
    return Outcome(False, {"images": 3})


async def forever(job: Job) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_job_is_known_from_its_start_and_its_end_stays(tmp_path: Path) -> None:
    history, jobs, past = await begun(tmp_path)
    assert past == Past(0, (), ())
    job, _ = jobs.start("bind", forever, ANN, {"deployment": "x", "reason": "why"})
    (row,) = await history.jobs(limit=9)
    assert (row.id, row.kind, row.ended, row.result, row.boot) == (1, "bind", 0, "", BOOT)
    assert (row.uid, row.unit, row.initiator, row.options["reason"]) == (1000, "session-1.scope", "lashctl", "why")
    await asyncio.sleep(0)
    job.cancel()
    await job.wait(5)
    (row,) = await history.jobs(limit=9, number=1)
    assert (row.result, row.error_name, row.details["changed"]) == ("cancelled", "Cancelled", False)
    assert abs(row.ended - time.time()) < 60
    await history.stop()
    history, _, past = await begun(tmp_path)
    assert (past.last_number, past.ended, past.interrupted) == (1, (row,), ())
    await history.stop()


async def test_a_job_that_ended_long_ago_is_not_shown_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history, jobs, _ = await begun(tmp_path)
    await jobs.start("bind", unchanged, ANN, {})[0].wait(5)
    await history.stop()
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + module.KEEP_SECONDS + 1)
    history, _, past = await begun(tmp_path)
    assert (past.last_number, past.ended) == (1, ())
    assert (await history.jobs(limit=9))[0].details == {"changed": False, "images": 3}
    await history.stop()
    # A clock that is late makes none one of long ago.
    monkeypatch.setattr(module.time, "time", lambda: 1000.0)
    history, _, past = await begun(tmp_path)
    assert [entry.id for entry in past.ended] == [1]
    await history.stop()


async def test_what_cannot_be_written_is_kept_and_shown_and_written_later(
    kept: tuple[History, Jobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    history, jobs = kept
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(file_module, "LOCK_SECONDS", 1.0)
    history._thread.submit(history._file.close)  # it is opened anew, with that
    with sqlite3.connect(tmp_path / "state/history.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        job, _ = jobs.start("bind", unchanged, ANN, {})
        assert (await job.wait(5))[0] == "unchanged"
        # Neither the job nor anybody on the loop has waited for the file.
        assert time.monotonic() - began < 0.7
        (row,) = await history.jobs(limit=9)
        assert row.result == "unchanged"
        assert "kept in memory" in caplog.text
        with pytest.raises(LashdError):
            await history.jobs(limit=9, number=12)
    found: list[Any] = []
    for _ in range(50):
        await asyncio.sleep(0.1)
        with sqlite3.connect(tmp_path / "state/history.db") as other:
            found = other.execute("SELECT result FROM jobs").fetchall()
        if found:
            break
    assert found == [("unchanged",)]


async def test_what_was_not_written_is_no_reason_to_rest_and_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_module, "LOCK_SECONDS", 0.1)
    history, jobs, _ = await begun(tmp_path)
    assert history.written
    with sqlite3.connect(tmp_path / "state/history.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        history._thread.submit(history._file.close)
        await jobs.start("bind", unchanged, ANN, {})[0].wait(5)
        await asyncio.sleep(0.3)
        assert not history.written
        await history.stop()
    assert "1 job that has not been written" in caplog.text


async def test_nothing_but_memory_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the state directory cannot even be made, jobs go on, and there is an answer; and it never grows."""
    (tmp_path / "state").touch()
    monkeypatch.setattr(module, "KEPT", 5)
    history = History(tmp_path / "state", tmp_path / "run", BOOT)
    assert await history.start(late) is None
    jobs = Jobs()
    jobs.subscribe(history)
    for _ in range(9):
        assert (await jobs.start("bind", unchanged, ANN, {})[0].wait(5))[0] == "unchanged"
    assert [row.id for row in await history.jobs(limit=9)] == [9, 8, 7, 6, 5]
    await history.stop()


async def test_a_file_that_is_locked_at_the_start_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a job that was interrupted would be shown as running for as long as this daemon lives."""
    history, jobs, _ = await begun(tmp_path)
    jobs.start("bind", forever, ANN, {})
    await history.stop()
    await jobs.stop()
    monkeypatch.setattr(file_module, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.2)
    found: list[Past] = []
    history = History(tmp_path / "state", tmp_path / "run", BOOT)
    with sqlite3.connect(tmp_path / "state/history.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        assert await history.start(found.append) is None
        assert "cannot be read" in caplog.text
        assert not history.written
        # What this daemon does meanwhile is its own.
        jobs = Jobs(iter(range(5, 9)).__next__)
        jobs.subscribe(history)
        await jobs.start("bind", unchanged, ANN, {})[0].wait(5)
    for _ in range(50):
        await asyncio.sleep(0.1)
        if found and history.written:
            break
    ((past,),) = (found,)
    assert [entry.id for entry in past.interrupted] == [1]
    assert past.ended == ()
    assert [row.id for row in await history.jobs(limit=9)] == [5, 1]
    await history.stop()


async def test_a_disk_that_does_not_answer_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, jobs, _ = await begun(tmp_path)
    await jobs.start("bind", unchanged, ANN, {})[0].wait(5)
    await history.stop()
    monkeypatch.setattr(module, "START_SECONDS", 0.05)
    read = History._read
    monkeypatch.setattr(History, "_read", lambda self: (time.sleep(0.5), read(self))[1])
    found: list[Past] = []
    history = History(tmp_path / "state", tmp_path / "run", BOOT)
    began = time.monotonic()
    assert await history.start(found.append) is None
    assert time.monotonic() - began < 0.4
    jobs = Jobs(iter(range(5, 9)).__next__)
    jobs.subscribe(history)
    await jobs.start("bind", unchanged, ANN, {})[0].wait(5)
    assert [row.id for row in await history.jobs(limit=9)] == [5, 1]
    assert [entry.id for entry in found[0].ended] == [1]
    await history.stop()
    # Nor one that ends meanwhile.
    history = History(tmp_path / "state", tmp_path / "run", BOOT)
    assert await history.start(found.append) is None
    await history.stop()
    await asyncio.sleep(0.1)
    assert len(found) == 1


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "state/job-numbers.json"


async def numbers(note: Path, known: int | None = 0) -> Numbers:
    made = Numbers(note)
    await made.start(known)
    return made


async def test_numbers_go_on_after_a_stop_and_are_left_out_after_a_kill(note: Path) -> None:
    first = await numbers(note)
    assert [first.take() for _ in range(3)] == [1, 2, 3]
    await first.stop()
    killed = await numbers(note, 3)
    taken = [killed.take() for _ in range(3)]
    assert taken == [4, 5, 6]
    # At whatever moment it is killed, what was given out is marked.
    assert json.loads(note.read_text())["next"] > 6
    for _ in range(3 * BLOCK):
        taken.append(killed.take())
        await asyncio.sleep(0.01)
    after = await numbers(note, 3)
    assert after.take() > taken[-1]
    assert after.take() < taken[-1] + 3 * BLOCK


async def test_numbers_when_the_note_or_the_history_is_lost(note: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = await numbers(note)
    one.take()
    await one.stop()
    # The history was damaged.
    assert (await numbers(note, None)).take() == 2
    note.unlink()
    assert (await numbers(note, 40)).take() == 40 + BLOCK
    assert "not known for sure" in caplog.text
    note.write_text("{")
    assert (await numbers(note, 0)).take() >= int(time.time()) - 60
    note.unlink()
    assert (await numbers(note, None)).take() >= int(time.time()) - 60


async def test_numbers_are_not_given_out_before_they_are_marked(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk is: after a kill nobody knows them."""
    first, wait = await numbers(note), asyncio.Event()

    async def slow(*_: Any) -> None:
        await wait.wait()

    monkeypatch.setattr(asyncio, "to_thread", slow)
    taken = [first.take() for _ in range(3 * BLOCK)]
    await asyncio.sleep(0)
    monkeypatch.undo()
    assert taken == sorted(set(taken))
    again = await numbers(note, None)
    later = [again.take() for _ in range(BLOCK)]
    assert not set(taken) & set(later), "those of the last block were given out before they were marked"
    wait.set()
    await first.stop()


async def test_numbers_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    note = tmp_path / "state/job-numbers.json"
    now = int(time.time())
    first = await numbers(note)
    taken = [first.take() for _ in range(3)]
    assert taken == sorted(set(taken))
    assert taken[0] >= now
    await first.stop()
    (tmp_path / "state").unlink()
    again = await numbers(note, taken[-1])
    assert again.take() > taken[-1]
    await again.stop()


# -- interrupted -----------------------------------------------------------------------------------------------------

KEY = "c" * 64 + ".0"


def entry(kind: str, boot: str = BOOT, **options: Any) -> JobEntry:
    return JobEntry(9, "u", kind, True, boot, 5, 0, options=options, stage="pull", details={"joined": True})


@pytest.mark.parametrize(
    ("job", "found", "words"),
    [
        (entry("upgrade"), Found(BOOT, staged=KEY), ["lashd was killed", "'pull'", "carries on"]),
        (entry("upgrade", "before"), Found(BOOT, staged=KEY), ["the host went down", "carries on"]),
        (entry("switch", "before"), Found(BOOT, comes_back=True), ["stages it again by itself"]),
        (entry("upgrade"), Found(BOOT), ["nothing is staged: ask for it again."]),
        (entry("upgrade"), Found(BOOT, bootc=True), ["nothing is staged", "bootc", "held and bound"]),
        (entry("bind", deployment=KEY), Found(BOOT, staged=KEY), ["carries on"]),
        (entry("bind", deployment="other.0"), Found(BOOT, staged=KEY), ["What was fetched is kept", "by itself, else"]),
        (entry("rollback"), Found(BOOT), ["'lashctl status' shows"]),
        (entry("plan"), Found(BOOT), ["changed nothing; ask for it again."]),
    ],
)
def test_what_is_said(job: JobEntry, found: Found, words: list[str]) -> None:
    ended = told(job, found, 77)
    assert (ended.result, ended.error_name, ended.ended) == ("failed", "Cancelled", 77)
    for word in ["Job 9", job.kind, "interrupted", *words]:
        assert word in ended.error_message
    changed = job.kind in ("upgrade", "switch") and bool(found.staged)
    assert ended.details == {"joined": True, "changed": changed, "retryable": True, "interrupted": True}


async def test_an_earlier_job_can_be_asked_for_as_any_other() -> None:
    jobs = Jobs(iter(range(50, 99)).__next__)
    mine, _ = jobs.start("bind", forever, ANN, {})
    jobs.recall(recalled(told(entry("upgrade", **{"idempotency-key": "k"}), Found(BOOT), 77), jobs))
    assert [job.id for job in jobs.list()] == [9, 50]
    old = jobs.get(9)
    assert old is not None
    assert (old.uuid, old.created, old.state, old.stage, old.cancellable) == ("u", 5, "done", "pull", False)
    assert (await old.wait(0))[:2] == ("failed", "Cancelled")
    old.cancel()
    assert jobs.start("upgrade", forever, Initiator(0), {"idempotency-key": "k"}) == (old, True)
    assert jobs.active is mine
    await jobs.stop()


def test_what_is_the_rest_of_it() -> None:
    staged = Deployment("os", "c" * 64, 0, Path("/"), frozenset({Role.STAGED}))
    booted = Deployment("os", "b" * 64, 0, Path("/"), frozenset({Role.BOOTED}))
    assert is_rest_of(entry("upgrade"), staged)
    assert is_rest_of(entry("upgrade"), None)
    assert not is_rest_of(entry("upgrade"), booted)
    assert is_rest_of(entry("bind", deployment=booted.key), booted)
    assert not is_rest_of(entry("bind", deployment=booted.key), staged)


@pytest.mark.parametrize(
    ("kind", "rest"), [("upgrade", False), ("discard", False), ("rollback", False), ("collect", True)]
)
async def test_what_somebody_has_done_since_is_not_the_rest_of_it(kind: str, rest: bool) -> None:
    staged = Deployment("os", "c" * 64, 0, Path("/"), frozenset({Role.STAGED}))
    jobs = Jobs()

    class Hands:
        def bind(self, deployment: Deployment, *how: Any, known_only: bool, details: Any) -> tuple[Job, bool]:
            return jobs.start("bind", unchanged, *how, details=details)

    nothing = cast(Any, None)
    own = OwnWork(*(nothing, nothing, nothing, nothing, cast(Any, Hands())), collect=nothing, changed=nothing)
    own.carry_on(entry("upgrade"))
    own.overtaken(jobs.start("collect", unchanged, ITSELF, {}, slot=False)[0])
    own.overtaken(jobs.start(kind, unchanged, ANN, {}, slot=False)[0])
    assert own.keep_bound(staged).details == ({"continues": 9} if rest else {})
    await jobs.stop()


# -- sets ------------------------------------------------------------------------------------------------------------


class Host:
    """What the view and the records say, for a look."""

    def __init__(self, tmp_path: Path) -> None:
        image = HostImage("registry.example/os:1")
        roles = frozenset({Role.BOOTED})
        self.booted = Deployment("os", "b" * 64, 0, tmp_path, roles, image, "sha256:" + "1" * 64, "41")
        self.record: Record | None = None
        self.release = True
        self.error: Exception | None = None

    def deployments(self) -> tuple[Deployment, ...]:
        return (self.booted,)

    def get(self, key: str) -> Record | None:
        if self.error:
            raise self.error
        return self.record

    def decision(self, deployment: Deployment) -> Any:
        return self

    async def ended(self) -> None:
        pass


async def test_what_runs_is_put_down_when_it_is_known_and_when_it_changes(tmp_path: Path) -> None:
    history, jobs, _ = await begun(tmp_path)
    host = Host(tmp_path)
    fake = cast(Any, host)
    sets = Sets(fake, fake, fake, history, BOOT)
    jobs.subscribe(sets)
    running = asyncio.create_task(sets.run())
    sets.look(again=True)
    assert await history.sets(limit=9) == []
    host.error = OSError("unreadable")
    sets.look()
    host.error = None
    web = RecordedImage("registry.example/web:1", "sha256:" + "2" * 64, "3" * 64)
    host.record = Record(host.booted.key, None, (web,), 1)
    host.release = False
    # A job that changes the host has ended.
    await jobs.start("bind", unchanged, ANN, {})[0].wait(5)
    await asyncio.sleep(0.05)
    (row,) = await history.sets(limit=9)
    assert (row.deployment, row.image, row.version) == (host.booted.key, "registry.example/os:1", "41")
    assert (row.bound, row.ready) == (((web.reference, web.digest),), False)
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert abs(row.begun - (time.time() - uptime)) < 5
    host.release = True
    sets.look()
    assert (await history.sets(limit=9))[0].ready
    running.cancel()
    await history.stop()


async def test_that_it_still_runs_is_put_down_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lashd.running import sets as sets_module

    monkeypatch.setattr(sets_module, "FIRST_SECONDS", 0.05)
    history, _, _ = await begun(tmp_path)
    host = Host(tmp_path)
    host.record = Record(host.booted.key, None, (), 1)
    fake = cast(Any, host)
    now = time.time()
    running = asyncio.create_task(Sets(fake, fake, fake, history, BOOT).run())
    await asyncio.sleep(0.02)
    assert abs((await history.sets(limit=9))[0].seen - now) < 5
    monkeypatch.setattr(sets_module.time, "time", lambda: now + 9000)
    await asyncio.sleep(0.2)
    (row,) = await history.sets(limit=9)
    assert abs(row.seen - now - 9000) < 5
    running.cancel()
    await history.stop()


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A filesystem without any space."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "state"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)
    with pytest.raises(OSError, match="No space"):
        (place / "filler").write_bytes(b"x" * 1024 * 1024)
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_full_disk(full: Path, tmp_path: Path) -> None:
    history = History(full, tmp_path / "run", BOOT)
    past = await history.start(late)
    assert past is None or past.interrupted == ()
    counted = Numbers(full / "job-numbers.json")
    await counted.start(None)
    jobs = Jobs(counted.take)
    jobs.subscribe(history)
    first, _ = jobs.start("bind", unchanged, ANN, {})
    assert (await first.wait(5))[0] == "unchanged"
    second, _ = jobs.start("collect", forever, ANN, {})
    assert second.id > first.id > 1_000_000
    assert [row.id for row in await history.jobs(limit=9)] == [second.id, first.id]
    (full / "filler").unlink()
    await jobs.stop()
    await history.stop()
    await counted.stop()
    history = History(full, tmp_path / "run", "next boot")
    past = await history.start(late)
    assert past is not None
    assert [entry.id for entry in past.ended] == [first.id, second.id]
    await history.stop()
    assert past.ended[1].error_name == ErrorName.CANCELLED
    # Nobody has cancelled it.
    assert "because lashd was stopped" in past.ended[1].error_message
