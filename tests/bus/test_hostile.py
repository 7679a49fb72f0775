# SPDX-License-Identifier: Apache-2.0
"""Callers who mean harm, or only do it: floods, junk, calls that never end. The door stays open and stays small."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import struct
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import wire

NAME = "io.github.lashd1"
ROOT = "/io/github/lashd1"


def memory() -> int:
    """Resident memory of this process in KiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_a_thousand_bad_calls_leave_nothing(door) -> None:
    Variant = door.Variant
    signatures = ("".join(letters) for letters in itertools.product("ynqiuxt", repeat=4))

    async def bad(number: int) -> None:
        signature = next(signatures)
        options = {f"key{number}": Variant(f"({signature})", [1, 1, 1, 1])}
        for arguments in (
            ("Upgrade", "a{sv}", options),
            ("Upgrade", signature, *([1] * 4)),
            (f"Explode{number}", ""),
        ):
            with contextlib.suppress(door.BusError):
                await door.call(*arguments)
        with contextlib.suppress(door.BusError):
            await door.call("Cancel", "", path=f"{ROOT}/job/{number + 5}", interface="Job")

    for number in range(150):
        await bad(number)
    before, open_before = memory(), descriptors()
    for number in range(150, 400):
        await bad(number)
    assert memory() - before < 1500
    assert descriptors() == open_before
    assert door.dispatcher.in_progress == 0
    assert not door.dispatcher._by_sender
    assert not door.dispatcher._by_user
    if door.modules.library.LIBRARY == "dbus_next":
        from dbus_next.signature import SignatureTree

        assert len(SignatureTree._cache) <= 510
    assert door.service.started == []


async def test_one_connection_has_only_so_many_calls_in_progress(door) -> None:
    limit = door.modules.dispatch.PER_SENDER
    path = await door.call("Upgrade", "a{sv}", {})
    greedy = await door.modules.library.connect(door.address)
    calls = [
        asyncio.create_task(greedy.call(NAME, path, f"{NAME}.Job", "Wait", "a{sv}", [{}])) for _ in range(limit + 5)
    ]
    await asyncio.sleep(0.2)
    refused = [call.exception() for call in calls if call.done()]
    assert len(refused) == 5
    assert {error.name for error in refused} == {"org.freedesktop.DBus.Error.LimitsExceeded"}
    assert door.dispatcher.in_progress == limit
    # Others are served all the same, and reading is never refused.
    assert await door.call("Sync") == 2
    assert await greedy.call(NAME, ROOT, f"{NAME}.Manager", "Describe")
    # Who leaves takes everything along.
    await greedy.disconnect()
    await asyncio.gather(*calls, return_exceptions=True)
    for _ in range(100):
        if not door.dispatcher.in_progress:
            break
        await asyncio.sleep(0.02)
    assert door.dispatcher.in_progress == 0


async def test_one_user_has_only_so_many_calls_in_progress(door, monkeypatch) -> None:
    monkeypatch.setattr(door.modules.dispatch, "PER_USER", 6)
    path = await door.call("Upgrade", "a{sv}", {})
    root = door.client.name

    async def uid_of(sender: str) -> int:
        return 0 if sender == root else 1000

    monkeypatch.setattr(door.dispatcher, "_uid_of", uid_of)
    clients = [await door.modules.library.connect(door.address) for _ in range(2)]
    calls = [
        asyncio.create_task(client.call(NAME, path, f"{NAME}.Job", "Wait", "a{sv}", [{}]))
        for client in clients
        for _ in range(5)
    ]
    await asyncio.sleep(0.2)
    assert sum(call.done() for call in calls) == 4
    waiting = [asyncio.create_task(door.call("Wait", "a{sv}", {}, path=path, interface="Job")) for _ in range(10)]
    await asyncio.sleep(0.1)
    assert not any(call.done() for call in waiting)
    door.service.go_on.set()
    await asyncio.gather(*calls, *waiting, return_exceptions=True)
    for client in clients:
        await client.disconnect()


