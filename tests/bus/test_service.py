# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: how it starts, how it ends, what it tells systemd, how much it takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lashd.bus import journal, library, unsupported
from tests.bus.conftest import REPOSITORY, private_bus

NAME = "io.github.lashd1"
ROOT = "/io/github/lashd1"
DAEMON = """
import asyncio, sys
from lashd.bus import service
service.set_up_logging()
from tests.bus.fake import FakeService
from lashd.bus.library import BusError
try:
    sys.exit(asyncio.run(service.serve(FakeService(), sys.argv[1])))
except BusError as error:
    sys.exit(error.message)
"""


@contextlib.asynccontextmanager
async def daemon(address: str, which: str = "", *argv: str, **environment: str) -> AsyncIterator[Any]:
    """A process that serves the double (or what `argv` says)."""
    command = argv or ("-c", DAEMON, address)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'daemon'}:{REPOSITORY}", "LASHD_DBUS": which} | environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def owned(client: library.Connection, seconds: float = 10) -> None:
    match = library.Match(sender=library.BUS, member="NameOwnerChanged", arguments={0: NAME})
    async with await client.watch(match) as changes, asyncio.timeout(seconds):
        if not (await client.call_bus("NameHasOwner", "s", [NAME]))[0]:
            await anext(changes)


@pytest.fixture(params=["dbus_next", "dbus_fast"])
def which(request: pytest.FixtureRequest) -> str:
    return request.param


def heard(told: socket.socket, last: bytes) -> list[bytes]:
    """What systemd was told before `last`, a line each."""
    lines: list[bytes] = []
    while last not in lines:
        lines += told.recv(999).split(b"\n")
    return lines[: lines.index(last)]


