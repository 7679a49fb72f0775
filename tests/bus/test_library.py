# SPDX-License-Identifier: Apache-2.0
"""The adapter as clients use it."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys

import pytest

from tests.bus.conftest import NOBODY, REPOSITORY, private_bus, run

NAME = "io.github.lashd1"
ROOT = "/io/github/lashd1"
BUS = "org.freedesktop.DBus"


async def test_no_bus(bus_modules, tmp_path) -> None:
    library = bus_modules.library
    with pytest.raises(library.BusError) as caught:
        await library.connect(f"unix:path={tmp_path}/none")
    assert caught.value.name == f"{BUS}.Error.NoServer"


async def test_a_bus_that_hangs_up_at_once(bus_modules, tmp_path) -> None:
    library = bus_modules.library

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n")
        writer.close()

    server = await asyncio.start_unix_server(hang_up, tmp_path / "socket")
    async with server:
        with pytest.raises(library.BusError) as caught:
            await asyncio.wait_for(library.connect(f"unix:path={tmp_path}/socket"), 5)
    assert caught.value.name == f"{BUS}.Error.NoServer"


async def test_an_answer_that_is_given_again_is_the_same(bus_modules) -> None:
    """What is kept of an answer must not reach anyone but those who get this answer, nor be made twice."""
    library = bus_modules.library
    answers = [library.Settled([["one", "two"], 1]), ["plain"], library.Settled([["three"], 2])]
    with private_bus() as (address, _daemon):
        service, client = await library.connect(address), await library.connect(address)

        def answer(message) -> None:
            which = answers[message.body[0]]
            service.reply(message, "s" if len(which) == 1 else "asu", which)

        service.serve(answer)
        await service.request_name(NAME)
        for number in (0, 1, 2, 0, 2, 1, 0):
            assert await client.call(NAME, "/", f"{NAME}.Manager", "Ask", "u", [number]) == list(answers[number])
        if library.LIBRARY == "dbus_next":
            kept = answers[0].marshalled
            assert b"two" in kept
            # The kept bytes are what is sent, and not made anew.
            answers[0].marshalled = kept.replace(b"two", b"six")
            assert await client.call(NAME, "/", f"{NAME}.Manager", "Ask", "u", [0]) == [["one", "six"], 1]
        await service.disconnect()
        await client.disconnect()


async def test_the_bus_goes_away(bus_modules) -> None:
    library = bus_modules.library
    with private_bus() as (address, daemon):
        client = await library.connect(address)
        watch = await client.watch(library.Match(sender=NAME))
        hanging = asyncio.create_task(client.call(BUS, "/", BUS, "GetId"))
        daemon.terminate()
        await asyncio.wait_for(client.lost(), 5)
        with pytest.raises(library.BusError) as caught:
            await anext(watch)
        assert caught.value.name == f"{BUS}.Error.Disconnected"
        await asyncio.wait([hanging])
        hanging.exception()
        with pytest.raises(library.BusError) as caught:
            await client.call_bus("GetId")
        assert caught.value.name == f"{BUS}.Error.Disconnected"
        client.emit("/x", "a.b", "C", "", [])
        await watch.close()
        await client.disconnect()


async def test_calls_that_fail(door) -> None:
    with pytest.raises(door.BusError) as caught:
        await door.call("Wait", "a{sv}", {}, path=await door.call("Plan", "a{sv}", {}), interface="Job", timeout=0.1)
    assert caught.value.name == f"{BUS}.Error.NoReply"
    with pytest.raises(door.BusError) as caught:
        await door.client.call("io.github.nobody", "/", "a.b", "C")
    assert caught.value.name == f"{BUS}.Error.ServiceUnknown"
    for arguments in [("not a name", "/", "a.b", "C"), (NAME, "/", "a.b", "C", "u", ["text"])]:
        with pytest.raises(door.BusError) as caught:
            await door.client.call(*arguments)
        assert caught.value.name == f"{BUS}.Error.InvalidArgs"


async def test_a_client_has_no_methods(door) -> None:
    result = await run(
        *("busctl", "--address", door.address, "call", door.client.name, "/", f"{BUS}.Properties", "GetAll", "s", "")
    )
    assert result.status == 1
    assert "This is a client" in result.stderr or "Access denied" in result.stderr


async def test_the_interactive_flag_arrives(door) -> None:
    seen = []
    serve = door.dispatcher.handle
    door.connection.serve(lambda message: (seen.append(message.interactive), serve(message)))
    for interactive in (True, False):
        await door.call("Describe", interactive=interactive)
    assert seen == [True, False]


async def test_only_the_owner_is_believed(door) -> None:
    """Anyone can send anyone a signal that looks like one of ours."""
    async with await door.client.watch(door.Match(sender=NAME, member="JobNew")) as signals:
        emit = ["busctl", "--address", door.address, "emit", f"--destination={door.client.name}"]
        for uid in (0, NOBODY):
            await run(*emit, ROOT, f"{NAME}.Manager", "JobNew", "tos", "666", f"{ROOT}/job/666", "evil", uid=uid)
        await door.call("Plan", "a{sv}", {})
        signal = await asyncio.wait_for(anext(signals), 5)
        assert list(signal.body) == [1, f"{ROOT}/job/1", "plan"]
        await door.connection.call_bus("ReleaseName", "s", [NAME])
        signal = await asyncio.wait_for(anext(signals), 5)
        assert (signal.member, signal.body[2]) == ("NameOwnerChanged", "")


async def test_a_second_daemon_is_refused(door) -> None:
    with pytest.raises(door.BusError, match="twice"):
        await door.client.request_name(NAME)


async def test_nothing_but_root_owns_the_name(door) -> None:
    await door.connection.call_bus("ReleaseName", "s", [NAME])
    result = await run(
        *("busctl", "--address", door.address, "call", BUS, "/", BUS, "RequestName", "su", NAME, "0"), uid=NOBODY
    )
    assert result.status == 1


def test_the_choice_of_library() -> None:
    show = [sys.executable, "-c", "import lashd.bus.library as it; print(it.LIBRARY)"]

    def chosen(**environment: str) -> subprocess.CompletedProcess[str]:
        path = {"PYTHONPATH": str(REPOSITORY / "daemon"), "PATH": os.environ["PATH"]}
        return subprocess.run(show, env=path | environment, capture_output=True, text=True, check=False)

    default = "dbus_fast" if sys.version_info >= (3, 15) else "dbus_next"
    assert chosen().stdout.strip() == default
    assert chosen(LASHD_DBUS="dbus_fast").stdout.strip() == "dbus_fast"
    assert "must be dbus_next or dbus_fast" in chosen(LASHD_DBUS="dbus_other").stderr


@pytest.mark.parametrize(
    ("match", "rule"),
    [
        ({}, "type='signal'"),
        ({"sender": "a.b", "member": "C"}, "type='signal',sender='a.b',member='C'"),
        ({"path_namespace": "/a", "arguments": {2: ""}}, "type='signal',path_namespace='/a',arg2=''"),
    ],
)
def test_match_rules(match, rule) -> None:
    library = importlib.import_module("lashd.bus.library")
    assert library.Match(**match).rule == rule


@pytest.mark.parametrize(
    ("match", "accepted"),
    [
        ({}, True),
        ({"sender": "a.well.known.name"}, True),
        ({"sender": ":1.5"}, True),
        ({"sender": ":1.6"}, False),
        ({"sender": BUS}, False),
        ({"path": "/a/b", "interface": "i.f", "member": "M"}, True),
        ({"path": "/a"}, False),
        ({"path_namespace": "/a"}, True),
        ({"path_namespace": "/a/b"}, True),
        ({"path_namespace": "/a/bb"}, False),
        ({"path_namespace": "/"}, True),
        ({"arguments": {0: "x", 1: ""}}, True),
        ({"arguments": {2: ""}}, False),
        ({"member": "N"}, False),
    ],
)
def test_matching(match, accepted) -> None:
    library = importlib.import_module("lashd.bus.library")
    message = library.Message(False, ":1.5", "/a/b", "i.f", "M", "ss", ["x", ""])
    assert library.Match(**match).accepts(message) is accepted


async def test_what_does_not_run_is_started_unless_that_is_not_wanted(bus_modules, tmp_path) -> None:
    library, name = bus_modules.library, "io.github.lashd1"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nmkdir {tmp_path}/started\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / f"{name}.service").write_text(f"[D-BUS Service]\nName={name}\nExec={program}\n")
    with private_bus(str(tmp_path)) as (address, _daemon):
        client = await library.connect(address)
        for start in (False, True):
            with pytest.raises(library.BusError) as caught:
                await client.call(name, "/", "org.freedesktop.DBus.Peer", "Ping", start=start)
            absent = ("NameHasNoOwner", "ServiceUnknown")
            assert (caught.value.name.rpartition(".")[2] in absent) != start
            assert (tmp_path / "started").exists() == start
        await client.disconnect()
