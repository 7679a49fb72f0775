# SPDX-License-Identifier: Apache-2.0
"""Sizes, digests, times and foreign text, as people read them. Needs no rich."""

from __future__ import annotations

import time

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def clean(text: str) -> str:
    """Text from elsewhere, safe for a terminal: on one line, and what is not printable is spelled out."""
    return "".join(char if char.isprintable() else _spelled(char) for char in text)


def _spelled(char: str) -> str:
    if char in "\n\t":
        return " "
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


def digest(value: str) -> str:
    """A digest short enough for a person: the algorithm and 12 digits. Other text stays as it is."""
    algorithm, colon, digits = clean(value).partition(":")
    if not colon:
        return algorithm[:12] if _is_hex(algorithm) else algorithm
    return f"{algorithm}:{digits[:12]}" if _is_hex(digits) else f"{algorithm}:{digits}"


def _is_hex(text: str) -> bool:
    return len(text) >= 32 and all(char in "0123456789abcdef" for char in text)


def reference(value: str) -> str:
    """An image name with its digest shortened."""
    name, at, pinned = clean(value).partition("@")
    return f"{name}@{digest(pinned)}" if at else name


def deployment(key: str) -> str:
    """A deployment's key with its checksum shortened: `0123456789ab.0`."""
    checksum, dot, serial = clean(key).partition(".")
    return f"{checksum[:12]}.{serial}" if dot and _is_hex(checksum) else clean(key)


def size(count: int) -> str:
    """Bytes in decimal units, as registries and podman show them: `48.1 MB`."""
    value, unit = float(count), 0
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def of(done: int, total: int) -> str:
    """`12.0 of 48.1 MB`; only what is known."""
    if not total:
        return size(done) if done else ""
    all_of_it = size(total)
    so_far = size(min(done, total))
    if so_far.split()[1] == all_of_it.split()[1]:
        so_far = so_far.split()[0]
    return f"{so_far} of {all_of_it}"


def when(seconds: int) -> str:
    """A time in the local zone, or an empty text for none."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds)).strip() if seconds else ""
    except (OverflowError, ValueError, OSError):
        return ""


def period(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`, `4 d`."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left} s"
    if left < 3600:
        return f"{left // 60} min {left % 60} s" if left % 60 else f"{left // 60} min"
    if left < 2 * 86400:
        return f"{left // 3600} h {left % 3600 // 60} min" if left % 3600 >= 60 else f"{left // 3600} h"
    return f"{left // 86400} d"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
