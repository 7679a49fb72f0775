# SPDX-License-Identifier: Apache-2.0
"""JSON for other programs: always UTF-8, whole digests, one document (or one line per event)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from lashd.cli import values
from lashd.cli.failures import odd_answer


def document(value: Any) -> None:
    """Print one indented document."""
    emit(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False))


def keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the keys that lashd's own JSON has: `bytes-done`."""
    return {key.replace("_", "-"): keys(item) if isinstance(item, Mapping) else item for key, item in value.items()}


def line(value: Any) -> None:
    """Print one event on one line, at once."""
    emit(json.dumps(_finite(value), ensure_ascii=False, default=str, allow_nan=False))
    sys.stdout.flush()


def verbatim(text: str) -> None:
    """Print a document that is JSON already. Raises Failure when it is not: a script must be able to rely on that."""
    parse(text)
    emit(text)


def parse(text: str) -> dict[str, Any]:
    """lashd's description of the state, with snake case keys. Raises Failure when it is none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise odd_answer("its description of the state is not a JSON document")
    return values.row(document)


def _finite(value: Any) -> Any:
    """The same, with null for the numbers that D-Bus has and JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def emit(text: str) -> None:
    """JSON is UTF-8 whatever the locale says. A lone surrogate, which no JSON may hold, becomes a question mark."""
    stream = getattr(sys.stdout, "buffer", None)
    data = text.rstrip("\n") + "\n"
    if stream is None:
        sys.stdout.write(data)
    else:
        stream.write(data.encode("utf-8", "replace"))
