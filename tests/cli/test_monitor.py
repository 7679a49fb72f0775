# SPDX-License-Identifier: Apache-2.0
"""monitor: one line for everything that happens."""

from __future__ import annotations

import json
import re
import signal

from lashd.bus.paths import deployment_path
from tests.cli.conftest import STAGED, FakeLashd, Lashctl, finish, line_with, no_traceback


async def test_lines_for_people(lashd: FakeLashd, lashctl: Lashctl) -> None:
    process = await lashctl.begin("monitor")
    assert re.fullmatch(r"\d\d:\d\d:\d\d state: idle\n", await line_with(process, "state"))
    number = lashd.new_job("bind")
    assert await line_with(process, "bind (job 7): started")
    lashd.change(number, Stage="pull", ItemsTotal=1, Items=[("a/b:1", "fetching", 0, 5_000_000)])
    assert await line_with(process, "bind (job 7): pull: fetch images (1 image)")
    lashd.change(number, Stage="verify", Items=[])
    assert await line_with(process, "bind (job 7): done: a/b:1 (5.0 MB)")
    lashd.end(number, "failed", ("NoSpace", "The disk is full."))
    assert await line_with(process, "bind (job 7): failed: NoSpace: The disk is full.")
    lashd.change_state(State="held", Staged=deployment_path(STAGED), BlockedBy=[("missing", "db is missing.")])
    assert await line_with(process, "waiting for: db is missing.")
    assert await line_with(process, f"staged: {'c' * 12}.0")
    assert await line_with(process, "state: held")
    process.send_signal(signal.SIGINT)
    ran = await finish(process)
    assert ran.status == 130
    no_traceback(ran)


async def test_json_lines_for_programs(lashd: FakeLashd, lashctl: Lashctl) -> None:
    before = lashd.new_job("upgrade", Stage="plan")
    lashd.properties["ActiveJob"] = f"/io/github/lashd1/job/{before}"
    process = await lashctl.begin("monitor", "--json")
    first = json.loads(await line_with(process, "state"))
    assert (first["event"], first["changed"]["state"]) == ("state", "idle")
    assert json.loads(await line_with(process, "job"))["job"] == before
    lashd.change(before, Fraction=0.5, BytesDone=12)
    event = json.loads(await line_with(process, "job-changed"))
    assert event["changed"] == {"fraction": 0.5, "bytes-done": 12}
    lashd.end(before, "success")
    assert json.loads(await line_with(process, "job-done"))["result"] == "success"
    await lashd.die()
    assert json.loads(await line_with(process, "lashd"))["running"] is False
    process.send_signal(signal.SIGINT)
    assert (await finish(process)).status == 130


async def test_lashd_comes_back(bus_address: str, lashd: FakeLashd, lashctl: Lashctl) -> None:
    from lashd.bus import library

    process = await lashctl.begin("monitor")
    await line_with(process, "state: idle")
    await lashd.die()
    await line_with(process, "lashd has stopped")
    again = FakeLashd(await library.connect(bus_address))
    await again.start()
    await line_with(process, "lashd has started")
    again.new_job("plan")
    await line_with(process, "plan (job 7): started")
    process.send_signal(signal.SIGINT)
    await finish(process)
    await again.die()
