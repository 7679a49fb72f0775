# SPDX-License-Identifier: Apache-2.0
"""Reads serialised GVariants without GLib, so that looking at an ostree host needs no bindings and no process.

`parse` is strict: it takes exactly what GLib calls normal form, and anything else is a ValueError. Every byte is
looked at a bounded number of times whatever the input says, because offsets may only grow.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# GLib itself refuses deeper nesting of variants and of types.
DEPTH_LIMIT = 64
_TYPE_LIMIT = 255

_NUMBERS = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "h": "i", "d": "d"}


@dataclass(frozen=True, slots=True)
class _Type:
    """One type: `size` is its fixed size in bytes, 0 when it varies; `inner` the types it is made of."""

    code: str
    alignment: int
    size: int = 0
    inner: tuple[_Type, ...] = ()


def parse(type_string: str, data: bytes, *, byteorder: str = sys.byteorder) -> Any:
    """The value of type `type_string` that `data` holds, as Python knows it.

    Dictionaries become dict (of equal keys the first wins, as for g_variant_lookup), `ay` becomes bytes, other arrays
    list, tuples tuple, maybes the value or None, variants their content. Raises ValueError when `data` is not normal.
    """
    type_ = _type(type_string)
    return _Reader(bytes(data), "<" if byteorder == "little" else ">").value(type_, 0, len(data), 0)


@lru_cache(maxsize=512)
def _type(text: str) -> _Type:
    if len(text) > _TYPE_LIMIT:
        raise ValueError("a GVariant type string is too long")
    type_, end = _one_type(text, 0, 0)
    if end != len(text):
        raise ValueError(f"{text!r} is not one GVariant type")
    return type_


def _one_type(text: str, at: int, depth: int) -> tuple[_Type, int]:
    code = text[at : at + 1]
    if depth > DEPTH_LIMIT or not code:
        raise ValueError(f"{text!r} is not a GVariant type")
    if code in _NUMBERS:
        size = struct.calcsize("=" + _NUMBERS[code])
        return _Type(code, size, size), at + 1
    if code == "b":
        return _Type(code, 1, 1), at + 1
    if code in "sog":
        return _Type(code, 1), at + 1
    if code == "v":
        return _Type(code, 8), at + 1
    if code in "am":
        inner, end = _one_type(text, at + 1, depth + 1)
        return _Type(code, inner.alignment, 0, (inner,)), end
    if code in "({":
        return _group(text, at, depth)
    raise ValueError(f"{code!r} in {text!r} is not a GVariant type")


def _group(text: str, at: int, depth: int) -> tuple[_Type, int]:
    code, close = text[at], ")" if text[at] == "(" else "}"
    members: list[_Type] = []
    at += 1
    while text[at : at + 1] != close:
        member, at = _one_type(text, at, depth + 1)
        members.append(member)
    if code == "{" and (len(members) != 2 or members[0].code not in "bynqiuxthdsog"):
        raise ValueError(f"{text!r} has a dictionary entry that is not one")
    alignment = max((member.alignment for member in members), default=1)
    size = 0
    if all(member.size for member in members):
        for member in members:
            size = _align(size, member.alignment) + member.size
        size = _align(size, alignment) or 1  # the empty tuple takes one byte
    return _Type(code, alignment, size, tuple(members)), at + 1


def _align(offset: int, alignment: int) -> int:
    return offset + -offset % alignment


def _offset_size(total: int) -> int:
    """Width of the framing offsets of a container of `total` bytes."""
    return 1 if total <= 0xFF else 2 if total <= 0xFFFF else 4 if total <= 0xFFFFFFFF else 8


@dataclass(frozen=True, slots=True)
class _Reader:
    """All positions are offsets into `data`; alignment counts from its start, as the children of variants keep it."""

    data: bytes
    order: str

    def value(self, type_: _Type, start: int, end: int, depth: int) -> Any:
        if depth > DEPTH_LIMIT:
            raise ValueError("a GVariant is nested too deeply")
        if type_.size and end - start != type_.size:
            raise ValueError(f"a GVariant of type {type_.code!r} has {end - start} bytes instead of {type_.size}")
        code = type_.code
        if code in _NUMBERS:
            return struct.unpack(self.order + _NUMBERS[code], self.data[start:end])[0]
        if code == "b":
            if self.data[start] > 1:
                raise ValueError("a boolean is neither 0 nor 1")
            return self.data[start] == 1
        if code in "sog":
            return self._string(code, start, end)
        if code == "v":
            return self._variant(start, end, depth)
        if code == "m":
            return self._maybe(type_.inner[0], start, end, depth)
        if code == "a":
            return self._array(type_.inner[0], start, end, depth)
        return self._tuple(type_, start, end, depth)

    def _string(self, code: str, start: int, end: int) -> str:
        raw = self.data[start:end]
        if not raw or raw.find(b"\0") != len(raw) - 1:
            raise ValueError("a string does not end with its only NUL")
        text = raw[:-1].decode("utf-8")  # UnicodeDecodeError is a ValueError
        if code == "o" and not _is_object_path(text):
            raise ValueError(f"{text!r} is not an object path")
        if code == "g":
            _check_signature(text)
        return text

    def _variant(self, start: int, end: int, depth: int) -> Any:
        split = self.data.rfind(b"\0", start, end)
        if split < 0:
            raise ValueError("a variant does not say its type")
        type_ = _type(self.data[split + 1 : end].decode("ascii"))
        return self.value(type_, start, split, depth + 1)

    def _maybe(self, inner: _Type, start: int, end: int, depth: int) -> Any:
        if start == end:
            return None
        if not inner.size:
            end -= 1
            if self.data[end] != 0:
                raise ValueError("a maybe does not end with its NUL")
        return self.value(inner, start, end, depth + 1)

    def _array(self, inner: _Type, start: int, end: int, depth: int) -> Any:
        if inner.code == "y":
            return self.data[start:end]
        spans = self._fixed_spans(inner, start, end) if inner.size else self._varying_spans(inner, start, end)
        if inner.code != "{":
            return [self.value(inner, first, last, depth + 1) for first, last in spans]
        entries: dict[Any, Any] = {}
        for first, last in spans:
            key, value = self._tuple(inner, first, last, depth + 1)
            entries.setdefault(key, value)
        return entries

    def _fixed_spans(self, inner: _Type, start: int, end: int) -> Iterator[tuple[int, int]]:
        if (end - start) % inner.size:
            raise ValueError("an array's size is no multiple of its elements' size")
        return ((at, at + inner.size) for at in range(start, end, inner.size))

    def _varying_spans(self, inner: _Type, start: int, end: int) -> Iterator[tuple[int, int]]:
        if start == end:
            return
        width = _offset_size(end - start)
        table = start + self._offset(end - width, width)
        if not start <= table <= end - width or (end - table) % width:
            raise ValueError("an array's table of offsets is damaged")
        first = start
        for at in range(table, end, width):
            first = self._padded(first, start, inner.alignment)
            last = start + self._offset(at, width)
            if not first <= last <= table:
                raise ValueError("an array's offsets do not grow")
            yield first, last
            first = last

    def _tuple(self, type_: _Type, start: int, end: int, depth: int) -> tuple[Any, ...]:
        if not type_.inner:
            if self.data[start] != 0:
                raise ValueError("an empty tuple is not zero")
            return ()
        width = _offset_size(end - start)
        table = end  # framing offsets lie at the end, the first one last
        values = []
        at = start
        for number, member in enumerate(type_.inner):
            at = self._padded(at, start, member.alignment)
            if member.size:
                last = at + member.size
            elif number == len(type_.inner) - 1:
                last = table
            else:
                table -= width
                last = start + self._offset(table, width)
            if not start <= at <= last <= table or table < start:
                raise ValueError("a tuple's offsets do not grow")
            values.append(self.value(member, at, last, depth + 1))
            at = last
        if type_.size:
            at = self._padded(at, start, type_.alignment)
        if at != table:
            raise ValueError("a tuple has bytes that belong to nothing")
        return tuple(values)

    def _offset(self, at: int, width: int) -> int:
        """Framing offsets are little-endian on every machine."""
        if at < 0:
            raise ValueError("a container is too small for its offsets")
        return int.from_bytes(self.data[at : at + width], "little")

    def _padded(self, at: int, start: int, alignment: int) -> int:
        """The next aligned position within the container that begins at `start` (which is aligned itself)."""
        padded = start + _align(at - start, alignment)
        if any(self.data[at:padded]):
            raise ValueError("padding is not zero")
        return padded


def _is_object_path(text: str) -> bool:
    if text == "/":
        return True
    parts = text.split("/")
    return parts[0] == "" and len(parts) > 1 and all(part and _is_word(part) for part in parts[1:])


def _is_word(text: str) -> bool:
    return text.isascii() and text.replace("_", "a").isalnum()


def _check_signature(text: str) -> None:
    if len(text) > _TYPE_LIMIT:
        raise ValueError("a signature is too long")
    at = 0
    while at < len(text):
        _, at = _one_type(text, at, 0)
