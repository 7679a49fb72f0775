# SPDX-License-Identifier: Apache-2.0
"""From plain Python to D-Bus: values by signature, and rows (dicts) as `a{sv}` by a static table.

A value that is not quite right (a negative size, a string with a NUL byte) is mended here, because one bad value would
make a whole GetAll fail, and a string that D-Bus forbids would make the bus drop our connection.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from lashd.bus.library import Variant

log = logging.getLogger(__name__)

# Key of a row → signature. One name means the same in every row.
KEYS: dict[str, str] = {
    # deployments
    "key": "s",
    "object": "o",
    "stateroot": "s",
    "checksum": "s",
    "serial": "t",
    "roles": "as",
    "image": "s",
    "digest": "s",
    "version": "s",
    "timestamp": "t",
    "locked": "b",
    "ready": "b",
    "next-boot": "b",
    # bound images
    "deployment": "s",
    "unit": "s",
    "reference": "s",
    "normalised": "s",
    "wanted-digest": "s",
    "present-digest": "s",
    "bytes": "t",
    "usable": "b",
    "use-problems": "as",
    # jobs
    "id": "t",
    "uuid": "s",
    "kind": "s",
    "state": "s",
    "stage": "s",
    "item": "s",
    "fraction": "d",
    "bytes-done": "t",
    "bytes-total": "t",
    "items-done": "u",
    "items-total": "u",
    "attempt": "u",
    "next-attempt": "t",
    "created": "t",
    "uid": "u",
    "initiator": "s",
    "name": "s",
    "result": "s",
    "error-name": "s",
    "error-message": "s",
    # details of jobs
    "changed": "b",
    "joined": "b",
    "retryable": "b",
    "newest": "s",
    "moved": "as",
    "unknown": "as",
    "newer": "b",
    "newest-version": "s",
    "newest-bytes": "t",
    "bytes-to-fetch": "t",
    "bytes-on-disk": "t",
    "bytes-free": "t",
    "images": "u",
    "images-to-fetch": "u",
    "fits": "b",
    "fetch": "as",
    "findings": "as",
    "removed": "as",
    "layers": "u",
    "bytes-freed": "t",
    "given-up": "b",
    "held": "s",
    "staged": "b",
    "missing": "as",
    "interrupted": "b",
    "continues": "t",
    # the history
    "options": "a{sv}",
    "details": "a{sv}",
    "ended": "t",
    "this-boot": "b",
    "bound": "a(ss)",
    "from": "t",
    "until": "t",
    # the last shutdown
    "boot": "s",
    "time": "t",
    "reasons": "a(ss)",
    # options, as a job shows them
    "expected-digest": "s",
    "reason": "s",
    "idempotency-key": "s",
    "drop-staged": "b",
    "dry-run": "b",
    "deep": "b",
    "reboot": "s",
    "when": "s",
}

_RANGES = {
    "y": (0, 2**8 - 1),
    "n": (-(2**15), 2**15 - 1),
    "q": (0, 2**16 - 1),
    "i": (-(2**31), 2**31 - 1),
    "u": (0, 2**32 - 1),
    "x": (-(2**63), 2**63 - 1),
    "t": (0, 2**64 - 1),
}
_PATH = re.compile(r"/|(/[A-Za-z0-9_]+)+")
_missing: set[str] = set()
_unfit: set[str] = set()


def to_text(value: object) -> str:
    """A string that may cross the bus: no NUL, no lone surrogates (undecodable bytes in file names)."""
    return str(value if value is not None else "").encode(errors="replace").decode().replace("\0", "�")


def to_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as `a{sv}`. What is not in the table, or of another kind than there, is left out, and said once by its key.

    A row of the history may be another version's.
    """
    converted = {}
    for key, value in row.items():
        signature = KEYS.get(key)
        if signature is None:
            if key not in _missing:
                _missing.add(key)
                log.error("The row key %r has no D-Bus type and is not shown", key)
            continue
        try:
            converted[key] = Variant(signature, to_dbus(signature, value))
        except (TypeError, ValueError) as error:
            if key not in _unfit:
                _unfit.add(key)
                log.error("The row key %r has a value that is no '%s', and is not shown: %s", key, signature, error)
    return converted


def to_dbus(signature: str, value: Any) -> Any:
    """`value` as the library wants it for `signature`. None becomes the type's empty value. Raises ValueError."""
    kind = signature[0]
    if kind == "s":
        return to_text(value)
    if kind == "b":
        return bool(value)
    if kind == "d":
        return float(value or 0)
    if kind in _RANGES:
        low, high = _RANGES[kind]
        return min(max(int(value or 0), low), high)
    if kind == "o":
        path = str(value or "/")
        if not _PATH.fullmatch(path):
            raise ValueError(f"{path!r} is no object path")
        return path
    if signature == "a{sv}":
        return to_row(value or {})
    if kind == "a":
        return [to_dbus(signature[1:], item) for item in value or ()]
    if kind == "(":
        # The structs of our interfaces have basic members only, so each letter is a member.
        members = signature[1:-1]
        items = list(value or [None] * len(members))
        if len(items) != len(members):
            raise ValueError(f"{len(items)} members do not fit {signature}")
        # dbus-next checks for a list, dbus-fast takes either.
        return [to_dbus(member, item) for member, item in zip(members, items, strict=True)]
    raise ValueError(f"no conversion to {signature}")
