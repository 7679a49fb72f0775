# SPDX-License-Identifier: Apache-2.0
"""history, and jobs that outlive the daemon: on the double, and on the real daemon, which is killed in mid-job."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lashd.bus import library
from tests.bus.conftest import REPOSITORY
from tests.cli.conftest import BOOTED, DIGEST, FakeLashd, Lashctl, finish, no_traceback

PAST = {
    "id": 3,
    "uuid": "u-3",
    "kind": "upgrade",
    "state": "done",
    "boot": "b",
    "created": 1_790_000_000,
    "ended": 1_790_000_200,
    "uid": 1000,
    "unit": "session-1.scope",
    "initiator": "cockpit",
    "options": {"reason": "patch day"},
    "stage": "release",
    "result": "success",
    "details": {"changed": True, "image": "registry.example/os:1", "digest": DIGEST, "continues": 2},
}
FAILED = {
    "id": 2,
    "uuid": "u-2",
    "kind": "bind",
    "state": "done",
    "boot": "b",
    "created": 1_790_000_100,
    "ended": 1_000,
    "uid": 0,
    "result": "failed",
    "error-name": "NoSpace",
    "error-message": "The disk is full.\x1b[31m",
    "details": {"changed": False, "retryable": False},
}
RUNS = {"id": 4, "kind": "check", "state": "running", "created": 1_790_000_300, "uid": 1001, "initiator": ""}
SET = {
    "id": 2,
    "boot": "b",
    "this-boot": True,
    "deployment": BOOTED,
    "image": "registry.example/os:1",
    "digest": DIGEST,
    "version": "41",
    "ready": True,
    "from": 1_790_000_000,
    "until": 1_790_000_100,
    "bound": [["registry.example/app/web:1", DIGEST]],
}


async def test_what_was_is_shown(lashd: FakeLashd, lashctl: Lashctl) -> None:
    ran = await lashctl("history")
    assert (ran.status, ran.out) == (0, "Nothing is in the history yet.\n")
    lashd.history = [RUNS, PAST, FAILED]
    ran = await lashctl("history", COLUMNS="120")
    header, runs, past, failed = ran.out.splitlines()
    assert header.split() == ["ID", "KIND", "RESULT", "STARTED", "TOOK", "BY", "WHAT"]
    assert runs.split()[:3] == ["4", "check", "running"]
    assert "uid 1001" in runs
    for part in ("3 ", "upgrade", "success", "2026-09-21 14:13:20", "3 min 20 s", "cockpit", "registry.example/os:1"):
        assert part in past
    # The clock was set back while it ran, and what comes from elsewhere does nothing to the terminal.
    assert "root" in failed
    assert "The disk is full.\\x1b[31m" in failed
    # Where a sentence has no room its error has a name, in one line.
    assert (await lashctl("history", COLUMNS="80")).out.splitlines()[-1].endswith("  NoSpace")
    ran = await lashctl("history", "3", "2")
    assert ran.out.index("Job: 3 upgrade") < ran.out.index("Job: 2 bind")
    for part in ("Ended: 2026-09-21 14:16:40 UTC", "Asked for by: uid 1000, name cockpit", "Continues: 2"):
        assert part in ran.out
    assert "Asked for by: uid 0 (root)" in ran.out
    assert [job["id"] for job in json.loads((await lashctl("history", "--limit", "1", "--json")).out)] == [4]
    (job,) = json.loads((await lashctl("history", "3", "--json")).out)
    assert (job["ended"], job["options"], job["initiator"]["uid"]) == (1_790_000_200, {"reason": "patch day"}, 1000)
    ran = await lashctl("history", "3", "99")
    assert (ran.status, ran.out) == (2, "")
    assert "There is no job 99." in ran.err
    for wrong in ("0", "501", "x"):
        assert (await lashctl("history", "--limit", wrong)).status == 2
    # What would not be heeded is a mistake.
    for both in (("history", "--sets", "3"), ("jobs", "3", "--follow", "3"), ("jobs", "--cancel", "3", "3")):
        ran = await lashctl(*both)
        assert (ran.status, "not allowed with argument" in ran.err) == (2, True)


async def test_what_ran_is_shown(lashd: FakeLashd, lashctl: Lashctl) -> None:
    assert "not in the history yet" in (await lashctl("history", "--sets")).out
    before = SET | {"id": 1, "this-boot": False, "version": "40", "ready": False, "until": 1_790_000_050}
    lashd.history = [SET, before, PAST]
    ran = await lashctl("history", "--sets")
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert lines[0] == "2026-09-21 14:13:20 UTC to now"
    assert lines[1].split() == ["registry.example/os:1", "41", "sha256:0123456789ab"]
    assert lines[2].split() == ["registry.example/app/web:1", "sha256:0123456789ab"]
    assert lines[3] == "2026-09-21 14:13:20 UTC to 2026-09-21 14:14:10 UTC"
    assert lines[6].strip() == "Not all of these images were there."
    rows = json.loads((await lashctl("history", "--sets", "--json")).out)
    assert rows == [SET, before]


async def test_a_job_that_has_left_the_bus(lashd: FakeLashd, lashctl: Lashctl) -> None:
    lashd.history = [PAST, FAILED]
    ran = await lashctl("jobs", "3")
    assert ran.status == 0
    assert "Result: success" in ran.out
    assert json.loads((await lashctl("jobs", "2", "--json")).out)["job"]["error-name"] == "NoSpace"
    # As when it was followed.
    ran = await lashctl("jobs", "--follow", "3")
    assert (ran.status, ran.err) == (0, "")
    ran = await lashctl("jobs", "--follow", "2")
    assert (ran.status, "The disk is full." in ran.err) == (16, True)
    ran = await lashctl("jobs", "--cancel", "3")
    assert (ran.status, ran.out) == (77, "Nothing to do: job 3 has ended already.\n")
    assert (await lashctl("jobs", "99")).status == 2


async def test_a_lashd_without_a_history(lashd: FakeLashd, lashctl: Lashctl) -> None:
    (export,) = lashd.tree.exports("/io/github/lashd1").values()
    del export.methods["GetHistory"]  # type: ignore[attr-defined]
    assert (await lashctl("jobs", "99")).status == 2
    ran = await lashctl("history")
    assert (ran.status, "does not offer this" in ran.err) == (76, True)


# -- the real daemon ---------------------------------------------------------------------------------------------------

DAEMON = """
import asyncio, sys
from pathlib import Path
from lashd.bus import service
from lashd.running import history, jobs
from lashd.running.service import Service
from tests.cli.test_real import Host, settings_below
address, base, go, keep = sys.argv[1:]
service.set_up_logging()
jobs.KEEP_SECONDS = history.KEEP_SECONDS = float(keep)
async def main():
    host = Host(Path(base) / "root")
    if go == "blocked":
        host.go.clear()
    running = Service(settings_below(Path(base)), host)
    await running.start()
    return await service.serve(running, address)
