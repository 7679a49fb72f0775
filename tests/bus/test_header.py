# SPDX-License-Identifier: Apache-2.0
"""Headers of messages that are not read: what they say of whoever waits, and that none of them can do harm."""

from __future__ import annotations

import contextlib
import random

import pytest

from lashd.bus.header import asked_by, header_length, length
from tests.support import wire

FIELDS = [(wire.PATH, "/a/b"), (wire.MEMBER, "Member"), (wire.SIGNATURE, "a{sv}"), (wire.SENDER, ":1.42")]


@pytest.mark.parametrize("order", ["<", ">"])
def test_who_asked(order: str) -> None:
    whole = wire.encode(wire.CALL, FIELDS, b"12345", serial=7, order=order)
    assert (length(whole), header_length(whole)) == (len(whole), len(whole) - 5)
    assert asked_by(whole[: header_length(whole)]) == (":1.42", 7)
    first = wire.encode(wire.CALL, [FIELDS[-1], (wire.UNIX_FDS, 3), *FIELDS[:-1]], serial=8, order=order)
    assert asked_by(first) == (":1.42", 8)


@pytest.mark.parametrize(
    "message",
    [
        wire.encode(wire.CALL, FIELDS, flags=wire.NO_REPLY),
        wire.encode(wire.SIGNAL, FIELDS),
        wire.encode(wire.CALL, FIELDS[:-1]),
        wire.encode(wire.CALL, [(50, "ai", ""), *FIELDS]),
        b"",
        b"l",
        b"x" * 40,
    ],
)
def test_nobody_waits(message: bytes) -> None:
    assert asked_by(message) is None


def test_any_damage_is_nobody_or_somebody() -> None:
    pick = random.Random(5)
    whole = wire.encode(wire.CALL, FIELDS, serial=7)
    somebody = 0
    for _ in range(5000):
        bad = bytearray(whole[: pick.randrange(len(whole) + 1)] if pick.random() < 0.3 else whole)
        for _ in range(pick.randint(0, 3)):
            if bad:
                bad[pick.randrange(len(bad))] = pick.randrange(256)
        found = asked_by(bytes(bad))
        assert found is None or (isinstance(found[0], str) and 0 <= found[1] < 2**32)
        somebody += found is not None
        with contextlib.suppress(ValueError):
            assert length(bytes(bad)) >= header_length(bytes(bad)) >= 16
    assert 100 < somebody < 4900
