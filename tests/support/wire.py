# SPDX-License-Identifier: Apache-2.0
"""D-Bus by hand, for what no library would send: raw messages, and a client that blocks."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dbus_fast._private.marshaller import Marshaller

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY = 1
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE, UNIX_FDS = range(1, 10)
_TYPES = {PATH: "o", REPLY_SERIAL: "u", SIGNATURE: "g", UNIX_FDS: "u"}


def encode(
    kind: int,
    fields: Iterable[tuple[int, object] | tuple[int, str, object]],
    body: bytes = b"",
    *,
    serial: int = 1,
    flags: int = 0,
    order: str = "<",
) -> bytes:
    """A message, right or wrong: `fields` are header fields with their value, and their type where it is not the usual.

    `body` goes as it is.
    """
    head = b""
    for field in fields:
        code, signature, value = field if len(field) == 3 else (field[0], _TYPES.get(field[0], "s"), field[1])
        head += b"\0" * (-len(head) % 8) + bytes([code, len(signature)]) + signature.encode() + b"\0"
        text = str(value).encode()
        if signature == "u":
            head += b"\0" * (-len(head) % 4) + struct.pack(f"{order}I", value)
        elif signature == "g":
            head += bytes([len(text)]) + text + b"\0"
        else:
            head += b"\0" * (-len(head) % 4) + struct.pack(f"{order}I", len(text)) + text + b"\0"
    first = ord("l" if order == "<" else "B")
    whole = struct.pack(f"{order}BBBBIII", first, kind, flags, 1, len(body), serial, len(head)) + head
    return whole + b"\0" * (-len(whole) % 8) + body


def marshalled(signature: str, body: Sequence[Any]) -> bytes:
    """A body as it should be."""
    return bytes(Marshaller(signature, list(body)).marshall())


@dataclass(frozen=True, slots=True)
class Answer:
    """A message that came in; `body` as it was sent."""

    sender: str
    kind: int
    reply_serial: int
    error: str
    body: bytes

    @property
    def sentence(self) -> str:
        """The text of an error."""
        return self.body[4:-1].decode(errors="replace") if self.kind == ERROR else ""


class Client:
    """A connection that blocks. Raises ConnectionError when the bus ends it, TimeoutError when nothing comes."""

    def __init__(self, address: str, *, steps: int = 3, timeout: float = 10.0) -> None:
        """`steps`: how far it goes: 0 connects, 1 begins to authenticate, 2 ends that, 3 says Hello."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self._buffer = b""
        self.serial = 0
        try:
            self.socket.connect(address.partition("unix:path=")[2].partition(",")[0])
            if steps >= 1:
                self.socket.sendall(b"\0AUTH EXTERNAL ")
            if steps >= 2:
                self.socket.sendall(str(os.getuid()).encode().hex().encode() + b"\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")
                while self._buffer.count(b"\r\n") < 2:
                    self._more()
                self._buffer = b""
            if steps >= 3:
                bus = "org.freedesktop.DBus"
                fields = [(PATH, "/org/freedesktop/DBus"), (INTERFACE, bus), (MEMBER, "Hello"), (DESTINATION, bus)]
                serial = self.next_serial()
                self.send(encode(CALL, fields, serial=serial))
                self.answer_to(serial)
        except BaseException:
            self.close()
            raise

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        if descriptors:
            sent = socket.send_fds(self.socket, [data], descriptors)
            data = data[sent:]
        self.socket.sendall(data)

    def answers(self) -> Iterator[Answer]:
        """What comes in, as it comes in."""
        while True:
            while (size := _size(self._buffer)) is None or len(self._buffer) < size:
                self._more()
            message, self._buffer = self._buffer[:size], self._buffer[size:]
            yield _decode(message)

    def answer_to(self, serial: int) -> Answer:
        return next(answer for answer in self.answers() if answer.reply_serial == serial)

    def _more(self) -> None:
        piece = self.socket.recv(262_144)
        if not piece:
            raise ConnectionError("the bus has ended the connection")
        self._buffer += piece

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()


def _size(data: bytes) -> int | None:
    if len(data) < 16:
        return None
    order = "<" if data[:1] == b"l" else ">"
    body, _serial, fields = struct.unpack_from(f"{order}III", data, 4)
    return int(16 + fields + -fields % 8 + body)


def _decode(message: bytes) -> Answer:
    order = "<" if message[:1] == b"l" else ">"
    body, _serial, length = struct.unpack_from(f"{order}III", message, 4)
    reply_serial, texts = 0, {ERROR_NAME: "", SENDER: ""}
    at, end = 16, 16 + length
    while at < end:
        at += -at % 8
        code, size = message[at], message[at + 1]
        signature = message[at + 2 : at + 2 + size].decode()
        at += 3 + size
        if signature == "u":
            at += -at % 4
            (number,) = struct.unpack_from(f"{order}I", message, at)
            reply_serial = number if code == REPLY_SERIAL else reply_serial
            at += 4
        elif signature == "g":
            at += message[at] + 2
        else:
            at += -at % 4
            (size,) = struct.unpack_from(f"{order}I", message, at)
            texts[code] = message[at + 4 : at + 4 + size].decode()
            at += size + 5
    return Answer(texts[SENDER], message[1], reply_serial, texts[ERROR_NAME], message[len(message) - body :])
