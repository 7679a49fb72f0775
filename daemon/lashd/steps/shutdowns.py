# SPDX-License-Identifier: Apache-2.0
"""What outlives a shutdown, or is said about the next one: the gate's verdict, what is owed, an operator's order.

Three small JSON files, each replaced whole. What cannot be read counts as not there: the gate then decides by what it
sees itself.
"""

from __future__ import annotations

from pathlib import Path

from lashd.words.model import Deployment, Order, Owed, Verdict
from lashd.words.notes import read_note, remove_note, write_note

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Shutdowns:
    """`state` survives a reboot, `run` does not. Writers raise NoSpace or Internal; readers never raise."""

    def __init__(self, state: Path, run: Path) -> None:
        self._verdict = state / "last-shutdown.json"
        self._owed = state / "owed.json"
        # To keep something back outlives reboots, to let it through does not: what is staged then was staged anew.
        self._hold, self._release = state / "order.json", run / "order.json"

    def verdict(self) -> Verdict | None:
        """What the gate decided at the last shutdown that it saw."""
        return read_note(self._verdict, Verdict)

    def write_verdict(self, verdict: Verdict) -> None:
        write_note(self._verdict, verdict)

    def owed(self) -> Owed | None:
        """The deployment that was staged and has not been booted yet."""
        return read_note(self._owed, Owed)

    def owe(self, owed: Owed | None) -> None:
        """Remember `owed`, or with None that nothing is owed any more; durable when this returns."""
        _keep(self._owed, owed)

    def order(self) -> Order | None:
        """What an operator said about a staged deployment; whoever uses it compares deployment and digest."""
        return read_note(self._release, Order) or read_note(self._hold, Order)

    def give_order(self, order: Order | None) -> None:
        """Replace whatever was ordered before; None takes it back."""
        hold = order if order is not None and order.hold else None
        # The stricter one goes last: killed in between, a hold stays.
        _keep(self._release, None if order is hold else order)
        _keep(self._hold, hold)


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


def _keep(path: Path, value: Owed | Order | None) -> None:
    if value is None:
        remove_note(path)
    else:
        write_note(path, value)
