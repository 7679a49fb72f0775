# SPDX-License-Identifier: Apache-2.0
"""Inputs out of a corpus: pieces doubled, dropped, exchanged, bent. The same seed makes the same inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

LONGEST = 4096  # characters or bytes of one input; what is longer is a matter of limits, which have tests of their own

# What parsers trip over: NUL, escapes, other blanks and line ends, lone surrogates, letters that change size by case.
ODD = (
    "\0\x01\t\n\v\f\r\x1b\x1c\x7f\x85\xa0\u0130\u0660\u1680\u2028\ufeff\ufffd\U0001f6a2\ud800\udfff \\\"'%$=#;[]@:/.-_"
)
NUMBERS = ("0", "-1", "255", "65536", "2147483648", "18446744073709551616", "9" * 40, "٣", "0x10", "1e9")


def text(pick: random.Random, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    """One of `corpus`, changed in one to six places; `tokens` are words that mean something there."""
    value = pick.choice(corpus)
    for _ in range(pick.choice((1, 1, 2, 2, 3, 6))):
        value = pick.choice(_TEXT)(pick, value, corpus, tokens)
    return value[:LONGEST]


def octets(pick: random.Random, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """One of `corpus`, changed in one to six places."""
    value = bytearray(pick.choice(corpus))
    for _ in range(pick.choice((1, 1, 1, 2, 3, 6))):
        pick.choice(_OCTETS)(pick, value, corpus, tokens)
    return bytes(value[:LONGEST])


def _span(pick: random.Random, size: int) -> tuple[int, int]:
    start = pick.randrange(size + 1)
    return start, min(size, start + pick.choice((1, 1, 2, 4, 16, 64)))


def _insert(pick: random.Random, value: str, what: str) -> str:
    at = pick.randrange(len(value) + 1)
    return value[:at] + what + value[at:]


def _odd(pick: random.Random, value: str, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    return _insert(pick, value, pick.choice(ODD))


def _any(pick: random.Random, value: str, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    return _insert(
        pick, value, chr(pick.choice((pick.randrange(0x80), pick.randrange(0x800), pick.randrange(0x110000))))
    )


def _token(pick: random.Random, value: str, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    return _insert(pick, value, pick.choice(tokens))


def _number(pick: random.Random, value: str, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    return _insert(pick, value, pick.choice(NUMBERS))


def _drop(pick: random.Random, value: str, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    start, end = _span(pick, len(value))
    return value[:start] + value[end:]


def _again(pick: random.Random, value: str, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    start, end = _span(pick, len(value))
    return value[:end] + value[start:end] * pick.choice((1, 2, 50)) + value[end:]


def _case(pick: random.Random, value: str, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    start, end = _span(pick, len(value))
    return value[:start] + value[start:end].swapcase() + value[end:]


def _splice(pick: random.Random, value: str, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    other = pick.choice(corpus)
    return value[: pick.randrange(len(value) + 1)] + other[pick.randrange(len(other) + 1) :]


def _lines(pick: random.Random, value: str, corpus: Sequence[str], tokens: Sequence[str]) -> str:
    lines = value.split("\n")
    pick.shuffle(lines)
    return pick.choice(("\n", "\n", "\r\n", "\\\n", "\r")).join(lines)


_TEXT: tuple[Callable[[random.Random, str, Sequence[str], Sequence[str]], str], ...] = (
    *(_odd, _odd, _any, _token, _token, _number, _drop, _drop, _again, _case, _splice, _lines),
)

_Octets = Callable[[random.Random, bytearray, Sequence[bytes], Sequence[bytes]], None]


def _set(pick: random.Random, value: bytearray, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if value:
        value[pick.randrange(len(value))] = pick.choice((0, 1, 0x7F, 0x80, 0xFF, pick.randrange(256)))


def _flip(pick: random.Random, value: bytearray, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if value:
        value[pick.randrange(len(value))] ^= 1 << pick.randrange(8)


def _cut(pick: random.Random, value: bytearray, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    start, end = _span(pick, len(value))
    del value[start:end]


def _add(pick: random.Random, value: bytearray, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    at = pick.randrange(len(value) + 1)
    value[at:at] = pick.choice((pick.choice(tokens), pick.randbytes(pick.randint(1, 8)), b"\0" * pick.randint(1, 8)))


def _double(pick: random.Random, value: bytearray, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    start, end = _span(pick, len(value))
    value[end:end] = value[start:end]


def _join(pick: random.Random, value: bytearray, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    other = pick.choice(corpus)
    del value[pick.randrange(len(value) + 1) :]
    value += other[pick.randrange(len(other) + 1) :]


_OCTETS: tuple[_Octets, ...] = (_set, _set, _flip, _flip, _cut, _add, _double, _join)