async def test_a_flood_does_not_silence_the_door(door) -> None:
    """One caller sends as fast as it can and wants no answers; another one is answered while it does."""
    module = __import__(door.modules.library.LIBRARY)
    greedy = await door.modules.library.connect(door.address)
    for _ in range(3000):
        message = module.Message(
            destination=NAME,
            path=ROOT,
            interface=f"{NAME}.Manager",
            member="Describe",
            flags=module.MessageFlag.NO_REPLY_EXPECTED,
        )
        greedy._bus.send(message).add_done_callback(lambda sent: sent.cancelled() or sent.exception())
    started = time.monotonic()
    assert await door.call("Describe", timeout=10)
    assert time.monotonic() - started < 5
    await greedy.disconnect()


async def test_a_message_of_many_megabytes(door) -> None:
    """dbus-next would take seconds and gigabytes for it; it is refused unread. dbus-fast is quick."""
    lists = [[1, 2]] * 400_000
    # Building the message takes its time as well; only the service's part is looked at.
    big = asyncio.create_task(door.call("Upgrade", "a(yy)", lists, timeout=20))
    await asyncio.sleep(0)
    started = time.monotonic()
    assert await door.call("Describe")
    with pytest.raises(door.BusError) as caught:
        await big
    if door.modules.library.LIBRARY == "dbus_next":
        assert caught.value.name.endswith(".LimitsExceeded")
        assert "nothing of it was done" in caught.value.message
    assert time.monotonic() - started < 5
    assert await door.call("ListJobs", "a{sv}", {}) == []


