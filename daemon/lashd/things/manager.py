# SPDX-License-Identifier: Apache-2.0
"""What systemd says of the whole system, asked on its own private socket, and a word to it from one of its commands.

That socket is there when the system bus has gone already, and asking there takes no process: this is for the last
moments of a shutdown. One call, whose bytes are always the same; anything but the expected answer is no answer.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

SOCKET = Path("/run/systemd/private")
STOPPING = "stopping"
_SECONDS = 5.0
_LIMIT = 64 * 1024
_REPLY, _ERROR = 2, 3


def system_state(path: Path = SOCKET) -> str:
    """`running`, `stopping`, …, as `systemctl is-system-running` says; empty when systemd cannot be asked."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(os.fspath(path))
            uid = str(os.getuid()).encode().hex().encode()
            # What comes in the same piece as BEGIN is lost, so the call waits for the greeting.
            connection.sendall(b"\0AUTH EXTERNAL " + uid + b"\r\nBEGIN\r\n")
            if not _greeted(connection):
                return ""
            connection.sendall(_call())
            return _answer(connection)
    except (OSError, ValueError, struct.error):
        return ""


def ask_for_time(seconds: float) -> None:
    """Have systemd wait for the end of this command, one of a unit's own, for `seconds` from now on.

    The unit needs `NotifyAccess=exec`. Never raises: where nobody listens the unit's own limit stands.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.settimeout(_SECONDS)
        connection.sendto(f"EXTEND_TIMEOUT_USEC={seconds * 1_000_000:.0f}".encode(), address)


def _greeted(connection: socket.socket) -> bool:
    data = b""
    while not data.endswith(b"\r\n") and len(data) < _LIMIT and (news := connection.recv(1024)):
        data += news
    return data.startswith(b"OK ") and data.endswith(b"\r\n")


def _answer(connection: socket.socket) -> str:
    message = b""
    while len(message) < _LIMIT and (news := connection.recv(4096)):
        message += news
        # Signals may come first.
        while len(message) >= 16:
            order = "<" if message[:1] == b"l" else ">"
            body, _, fields = struct.unpack_from(f"{order}3I", message, 4)
            start = (16 + fields + 7) // 8 * 8
            if len(message) < start + body:
                break
            if message[1] == _REPLY:
                return _text(message[start : start + body], order)
            if message[1] == _ERROR:
                return ""
            message = message[start + body :]
    return ""


def _text(body: bytes, order: str) -> str:
    """The string in a body that is one variant."""
    if not body.startswith(b"\x01s\0\0"):
        return ""
    (length,) = struct.unpack_from(f"{order}I", body, 4)
    return body[8 : 8 + length].decode("ascii")


def _call() -> bytes:
    """Properties.Get(Manager, SystemState), little-endian, serial 1."""
    body = _string("org.freedesktop.systemd1.Manager")
    body = _aligned(body, 4) + _string("SystemState")
    fields = b""
    for code, kind, value in (
        (1, b"o", "/org/freedesktop/systemd1"),
        (2, b"s", "org.freedesktop.DBus.Properties"),
        (3, b"s", "Get"),
    ):
        fields = _aligned(fields, 8) + bytes([code, 1]) + kind + b"\0" + _string(value)
    fields = _aligned(fields, 8) + bytes([8, 1]) + b"g\0" + b"\x02ss\0"
    head = struct.pack("<4B3I", ord("l"), 1, 0, 1, len(body), 1, len(fields)) + fields
    return _aligned(head, 8) + body


def _string(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode() + b"\0"


def _aligned(data: bytes, size: int) -> bytes:
    return data + bytes(-len(data) % size)
