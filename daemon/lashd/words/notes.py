# SPDX-License-Identifier: Apache-2.0
"""Notes: small JSON files, each one value of ours (a frozen dataclass), replaced whole and durably."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lashd.words import files, shape
from lashd.words.errors import ErrorName, LashdError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LIMIT = 1024 * 1024  # bytes
_T = TypeVar("_T")


def read_note(path: Path, kind: type[_T]) -> _T | None:
    """The value of type `kind` in `path`; None when there is none, or none that can be understood."""
    try:
        return shape.from_json(kind, files.read_small(path, _LIMIT))
    except (OSError, ValueError):
        return None


def write_note(path: Path, value: DataclassInstance, *, mode: int = 0o644) -> None:
    """Put `value` into `path`, whose directory is made if need be. Raises NoSpace or Internal."""
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            files.sync_directory(path.parent.parent)
        files.write_durably(path, json.dumps(asdict(value), indent=1).encode() + b"\n", mode=mode)
    except OSError as error:
        raise unwritable(path, "written", error) from error


def remove_note(path: Path) -> None:
    """Remove `path`, durably, if it is there. Raises NoSpace or Internal."""
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            files.sync_directory(path.parent)
    except OSError as error:
        raise unwritable(path, "removed", error) from error


def unwritable(path: Path, what: str, error: OSError) -> LashdError:
    """The error for a file of ours that could not be `what` ("written", "removed")."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return LashdError(
        ErrorName.NO_SPACE if full else ErrorName.INTERNAL,
        f"The file {path} could not be {what}: {error.strerror}.",
    )