async def test_start_and_stop(address: str, which: str, tmp_path: Path) -> None:
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(5)
    client = await library.connect(address)
    started = time.monotonic()
    async with daemon(address, which, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
        await owned(client)
        took = time.monotonic() - started
        assert [line[:7] for line in heard(told, b"READY=1")] == [b"STATUS="]
        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4 / 1024
        (path,) = await client.call(NAME, ROOT, f"{NAME}.Manager", "Upgrade", "a{sv}", [{}])
        async with await client.watch(library.Match(sender=NAME, member="JobDone")) as signals:
            waiting = asyncio.create_task(client.call(NAME, path, f"{NAME}.Job", "Wait", "a{sv}", [{}]))
            await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            # The running job is cancelled, and everyone hears of it.
            assert (await asyncio.wait_for(anext(signals), 5)).body[3] == "cancelled"
            assert (await waiting)[0] == "cancelled"
        assert await asyncio.wait_for(process.wait(), 5) == 0
        assert any(line.startswith(b"STATUS=Job ") for line in heard(told, b"STOPPING=1"))
        errors = (await process.stderr.read()).decode()
        assert "Traceback" not in errors
        assert "ERROR" not in errors
    told.close()
    await client.disconnect()
    print(f"{which}: name owned after {took * 1000:.0f} ms, {resident:.1f} MiB")
    # 500 ms and 45 MiB are what we want on an idle machine; the tests share theirs.
    assert took < 2.5
    assert resident < 45


async def test_the_bus_is_lost(which: str) -> None:
    with private_bus() as (address, bus):
        async with daemon(address, which) as process:
            client = await library.connect(address)
            await owned(client)
            bus.terminate()
            assert await asyncio.wait_for(process.wait(), 5) == 1
            errors = (await process.stderr.read()).decode()
            assert "was lost" in errors
            assert "Traceback" not in errors
            await client.disconnect()


async def test_a_second_daemon(address: str, which: str) -> None:
    client = await library.connect(address)
    async with daemon(address, which):
        await owned(client)
        async with daemon(address, which) as second:
            assert await asyncio.wait_for(second.wait(), 10) == 1
            assert b"running twice" in await second.stderr.read()
    await client.disconnect()


async def test_main_without_a_bus_or_with_bad_settings(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[pull]\ncolour = 1\n")
    main = ("-m", "lashd.bus.service")
    async with daemon("", "", *main, "--settings", str(tmp_path), "--bus", "unix:path=/nowhere") as process:
        assert await asyncio.wait_for(process.wait(), 10) == 2
        errors = (await process.stderr.read()).decode()
        assert "bad.toml" in errors
        assert "Traceback" not in errors


def record(**extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("lashd.x", logging.WARNING, "/x.py", 7, "said %s", ("so",), None, "function")
    vars(made).update(extra)
    return made


def test_journal_fields() -> None:
    fields = journal.fields(record(LASHD_JOB=5, MESSAGE_ID="ab" * 16, other="no"))
    assert fields == {
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "lashd",
        "LOGGER": "lashd.x",
        "CODE_FILE": "/x.py",
        "CODE_LINE": 7,
        "CODE_FUNC": "function",
        "LASHD_JOB": "5",
        "MESSAGE_ID": "ab" * 16,
    }


def test_the_journal_is_used_only_when_stderr_goes_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert journal._journal_handler() is None
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        sent: list[tuple[str, dict[str, Any]]] = []
        systemd = pytest.importorskip("systemd.journal")
        monkeypatch.setattr(systemd, "send", lambda message, **fields: sent.append((message, fields)))
        handler = journal._journal_handler()
        assert handler is not None
        handler.emit(record())
        assert sent[0][0] == "said so"
        assert sent[0][1]["PRIORITY"] == "4"


def test_notify_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    journal.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    journal.notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0lashd-test-{os.getpid()}")
        abstract.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@lashd-test-{os.getpid()}")
        journal.notify("READY=1", "STATUS=well")
        assert abstract.recv(99) == b"READY=1\nSTATUS=well"


def test_units_fit_together() -> None:
    unit = (REPOSITORY / "units/lashd.service").read_text()
    activation = (REPOSITORY / "dbus/io.github.lashd1.service").read_text()
    assert f"BusName={NAME}\n" in unit
    assert "Type=notify\n" in unit
    assert f"Name={NAME}\n" in activation
    assert "SystemdService=lashd.service\n" in activation
    assert "\nExecStart=/usr/bin/lashd\n" in unit
    assert "\nExec=/usr/bin/lashd\n" in activation


async def test_an_unsupported_host(address: str, tmp_path: Path) -> None:
    """It ends at once with a status of its own, says why, and lashctl finds that."""
    for name in ("proc", "run/composefs", "settings"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/cmdline").write_text(f"composefs={'b2' * 64} rw\n")
    (tmp_path / "settings/host.toml").write_text(
        f"[paths]\nroot = '{tmp_path}'\nrun = '{tmp_path}/run/lashd'\ncomposefs_run = '{tmp_path}/run/composefs'\n"
    )
    argv = ("-m", "lashd.bus.service", "--bus", address, "--settings", str(tmp_path / "settings"))
    async with daemon(address, "", *argv) as process:
        said = (await asyncio.wait_for(process.stderr.read(), 20)).decode()
        assert await process.wait() == 6
    word = unsupported.word_left(tmp_path / "run/lashd")
    assert word in said
    assert "composefs" in word
    assert "Traceback" not in said
    unsupported.leave_word(tmp_path / "run/lashd", "")
    assert unsupported.word_left(tmp_path / "run/lashd") == ""
    unsupported.leave_word(tmp_path / "proc/cmdline/no directory", "Nobody can read this.")


def test_a_mistake_in_the_settings_is_what_systemctl_shows(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[gate]\npolicy = 'of'\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        ran = subprocess.run(
            [sys.executable, "-m", "lashd.bus.service", "--settings", str(tmp_path)],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONPATH": str(REPOSITORY / "daemon")},
            capture_output=True,
            text=True,
            check=False,
        )
        status = manager.recv(4096).decode()
    assert ran.returncode == 2
    for said in (status, ran.stderr):
        assert f"{tmp_path / 'bad.toml'}, line 2: 'gate.policy'" in said
    assert status.startswith("STATUS=")
