# SPDX-License-Identifier: Apache-2.0
"""Read what came over the bus without trusting it: a missing or odd value becomes an empty one, never an exception."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def snake(name: str) -> str:
    """`BytesDone`, `bytes-done` and `bytes_done` are the same key: `bytes_done`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()


def row(value: object) -> dict[str, Any]:
    """A mapping with snake case keys, or an empty one."""
    return {snake(str(key)): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def rows(value: object) -> list[dict[str, Any]]:
    return [row(item) for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def text(source: Row, *keys: str) -> str:
    """The first of these keys that holds a text that is not empty."""
    return next((value for key in keys if isinstance(value := source.get(key), str) and value), "")


def number(source: Row, *keys: str) -> int:
    return next((value for key in keys if (value := whole(source.get(key)))), 0)


def whole(value: object) -> int:
    """A count, a size or a time; 0 for anything that is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0
    return max(0, int(value))


def share(value: object) -> float:
    """A number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0.0
    return min(1.0, max(0.0, float(value)))


def texts(source: Row, key: str) -> list[str]:
    value = source.get(key)
    return [item for item in value if isinstance(item, str)] if isinstance(value, (list, tuple)) else []


def pairs(value: object) -> list[tuple[str, str]]:
    """a(ss): a list of two texts each. A single mapping with code and message is read as well."""
    found = []
    for item in value if isinstance(value, (list, tuple)) else ():
        if isinstance(item, Mapping):
            found.append((text(item, "code", "name"), text(item, "message", "sentence")))
        elif isinstance(item, (list, tuple)) and len(item) >= 2:
            found.append((str(item[0]), str(item[1])))
        elif isinstance(item, str):
            found.append(("", item))
    return found