sys.exit(asyncio.run(main()))
"""


@asynccontextmanager
async def daemon(address: str, base: Path, go: str = "", keep: float = 600.0) -> AsyncIterator[Any]:
    """A real lashd as a process; SIGKILL ends it when the test has not."""
    client = await library.connect(address)
    match = library.Match(sender=library.BUS, member="NameOwnerChanged", arguments={0: "io.github.lashd1"})
    async with await client.watch(match) as changes:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", DAEMON, address, str(base), go, str(keep)),
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'daemon'}:{REPOSITORY}"},
        )
        try:
            async with asyncio.timeout(20):
                while not (await anext(changes)).body[2]:
                    pass
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await client.disconnect()


async def running_job(lashctl: Lashctl) -> int:
    for _ in range(100):
        rows = json.loads((await lashctl("jobs", "--json")).out)
        if active := [row["id"] for row in rows if row["state"] == "running" and row["stage"]]:
            return int(active[0])
    raise AssertionError("no job runs")


async def test_a_daemon_is_killed_in_mid_job(tmp_path: Path, bus_address: str, lashctl: Lashctl) -> None:
    from tests.cli.test_real import furnish

    furnish(tmp_path)
    async with daemon(bus_address, tmp_path, "blocked") as first:
        follower = await lashctl.begin("upgrade", "--reason", "patch day")
        number = await running_job(lashctl)
        path = f"/io/github/lashd1/job/{number}"
        first.kill()
        await first.wait()
    async with daemon(bus_address, tmp_path) as second:
        # Whoever has followed it learns how it stands, and so does whoever comes late.
        ran = await finish(follower)
        assert ran.status == 26
        for part in (
            f"Job {number} (upgrade) was interrupted, in its step 'stage'",
            "killed",
            "nothing is staged: ask",
        ):
            assert part in ran.err
        client = await library.connect(bus_address)
        waited = await client.call("io.github.lashd1", path, "io.github.lashd1.Job", "Wait", "a{sv}", [{}])
        assert waited[:2] == ["failed", "Cancelled"]
        await client.disconnect()
        job = json.loads((await lashctl("jobs", str(number), "--json")).out)["job"]
        assert (job["state"], job["details"]["interrupted"], job["details"]["retryable"]) == ("done", True, True)
        assert (job["options"]["reason"], job["initiator"]["uid"]) == ("patch day", os.getuid())
        assert "Last error: Cancelled" in (await lashctl("status")).out
        # The next job has another number.
        again = json.loads((await lashctl("upgrade", "--json")).out)["job"]
        assert (again["result"], again["id"] > number) == ("unchanged", True)
        before = int(time.time())
        second.terminate()
        assert await second.wait() == 0
    # Long after that, and in another boot, they are in the history only.
    with sqlite3.connect(tmp_path / "state/history.db") as database:
        database.execute("UPDATE jobs SET boot = 'another'")
        # Until when it ran is known to the second where the daemon was stopped.
        assert database.execute("SELECT seen >= ? FROM sets", (before,)).fetchall() == [(1,)]
    async with daemon(bus_address, tmp_path, keep=0.0):
        assert json.loads((await lashctl("jobs", "--json")).out) == []
        past = json.loads((await lashctl("jobs", str(number), "--json")).out)["job"]
        same = ("uuid", "kind", "options", "created", "result", "error-name", "error-message", "details")
        assert {key: past[key] for key in same} == {key: job[key] for key in same}
        assert (await lashctl("jobs", "--follow", str(number))).status == 26
        assert (await lashctl("jobs", "--follow", str(again["id"]))).status == 77
        rows = json.loads((await lashctl("history", "--json", user=65534)).out)
        assert [row["id"] for row in rows] == [again["id"], number]
        (row,) = json.loads((await lashctl("history", "--sets", "--json")).out)
        assert (row["deployment"], row["this-boot"]) == (BOOTED, True)
        no_traceback(await lashctl("history"))


@pytest.mark.parametrize("damage", ["rubbish", "gone"])
async def test_the_history_is_lost(tmp_path: Path, bus_address: str, lashctl: Lashctl, damage: str) -> None:
    from tests.cli.test_real import furnish

    furnish(tmp_path)
    file = tmp_path / "state/history.db"
    async with daemon(bus_address, tmp_path) as first:
        before = json.loads((await lashctl("upgrade", "--json")).out)["job"]
        first.kill()
        await first.wait()
    if damage == "rubbish":
        file.write_bytes(b"rubbish" * 2000)
    else:
        file.unlink()
    async with daemon(bus_address, tmp_path):
        ran = await lashctl("jobs", str(before["id"]))
        assert (ran.status, ran.err.splitlines()[0]) == (2, f"lashctl: There is no job {before['id']}.")
        after = json.loads((await lashctl("upgrade", "--json")).out)["job"]
        assert after["id"] > before["id"]
        assert [row["id"] for row in json.loads((await lashctl("history", "--json")).out)] == [after["id"]]
