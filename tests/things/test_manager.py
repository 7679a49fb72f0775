# SPDX-License-Identifier: Apache-2.0
"""Asking systemd on its private socket: the bytes that it is sent, and whatever may come back.

The real systemd is asked by every test that reboots a booted host.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lashd.things import manager
from lashd.things.manager import ask_for_time, system_state

OK = b"OK 0123456789abcdef0123456789abcdef\r\n"


def reply(state: str, *, order: str = "little", kind: int = 2) -> bytes:
    """A method return whose body is the variant <state>, as GLib would write it."""
    mark = b"l" if order == "little" else b"B"

    def number(value: int) -> bytes:
        return value.to_bytes(4, order)  # type: ignore[arg-type]

    body = b"\x01s\0\0" + number(len(state)) + state.encode() + b"\0"
    fields = b"\x05\x01u\0" + number(1) + b"\x08\x01g\0\x01v\0"
    head = mark + bytes([kind, 1, 1]) + number(len(body)) + number(9) + number(len(fields)) + fields
    return head + bytes(-len(head) % 8) + body


@pytest.fixture
def serve(tmp_path: Path):
    """Answers one caller with the given pieces, first at the greeting, then at the call; notes what it heard."""
    threads = []

    def start(*pieces: bytes) -> tuple[Path, list[bytes]]:
        heard: list[bytes] = []
        path = tmp_path / "private"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen(1)

        def body() -> None:
            with listening, listening.accept()[0] as connection:
                for piece in pieces:
                    heard.append(connection.recv(4096))
                    connection.sendall(piece)

        threads.append(threading.Thread(target=body))
        threads[-1].start()
        return path, heard

    yield start
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("order", ["little", "big"])
def test_the_state(serve: Callable[..., tuple[Path, list[bytes]]], order: str) -> None:
    path, heard = serve(OK, reply("stopping", order=order))
    assert system_state(path) == "stopping"
    assert heard[0] == b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n"
    assert len(heard[1]) == 16 + 104 + 56, "the call is not sent before the greeting"


@pytest.mark.skipif(shutil.which("gdbus") is None, reason="needs GLib's own reader")
def test_the_call_is_what_glib_reads(tmp_path: Path) -> None:
    (tmp_path / "call").write_bytes(manager._call())
    script = (
        "import sys; from gi.repository import Gio; data = open(sys.argv[1], 'rb').read(); "
        "m = Gio.DBusMessage.new_from_blob(data, Gio.DBusCapabilityFlags.NONE); "
        "print(m.get_path(), m.get_interface(), m.get_member(), m.get_body().print_(False), m.get_serial())"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", script, tmp_path / "call"], capture_output=True, text=True)
    assert done.stdout == (
        "/org/freedesktop/systemd1 org.freedesktop.DBus.Properties Get "
        "('org.freedesktop.systemd1.Manager', 'SystemState') 1\n"
    ), done.stderr


def test_signals_may_come_first(serve) -> None:
    assert system_state(serve(OK, reply("x" * 40, kind=4) + reply("degraded"))[0]) == "degraded"


@pytest.mark.parametrize(
    "pieces",
    [
        (b"REJECTED EXTERNAL\r\n",),
        (b"",),
        (OK, b""),
        (OK, reply("access denied", kind=3)),
        (OK, reply("stopping")[:-4]),
        (OK, b"l\x02" + b"\xff" * 64),
        (OK, b"\0" * 200),
        (OK, reply("stopping").replace(b"\x01s\0\0", b"\x01u\0\0")),
    ],
)
def test_anything_else_is_no_answer(serve, pieces: tuple[bytes, ...]) -> None:
    assert system_state(serve(*pieces)[0]) == ""


def test_nobody_there_or_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert system_state(tmp_path / "nobody") == ""
    monkeypatch.setattr(manager, "_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen(1)
        assert system_state(tmp_path / "silent") == ""


def test_asking_for_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (str(tmp_path / "notify"), f"@{tmp_path}/notify"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind("\0" + address[1:] if address.startswith("@") else address)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            ask_for_time(120)
            listening.settimeout(5)
            assert listening.recv(100) == b"EXTEND_TIMEOUT_USEC=120000000"
    # Nobody listens any more, or never did.
    ask_for_time(120)
    monkeypatch.delenv("NOTIFY_SOCKET")
    ask_for_time(120)
