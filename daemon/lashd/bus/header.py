# SPDX-License-Identifier: Apache-2.0
"""The header of a D-Bus message, for messages that no library can or may read: how long they are, and who sent them."""

from __future__ import annotations

import struct

FIXED = 16  # bytes: byte order, type, flags, version, lengths, serial
# Of a header that is longer nothing is read: ours have some hundred bytes.
LONGEST = 64 * 1024

_CALL, _NO_REPLY = 1, 1
_SENDER = 7


def length(header: bytes) -> int:
    """The length in bytes of the whole message that begins with `header`. Raises ValueError."""
    body, _serial, _fields = _lengths(header)
    return header_length(header) + body


def header_length(header: bytes) -> int:
    """The length in bytes of the header that begins with `header`, padding included. Raises ValueError."""
    _body, _serial, fields = _lengths(header)
    return FIXED + fields + -fields % 8


def asked_by(header: bytes) -> tuple[str, int] | None:
    """Unique name and serial of whoever waits for an answer to the message with this whole header; None for nobody."""
    try:
        _body, serial, fields = _lengths(header)
        if header[1] != _CALL or header[2] & _NO_REPLY:
            return None
        sender = _sender(header[: FIXED + fields], "<" if header[:1] == b"l" else ">")
    except (ValueError, IndexError, struct.error):
        return None
    return (sender, serial) if sender else None


def _lengths(header: bytes) -> tuple[int, int, int]:
    order = {b"l": "<", b"B": ">"}.get(bytes(header[:1]))
    if order is None or len(header) < FIXED:
        raise ValueError("not a D-Bus message")
    body, serial, fields = struct.unpack_from(f"{order}III", header, 4)
    return int(body), int(serial), int(fields)


def _sender(header: bytes, order: str) -> str:
    """The bus puts it in, whatever else is there; fields are structs of a code and a variant."""
    at = FIXED
    while at < len(header):
        at += -at % 8
        code, size = header[at], header[at + 1]
        kind = bytes(header[at + 2 : at + 2 + size])
        at += 3 + size
        if kind in (b"s", b"o"):
            at += -at % 4
            (size,) = struct.unpack_from(f"{order}I", header, at)
            if code == _SENDER:
                return bytes(header[at + 4 : at + 4 + size]).decode()
            at += size + 5
        elif kind == b"g":
            at += header[at] + 2
        elif kind == b"u":
            at += -at % 4 + 4
        else:
            break  # of no field that D-Bus defines
    return ""
