# SPDX-License-Identifier: Apache-2.0
"""How long the daemon lives: its heartbeat, its end when nobody needs it, and SIGHUP."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.bus import library, life
from lashd.bus.service import AGAIN
from lashd.words.config import DEFAULT, PullSettings, load
from tests.bus.conftest import REPOSITORY, private_bus
from tests.bus.fake import FakeService
from tests.bus.test_service import NAME, ROOT, daemon, owned

# Serves the double; argv: its bus, idle seconds, and after how many seconds the loop stands still (0: never).
DAEMON = """
import asyncio, sys, time
from lashd.bus import service
from tests.bus.fake import FakeService
async def main(address, idle, still):
    fake = FakeService()
    fake.rests = True
    if float(still):
        asyncio.get_running_loop().call_later(float(still), time.sleep, 60)
    async def armed():
        return True
    return await service.serve(fake, address, idle_seconds=float(idle), arm=armed)
sys.exit(asyncio.run(main(*sys.argv[1:])))
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return told


def heard(told: socket.socket, seconds: float) -> list[str]:
    """What systemd was told, for so long."""
    lines: list[str] = []
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        told.settimeout(left)
        try:
            lines += told.recv(4096).decode().split("\n")
        except TimeoutError:
            break
    return lines


async def test_the_heart_beats_in_the_loop(address: str, systemd: socket.socket) -> None:
    client = await library.connect(address)
    async with daemon(address, "", "-c", DAEMON, address, "0", "2.5", WATCHDOG_USEC="400000") as process:
        await owned(client)
        await asyncio.sleep(1)
        assert heard(systemd, 0.01).count("WATCHDOG=1") >= 4
        await asyncio.sleep(2.5)
        heard(systemd, 0.01)
        assert process.returncode is None
        assert "WATCHDOG=1" not in heard(systemd, 1), "it beats although nothing is answered any more"
    await client.disconnect()


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}])
async def test_nobody_wants_to_hear_it(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, systemd: socket.socket
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    await asyncio.wait_for(life.beat(), 1)
    assert heard(systemd, 0.01) == []


async def test_no_call_is_lost_when_it_goes(tmp_path: Path) -> None:
    """The bus starts it for whoever calls, and it goes again and again: always just when somebody may call."""
    (tmp_path / "lashd").write_text(
        f"#!/bin/sh\nexport PYTHONPATH={REPOSITORY / 'daemon'}:{REPOSITORY} && cd {REPOSITORY} && "
        f'echo >>{tmp_path}/starts && exec {sys.executable} -c "$(cat {tmp_path}/daemon.py)" '
        '"$DBUS_STARTER_ADDRESS" 0.1 0\n'
    )
    (tmp_path / "lashd").chmod(0o755)
    (tmp_path / "daemon.py").write_text(DAEMON)
    (tmp_path / "x.service").write_text(f"[D-BUS Service]\nName={NAME}\nExec={tmp_path}/lashd\n")
    told, calls = 0, 0
    with private_bus(str(tmp_path)) as (address, _):
        end = time.monotonic() + 8
        while time.monotonic() < end:
            client = await library.connect(address)
            for _ in range(random.randrange(1, 4)):
                # Whatever the moment: an answer, by this daemon or by the next one.
                assert await client.call(NAME, ROOT, f"{NAME}.Manager", "Describe") == ['{"schema": 1}']
                calls += 1
            await client.disconnect()
            await asyncio.sleep(random.uniform(0.1, 0.16))
        told = len((tmp_path / "starts").read_text())
    assert told >= 3, f"it was started {told} times for {calls} calls"


async def test_it_stays_for_whoever_called(address: str, systemd: socket.socket) -> None:
    """Also when he only listens by now. When he is gone it goes, and says so before it gives up its name."""
    listener, caller = await library.connect(address), await library.connect(address)
    async with daemon(address, "", "-c", DAEMON, address, "0.2", "0") as process:
        await owned(listener)
        await caller.call(NAME, ROOT, f"{NAME}.Manager", "Describe")
        await asyncio.sleep(1)
        assert process.returncode is None
        heard(systemd, 0.01)
        await caller.disconnect()
        # Until it is heard nothing goes on.
        systemd.settimeout(5)
        assert systemd.recv(999).startswith(b"STOPPING=1")
        data, (descriptor, *_), _, _ = socket.recv_fds(systemd, 99, 1)
        assert data == b"BARRIER=1"
        late = await library.connect(address)
        asked = [
            asyncio.create_task(late.call(NAME, ROOT, f"{NAME}.Manager", "Describe")),
            asyncio.create_task(late.call(NAME, ROOT, f"{NAME}.Manager", "Upgrade", "a{sv}", [{}])),
        ]
        await asyncio.wait(asked, timeout=0.3)
        assert await listener.call_bus("NameHasOwner", "s", [NAME]) == [True]
        os.close(descriptor)
        # Who came just then is answered: with what there is to read, or that he has to ask again.
        assert await asked[0] == ['{"schema": 1}']
        with pytest.raises(library.BusError, match="ask again in a moment"):
            await asked[1]
        assert await asyncio.wait_for(process.wait(), 5) == 0
        await late.disconnect()
    await listener.disconnect()


# Something comes to be done just when it goes: after it was last asked whether anything is.
TOO_LATE = """
import asyncio, sys
from lashd.bus import service
from tests.bus.fake import FakeService
async def main(address):
    fake, answers = FakeService(), []
    fake.at_rest = lambda: answers.pop(0) if answers else True
    async def armed():
        answers[:] = [True, False]
        return True
    return await service.serve(fake, address, idle_seconds=0.2, arm=armed)
sys.exit(asyncio.run(main(sys.argv[1])))
"""


async def test_something_comes_when_it_has_begun_to_go(address: str) -> None:
    async with daemon(address, "", "-c", TOO_LATE, address) as process:
        assert await asyncio.wait_for(process.wait(), 10) == AGAIN


async def test_it_goes_only_when_it_is_watched_for(address: str) -> None:
    connection = await library.connect(address)

    class Quiet:
        callers: frozenset[str] = frozenset()
        in_progress = 0
        last_call = 0.0
        stopped = False

        def stopping(self) -> None:
            self.stopped = True

    service, answers = FakeService(), [False, True]
    service.rests = True

    async def arm() -> bool:
        return answers.pop(0)

    quiet = Quiet()
    rest = life.Rest(service, quiet, 0.1, arm)  # type: ignore[arg-type]
    started = time.monotonic()
    await asyncio.wait_for(rest.due(), 5)
    assert answers == []
    assert quiet.stopped
    assert time.monotonic() - started >= 0.2, "it waits again before it tries again"
    answers.append(True)
    # Whoever reads metrics again and again.
    service.last_asked = time.monotonic() + 0.5
    started = time.monotonic()
    await asyncio.wait_for(rest.due(), 5)
    assert time.monotonic() - started >= 0.5
    service.rests = False
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(rest.due(), 0.4)
    await connection.disconnect()


async def test_nothing_begins_any_more_once_the_end_is_decided(tmp_path: Path, systemd: socket.socket) -> None:
    """Not even in the next turn of the loop: a job that begins there would be ended at once."""
    found: list[list[str]] = []
    closed: list[str] = []

    class Idle(FakeService):
        callers: frozenset[str] = frozenset()
        in_progress = 0
        last_call = 0.0

        def stopping(self) -> None:
            closed.append("closed")

        def working(self) -> bool:
            asyncio.get_running_loop().call_soon(lambda: found.append(list(closed)))
            return False

        def at_rest(self) -> bool:
            return not self.working()

    idle = Idle()
    reload = life.Reload(lambda: load([tmp_path]))
    reload.begin(or_default=True)
    (tmp_path / "x.toml").write_text("[pull]\nparallel = 3\n")
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.wait_for(reload.due(idle, idle.stopping), 5)
    await asyncio.sleep(0.01)
    assert found[-1] == ["closed"]
    closed.clear()

    async def arm() -> bool:
        return True

    await asyncio.wait_for(life.Rest(idle, idle, 0.1, arm).due(), 5)  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    assert found[-1] == ["closed"]


async def test_new_settings(tmp_path: Path, systemd: socket.socket) -> None:
    """Only other settings begin the daemon anew, and only when no job runs; a mistake changes nothing and is told."""
    file, service = tmp_path / "x.toml", FakeService()
    reload = life.Reload(lambda: load([tmp_path]))
    assert reload.begin(or_default=True) == ""
    due = asyncio.create_task(reload.due(service))

    async def after_hangup() -> list[str]:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        return heard(systemd, 0.01)

    lines = await after_hangup()
    assert [lines[0], lines[2]] == ["RELOADING=1", "READY=1"]
    assert abs(int(lines[1].removeprefix("MONOTONIC_USEC=")) / 1e6 - time.monotonic()) < 5
    file.write_text("[pull]\nparallel = -1\n")
    lines = await after_hangup()
    assert lines[2] == "READY=1"
    assert f"{file}, line 2: 'pull.parallel'" in lines[3]
    assert f"{file}, line 2: 'pull.parallel'" in service.settings_problem
    assert not due.done()
    job, _ = service.start("bind", {}, None)  # type: ignore[arg-type]
    file.write_text("[pull]\nparallel = 3\n")
    assert "as soon as no job is running" in (await after_hangup())[3]
    assert service.settings_problem == ""
    await asyncio.sleep(2 * life.WAIT_SECONDS)
    assert not due.done()
    service.go_on.set()
    await job.wait(5)
    await asyncio.wait_for(due, 5)
    assert reload.current == DEFAULT


async def test_settings_at_start(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[pull]\nparallel = 3\n\nattempts = 0\n")
    reload = life.Reload(lambda: load([tmp_path]))
    said = reload.begin(or_default=True)
    assert "x.toml, line 4: 'pull.attempts'" in said
    assert reload.current.pull == PullSettings()
    assert reload.current == replace(DEFAULT, collect=replace(DEFAULT.collect, after_boot=False))
