# SPDX-License-Identifier: Apache-2.0
"""What outlives a shutdown, or is said about the next one: the gate's verdict, what is owed, an operator's order.

Three small JSON files, each replaced whole. What cannot be read counts as not there: the gate then decides by what it
sees itself.
"""

from __future__ import annotations

import configparser
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from lashd.words.model import Deployment, Order, Owed, Verdict
from lashd.words.notes import read_note, remove_note, write_note

if TYPE_CHECKING:
    from lashd.things.host import Staging

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

    def forget_verdict(self) -> None:
        """For one that a newer one could not take the place of: none is better than a false one."""
        remove_note(self._verdict)

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
    how: Staging,
    boot: str,
    now: int,
    booted: Deployment | None,
    binds: tuple[str, ...] | None = None,
) -> Owed:
    """What is owed once `staged` was seen in `boot`; the same one staged again has been waiting since then.

    `how` it was staged, `booted` is what runs then, `binds` the names of what it binds if they were read.
    """
    same = before is not None and (
        before.checksum == staged.checksum or (bool(staged.digest) and before.digest == staged.digest)
    )
    known = before if same else None
    if binds is None and known is not None:
        binds = known.binds
    return Owed(
        deployment=staged.key,
        stateroot=staged.stateroot,
        checksum=staged.checksum,
        digest=staged.digest or "",
        origin=how.origin,
        boot=boot,
        since=known.since if known else now,
        wasted=known.wasted if known else 0,
        counted=known.counted if known else "",
        kargs=how.kargs,
        base=booted.checksum if booted else "",
        initrds=how.initrds,
        binds=binds,
    )


def still_owed(owed: Owed, booted: Deployment, runs: Staging) -> bool:
    """Whether `owed` is still the next system of what runs: not when it runs itself, or something else came instead.

    `runs` is how the `booted` one boots. The same commit is another system when it was staged over itself with other
    kernel arguments, another origin or other initrds.
    """
    if (booted.checksum, booted.stateroot) != (owed.checksum, owed.stateroot):
        return owed.base in ("", booted.checksum)
    if owed.base != booted.checksum:
        return False
    same_arguments = owed.kargs is None or _arguments(owed.kargs) == _arguments(runs.kargs or ())
    return not (same_arguments and owed.initrds == runs.initrds and _origin(owed.origin) == _origin(runs.origin))


def restageable(owed: Owed) -> bool:
    """Whether lashd can stage `owed` again as it was: initrds that were staged with it lay in /run and are lost."""
    return not owed.initrds


def _arguments(kargs: tuple[str, ...]) -> list[str]:
    """What two lists have in common that mean the same; which deployment is booted is not for the kernel."""
    return sorted(word for argument in kargs for word in argument.split() if not word.startswith("ostree="))


def _origin(text: str) -> set[tuple[str, str, str]]:
    """What an origin says, without what ostree notes there for the life of one deployment (that it is pinned)."""
    origin = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    with contextlib.suppress(configparser.Error):
        origin.read_string(text)
    sections = (section for section in origin.sections() if section != "libostree-transient")
    return {(section, key, value) for section in sections for key, value in origin.items(section)}


def boot_id() -> str:
    """The kernel's id of this boot."""
    return BOOT_ID.read_text(encoding="ascii").strip()


def _keep(path: Path, value: Owed | Order | None) -> None:
    if value is None:
        remove_note(path)
    else:
        write_note(path, value)