class JunkBus:
    """A bus that lets a connection in and then sends it whatever it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.send = asyncio.Event()
        self.junk = b""
        self.slow = False
        self.received = 0
        self.all_received = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n")
        writer.write(b"OK 0123456789abcdef0123456789abcdef\r\n")
        await reader.readuntil(b"BEGIN\r\n")
        await reader.read(4096)
        if self.slow:
            writer.transport.pause_reading()
        # The answer to Hello: our unique name.
        writer.write(message(2, struct.pack("<I", 4) + b":1.1\0", fields=[(5, "u", 1), (8, "g", "s")]))
        await self.send.wait()
        writer.write(self.junk)
        if self.slow:
            writer.transport.resume_reading()
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                self.received += len(piece)
                if self.received > 3000 * 1000:
                    self.all_received.set()
        writer.close()


def message(kind: int, body: bytes = b"", *, fields: list[tuple[int, str, object]], sender: bool = True) -> bytes:
    head = b""
    for code, signature, value in [*fields, *([(7, "s", "org.freedesktop.DBus")] if sender else [])]:
        head += b"\0" * (-len(head) % 8) + bytes([code, 1]) + signature.encode() + b"\0"
        if signature == "u":
            head += struct.pack("<I", value)
        elif signature == "g":
            head += bytes([len(str(value))]) + str(value).encode() + b"\0"
        else:
            head += struct.pack("<I", len(str(value))) + str(value).encode() + b"\0"
    whole = struct.pack("<BBBBIII", ord("l"), kind, 0, 1, len(body), 1, len(head)) + head
    return whole + b"\0" * (-len(whole) % 8) + body


SIGNAL = [(1, "o", "/a"), (2, "s", "a.b")]


@pytest.mark.parametrize(
    "junk",
    [
        message(9, fields=[*SIGNAL, (3, "s", "Junk")]),
        message(4, fields=[*SIGNAL, (77, "s", "Junk")]),
        message(4, fields=[*SIGNAL, (3, "s", "not a member")]),
        message(4, b"\3\0\0\0\xff\xff\xff\0", fields=[*SIGNAL, (3, "s", "Junk"), (8, "g", "s")]),
        message(4, b"\0" * 3_000_000, fields=[*SIGNAL, (3, "s", "Junk"), (8, "g", "a(yy)")]),
    ],
    ids=["type", "field", "member", "utf-8", "size"],
)
async def test_junk_from_the_bus_is_dropped(tmp_path, monkeypatch, bus_modules: SimpleNamespace, junk: bytes) -> None:
    """What cannot be parsed costs one message, not the connection. (dbus-fast has its own ways and is not repaired.)"""
    if bus_modules.library.LIBRARY != "dbus_next":
        pytest.skip("only dbus-next is repaired")
    bus = JunkBus(tmp_path / "bus")
    bus.junk = junk + message(4, fields=[*SIGNAL, (3, "s", "Good")])
    server = await asyncio.start_unix_server(bus.serve, bus.path)
    async with server:
        connection = await bus_modules.library.connect(f"unix:path={bus.path}", largest=1_000_000)
        heard: asyncio.Queue[str] = asyncio.Queue()
        connection.listen(lambda signal: heard.put_nowait(signal.member))
        bus.send.set()
        assert await asyncio.wait_for(heard.get(), 5) == "Good"
        connection._bus.disconnect()
        await asyncio.wait_for(connection.lost(), 5)


async def test_who_sends_what_cannot_be_read_is_told(tmp_path: Path, bus_modules: SimpleNamespace) -> None:
    """Too large, or beyond the library: whoever waits for an answer gets one; nobody else does."""
    if bus_modules.library.LIBRARY != "dbus_next":
        pytest.skip("only dbus-next is repaired")
    bus = JunkBus(tmp_path / "bus")
    call = [(wire.PATH, "/a"), (wire.MEMBER, "Call"), (wire.SENDER, ":1.7")]
    large, broken = [*call, (wire.SIGNATURE, "ay")], [*call, (wire.SIGNATURE, "s")]
    text = b"\3\0\0\0\xff\xff\xff\0"
    size = (200_000).to_bytes(4, "little") + b"\0" * 200_000
    bus.junk = b"".join((
        wire.encode(wire.CALL, large, size, serial=11),
        wire.encode(wire.CALL, broken, text, serial=12),
        wire.encode(wire.CALL, [(200, "s", "x"), *large], size[::-1], serial=13, order="<"),
        wire.encode(wire.CALL, [*call, (wire.SIGNATURE, "ay")], size, serial=14, flags=wire.NO_REPLY),
        wire.encode(wire.SIGNAL, [*large, (wire.INTERFACE, "a.b")], size, serial=15),
        wire.encode(wire.CALL, large[:2], size, serial=16),
    ))  # fmt: skip
    server = await asyncio.start_unix_server(bus.serve, bus.path)
    async with server:
        connection = await bus_modules.library.connect(f"unix:path={bus.path}", largest=100_000)
        refused: asyncio.Queue[tuple[str, int, str]] = asyncio.Queue()
        connection.refuse = lambda call, name, why: refused.put_nowait((call.sender, call.serial, name))
        connection.listen(lambda signal: refused.put_nowait((signal.member, 0, "")))
        bus.junk += message(4, fields=[*SIGNAL, (3, "s", "Last")])
        bus.send.set()
        error = "org.freedesktop.DBus.Error"
        assert [await asyncio.wait_for(refused.get(), 5) for _ in range(4)] == [
            (":1.7", 11, f"{error}.LimitsExceeded"),
            (":1.7", 12, f"{error}.InvalidArgs"),
            (":1.7", 13, f"{error}.LimitsExceeded"),
            ("Last", 0, ""),
        ]
        connection._bus.disconnect()
        await asyncio.wait_for(connection.lost(), 5)


async def test_looking_because_somebody_asks_takes_a_share_of_the_time(door) -> None:
    looks = 0
    look = door.dispatcher._tree.look

    def slow() -> None:
        nonlocal looks
        looks += 1
        time.sleep(0.02)  # what a host with some images takes
        look()

    door.dispatcher._tree.look = slow
    began = time.monotonic()
    while time.monotonic() - began < 1:
        with contextlib.suppress(door.BusError):
            await door.call("Cancel", "a{sv}", {}, path=f"{ROOT}/job/99", interface="Job")
        await door.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")
    # A quarter of a second, a tenth of the time, and the one that was begun.
    assert 10 <= looks <= 19


async def test_a_bus_that_does_not_read_for_a_while(tmp_path, bus_modules: SimpleNamespace) -> None:
    """A full socket is no broken one."""
    bus = JunkBus(tmp_path / "bus")
    bus.slow = True
    server = await asyncio.start_unix_server(bus.serve, bus.path)
    async with server:
        connection = await bus_modules.library.connect(f"unix:path={bus.path}")
        for _ in range(3000):
            connection.emit("/a", "a.b", "C", "s", ["x" * 1000])
        await asyncio.sleep(0.1)
        assert connection.connected
        bus.send.set()
        await asyncio.wait_for(bus.all_received.wait(), 10)
        assert connection.connected
        connection._bus.disconnect()
        await asyncio.wait_for(connection.lost(), 5)
