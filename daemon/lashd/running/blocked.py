# SPDX-License-Identifier: Apache-2.0
"""Why a reboot now would not bring up what it should, in words: (code, sentence) pairs, the most important first."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from lashd.running.jobs import Job
from lashd.running.unfinished import GATE_FAILED, NOT_FINISHED
from lashd.steps.decide import Decision, taking_away
from lashd.steps.shutdowns import restageable
from lashd.words.model import Deployment, Order, Owed, Passed, Verdict

Reason = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the reasons are made of. `order` is one that is in force; times are seconds since the epoch, 0 none."""

    staged: Deployment | None = None
    decision: Decision = field(default_factory=lambda: Decision(True))  # on the staged deployment
    booted: Deployment | None = None
    following: Deployment | None = None  # boots next without having been staged, and lacks images
    missing: tuple[Reason, ...] = ()  # what `following` lacks
    lacking: tuple[Reason, ...] = ()  # what the running system binds and has not got
    unreadable: tuple[Reason, ...] = ()  # what cannot be read, so that less is known than should be
    order: Order | None = None
    owed: Owed | None = None  # what is still owed
    verdict: Verdict | None = None
    boot: str = ""
    job: Job | None = None
    next_try: int = 0
    restages: bool = True
    holds: bool = True


def reasons(now: Situation) -> list[Reason]:
    """Empty when nothing stands in the way of the next system."""
    found = list(_of_staged(now)) + list(_of_lost(now)) + list(_of_boot_order(now)) + list(_of_booted(now))
    found += [reason for reason in now.unreadable if reason not in found]
    if found and now.job is not None:
        found.append(("job-running", f"Job {now.job.id} ({now.job.kind}) is running."))
    elif found and now.next_try:
        found.append(("next-try", f"The next try is at {moment(now.next_try)}."))
    if gate_ignored(now.verdict, now.booted, now.boot):
        assert now.booted is not None
        assert now.verdict is not None
        found.append(("gate-ignored", f"{_name(now.booted)} {ignored(now.verdict, now.booted)}."))
    return found


def gate_ignored(verdict: Verdict | None, booted: Deployment | None, boot: str) -> bool:
    """Whether what was held at the last shutdown, or was not to come up after it, is running all the same."""
    if verdict is None or booted is None or verdict.boot == boot or verdict.result is not Passed.HELD:
        return False
    return verdict.stays != booted.name if verdict.stays else verdict.deployment == booted.key


def ignored(verdict: Verdict, booted: Deployment) -> str:
    """What is to be said of `booted` after `gate_ignored`, without its name."""
    if any(code in (NOT_FINISHED, GATE_FAILED) for code, _ in verdict.reasons):
        return "is running, and was not looked at: the gate at the last shutdown did not come to its end"
    if verdict.deployment == booted.key:
        return (
            "was held at the last shutdown and is running all the same; something let it pass without its images "
            "having been verified"
        )
    return (
        "is running, although what ran before was to come up again after the last shutdown: the boot order was not put "
        "right, or somebody chose another boot entry"
    )


def _of_staged(now: Situation) -> Iterable[Reason]:
    staged, order, owed = now.staged, now.order, now.owed
    if staged is None or (order is not None and not order.hold and not staged.foreign_lock):
        return
    if not staged.locked and now.decision.release:
        return
    found: list[Reason] = []
    if staged.foreign_lock:
        found.append(
            (
                "foreign-lock",
                f"{_name(staged)} was locked by somebody else than lashd, who does not take that away; "
                f"{taking_away(staged)}.",
            )
        )
    if staged.key_locked and not now.holds:
        found.append(
            (
                "locked-key",
                f"{_name(staged)} is locked by lashd, which was ended while it staged it; 'lashctl release "
                f"{staged.digest or staged.checksum}' takes that away.",
            )
        )
    if order is not None and order.hold:
        why = f": {order.reason.removesuffix('.')}" if order.reason else ""
        found.append(
            (
                "order-hold",
                f"User {order.uid} ordered at {moment(order.given)} that it is held back{why}. 'lashctl release "
                f"{staged.digest or staged.checksum}' takes that back.",
            )
        )
    found += now.decision.reasons
    if not now.holds and not found:
        return
    if not found:
        found.append(("not-released", "All bound images are present, but it has not been declared ready yet."))
    yield from found
    if owed is not None and owed.deployment == staged.key:
        yield "waiting", f"{_name(staged)} has been waiting since {moment(owed.since)}."
        if owed.wasted:
            yield "wasted-reboots", _wasted(owed)


def _of_lost(now: Situation) -> Iterable[Reason]:
    owed = now.owed
    if now.staged is not None or owed is None or owed.boot == now.boot:
        return
    if not now.restages:
        next_ = "stage it again; the settings say that lashd does not"
    elif not restageable(owed):
        next_ = (
            "stage it again; lashd cannot, because it was staged with initrds of its own (--overlay-initrd, rpm-ostree "
            "initramfs-etc), which the reboot has lost"
        )
    else:
        next_ = "it will be staged again"
    yield (
        "lost",
        f"The deployment {owed.deployment[:12]}, staged since {moment(owed.since)}, was lost at a reboot that did not "
        f"bring it up: {next_}. 'lashctl discard' gives it up.",
    )
    if owed.wasted > 1:
        yield "wasted-reboots", _wasted(owed)


def _of_boot_order(now: Situation) -> Iterable[Reason]:
    if now.following is not None:
        yield (
            "boot-order",
            f"{_name(now.following)} was put first in the boot order without having been staged, and not all of its "
            "bound images are there.",
        )
        if now.staged is None:
            yield from now.missing


def _of_booted(now: Situation) -> Iterable[Reason]:
    """A reboot into the same system would not help; and where no digest is known nothing is fetched unasked."""
    for _, sentence in now.lacking:
        yield "running-lacks", f"In the running system: {sentence} 'lashctl bind booted' fetches it."


def _wasted(owed: Owed) -> str:
    reboots = "One reboot has" if owed.wasted == 1 else f"{owed.wasted} reboots in a row have"
    return f"{reboots} not brought it up so far."


def _name(deployment: Deployment) -> str:
    short = f"{deployment.checksum[:12]}.{deployment.serial}"
    return f"Version {deployment.version} ({short})" if deployment.version else f"Deployment {short}"


def moment(seconds: int) -> str:
    """A time in UTC. Any number may come from a damaged file."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, OSError, ValueError):
        return "an unknown time"
