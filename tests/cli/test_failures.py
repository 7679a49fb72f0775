# SPDX-License-Identifier: Apache-2.0
"""When lashd, the bus or the output is not there: one sentence, an exit status, and never a traceback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lashd.bus import library, unsupported
from lashd.bus.library import Message
from lashd.cli import client, failures
from lashd.cli.failures import from_bus, from_name
from lashd.words.errors import DBUS_PREFIX, ERRORS, ErrorName
from tests.cli.conftest import FakeLashd, Lashctl, environment, finish, line_with, no_traceback, private_bus

COMMANDS = [("status",), ("list",), ("jobs",), ("plan",), ("upgrade",), ("bind",), ("rollback",), ("monitor",)]


@pytest.mark.parametrize("arguments", COMMANDS)
async def test_no_lashd(arguments: tuple[str, ...], lashctl: Lashctl) -> None:
    ran = await lashctl(*arguments)
    assert ran.status == 69
    assert ran.out == ""
    assert ran.err.splitlines()[0] == "lashctl: lashd is not running and could not be started."
    assert "systemctl start lashd" in ran.err
    ran = await lashctl(*arguments, "--json")
    assert json.loads(ran.out)["error"]["exit-status"] == ran.status == 69
    no_traceback(ran)


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "nonsense", "unix:abstract=no-such-bus", "tcp:x"])
async def test_no_bus(address: str) -> None:
    ran = await Lashctl(address)("status")
    assert ran.status == 69
    assert ran.err.startswith("lashctl: ")
    assert address.partition("=")[2] in ran.err
    no_traceback(ran)


async def test_the_bus_goes_away_while_we_follow() -> None:
    with private_bus() as (address, daemon):
        service = FakeLashd(await library.connect(address))
        await service.start()
        process = await Lashctl(address).begin("upgrade")
        await line_with(process, "upgrade (job 7)")
        daemon.terminate()
        ran = await finish(process)
        assert ran.status == 69
        assert "The connection to the system bus was lost." in ran.err
        no_traceback(ran)
        await service.die()


async def test_lashd_never_answers(lashd: FakeLashd, lashctl: Lashctl) -> None:
    lashd.connection.serve(lambda message: None)
    process = await lashctl.begin("status")
    await asyncio.sleep(0.5)
    await lashd.die()
    ran = await finish(process)
    assert ran.status == 69
    assert "lashd did not answer" in ran.err
    no_traceback(ran)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", 4),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", 4),
        ("org.freedesktop.DBus.Error.UnknownMethod", 76),
        ("org.freedesktop.DBus.Error.InvalidArgs", 76),
        ("org.freedesktop.DBus.Error.NoReply", 69),
        ("org.freedesktop.DBus.Error.LimitsExceeded", 69),
        ("org.freedesktop.DBus.Error.Spawn.ChildExited", 69),
        ("org.freedesktop.systemd1.NoSuchUnit", 69),
        ("com.example.Whatever", 69),
        (DBUS_PREFIX + "Busy", 5),
        (DBUS_PREFIX + "SomethingNew", 76),
    ],
)
async def test_every_refusal_has_a_status(name: str, status: int, lashd: FakeLashd, lashctl: Lashctl) -> None:
    lashd.connection.serve(lambda message: lashd.connection.refuse(message, name, "Some sentence."))
    for command in ("upgrade", "status"):
        ran = await lashctl(command)
        assert ran.status == status
        assert ran.err.startswith("lashctl: ")
        no_traceback(ran)


async def test_lashd_is_just_being_stopped(lashd: FakeLashd, lashctl: Lashctl) -> None:
    name = "org.freedesktop.DBus.Error.Disconnected"
    lashd.connection.serve(lambda message: lashd.connection.refuse(message, name, "lashd is being stopped."))
    ran = await lashctl("status")
    assert ran.status == 69
    assert "lashd is not running" in ran.err


@pytest.mark.parametrize("name", ErrorName)
def test_the_table_is_the_only_source_of_statuses(name: ErrorName) -> None:
    for failure in (from_bus(DBUS_PREFIX + name, "Told."), from_name(name, "Told.")):
        assert (failure.name, failure.message) == (name.value, "Told.")
        assert failure.exit_status == ERRORS[name].exit_status
        assert failure.retryable == ERRORS[name].retryable
    assert from_name(name, "").message == ERRORS[name].sentence
    assert ERRORS[name].exit_status not in (0, 69, 74, 76, 77, 130)


async def test_a_pipe_that_is_closed(full: FakeLashd, lashctl: Lashctl) -> None:
    full.bound = [full.bound[0] | {"unit": f"{number}.container"} for number in range(3000)]
    for arguments in (("list",), ("list", "--json"), ("status", "--json")):
        reading, writing = os.pipe()
        process = await lashctl.begin(*arguments, stdout=writing)
        os.close(writing)
        await asyncio.to_thread(os.read, reading, 10)
        os.close(reading)
        ran = await finish(process)
        assert (ran.status, ran.err) == (141, "")


async def test_a_disk_that_is_full(full: FakeLashd, lashctl: Lashctl) -> None:
    with open("/dev/full", "w") as target:
        for arguments in (("list",), ("status", "--json"), ("jobs",)):
            ran = await finish(await lashctl.begin(*arguments, stdout=target.fileno()))
            assert ran.status == 74
            assert ran.err == "lashctl: The output cannot be written: No space left on device.\n"


async def test_no_output_at_all(full: FakeLashd, bus_address: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", '"$1" -m lashd.cli status >&- 2>&- <&-', "sh", sys.executable),
        env=environment(bus_address),
    )
    assert await asyncio.wait_for(process.wait(), 20) == 0


def answer_oddly(lashd: FakeLashd) -> None:
    def handle(message: Message) -> None:
        lashd.connection.reply(message, "i", [7])

    lashd.connection.serve(handle)


@pytest.mark.parametrize("arguments", COMMANDS[:-1])
async def test_answers_of_another_type(arguments: tuple[str, ...], lashd: FakeLashd, lashctl: Lashctl) -> None:
    answer_oddly(lashd)
    ran = await lashctl(*arguments)
    assert ran.status == 76
    assert "does not understand" in ran.err
    no_traceback(ran)


def run_plain(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lashd.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment("unix:path=/nonexistent/bus", **more),
        timeout=30,
        check=False,
    )


def test_a_mistake_of_ours_is_one_sentence(tmp_path) -> None:
    # A library that does not load stands for whatever may be wrong with an installation.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['lashd.cli.walk'] = None\n")
    path = f"{tmp_path}:{environment('')['PYTHONPATH']}"
    ran = run_plain("status", PYTHONPATH=path)
    assert ran.returncode == 70
    assert ran.stderr.startswith("lashctl: lashctl made a mistake (ModuleNotFoundError).")
    assert "Traceback" not in ran.stderr
    assert "Traceback" in run_plain("status", PYTHONPATH=path, LASHCTL_DEBUG="1").stderr


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("jobs", "x"), ("jobs", "--follow", "1", "--cancel", "1"), ("jobs", "9" * 5000)]
)
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    ran = run_plain(*arguments)
    assert ran.returncode == 2
    assert "usage: lashctl" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", [name for (name,) in COMMANDS])
def test_help_needs_no_bus_and_has_examples(command: str) -> None:
    ran = run_plain(command, "--help")
    assert ran.returncode == 0
    assert "examples:" in ran.stdout
    assert f"  lashctl {command}" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 110
    assert command in run_plain("--help").stdout


def test_a_host_that_lashd_does_not_run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the daemon said when it was started, in place of that it could not be."""
    unsupported.leave_word(tmp_path, "This host is another one.")
    monkeypatch.setattr(failures, "word_left", lambda: unsupported.word_left(tmp_path))
    for name in ("ServiceUnknown", "Spawn.ChildExited", "NoReply"):
        failure = from_bus(f"org.freedesktop.DBus.Error.{name}", "it ended")
        assert (failure.name, failure.message, failure.exit_status) == (
            "UnsupportedHost",
            "This host is another one.",
            6,
        )
    unsupported.leave_word(tmp_path, "")
    assert from_bus("org.freedesktop.DBus.Error.ServiceUnknown", "").exit_status == 69


async def test_on_such_a_host_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus would wait for a service that has ended; one that is there is asked all the same."""
    monkeypatch.setattr(client, "word_left", lambda: "This host is another one.")
    with private_bus() as (address, _):
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        with pytest.raises(failures.Failure, match="This host is another one") as caught:
            async with client.connect(interactive=False):
                pass
        assert caught.value.exit_status == 6
        service = FakeLashd(await library.connect(address))
        await service.start()
        async with client.connect(interactive=False) as lashctl:
            assert await lashctl.describe()
        await service.die()
