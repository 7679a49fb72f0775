# SPDX-License-Identifier: Apache-2.0
"""What outlives a shutdown, or is said about the next one: the gate's verdict, what is owed, an operator's order.

Three small JSON files, each replaced whole. What cannot be read counts as not there: the gate then decides by what it
sees itself.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from lashd.words import files
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Order, Owed, Verdict

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LIMIT = 1024 * 1024

_T = TypeVar("_T", Verdict, Owed, Order)


class Shutdowns:
    """`state` survives a reboot, `run` does not. Writers raise NoSpace or Internal; readers never raise."""

    def __init__(self, state: Path, run: Path) -> None:
        self._verdict = state / "last-shutdown.json"
        self._owed = state / "owed.json"
        # To keep something back outlives reboots, to let it through does not: what is staged then was staged anew.
        self._hold, self._release = state / "order.json", run / "order.json"

    def verdict(self) -> Verdict | None:
        """What the gate decided at the last shutdown that it saw."""
        return _read(self._verdict, Verdict)

    def write_verdict(self, verdict: Verdict) -> None:
        _write(self._verdict, verdict)

    def owed(self) -> Owed | None:
        """The deployment that was staged and has not been booted yet."""
        return _read(self._owed, Owed)

    def owe(self, owed: Owed | None) -> None:
        """Remember `owed`, or with None that nothing is owed any more; durable when this returns."""
        _write(self._owed, owed)

    def order(self) -> Order | None:
        """What an operator said about a staged deployment; whoever uses it compares deployment and digest."""
        return _read(self._release, Order) or _read(self._hold, Order)

    def give_order(self, order: Order | None) -> None:
        """Replace whatever was ordered before; None takes it back."""
        hold = order if order is not None and order.hold else None
        # The stricter one goes last: killed in between, a hold stays.
        _write(self._release, None if order is hold else order)
        _write(self._hold, hold)


def owing(
    staged: Deployment,
    before: Owed | None,
    origin: str,
    kargs: tuple[str, ...] | None,
    boot: str,
    now: int,
    booted: Deployment | None,
) -> Owed:
    """What is owed once `staged` was seen in `boot`; the same one staged again has been waiting since then.

    `booted` is what runs then.
    """
    same = before is not None and (
        before.checksum == staged.checksum or (bool(staged.digest) and before.digest == staged.digest)
    )
    known = before if same else None
    return Owed(
        deployment=staged.key,
        stateroot=staged.stateroot,
        checksum=staged.checksum,
        digest=staged.digest or "",
        origin=origin,
        boot=boot,
        since=known.since if known else now,
        wasted=known.wasted if known else 0,
        counted=known.counted if known else "",
        kargs=kargs,
        base=booted.checksum if booted else "",
    )


def boot_id() -> str:
    """The kernel's id of this boot."""
    return BOOT_ID.read_text(encoding="ascii").strip()


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return TypeAdapter(kind).validate_json(files.read_small(path, _LIMIT))
    except (OSError, ValueError):
        return None


def _write(path: Path, value: Verdict | Owed | Order | None) -> None:
    try:
        if value is None:
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                files.sync_directory(path.parent)
            return
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            files.sync_directory(path.parent.parent)
        files.write_durably(path, json.dumps(asdict(value), indent=1).encode() + b"\n")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise LashdError(
            ErrorName.NO_SPACE if full else ErrorName.INTERNAL,
            f"The file {path} could not be written: {error.strerror}.",
        ) from error
