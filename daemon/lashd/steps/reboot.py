# SPDX-License-Identifier: Apache-2.0
"""What to do next about a reboot: one pure function of the facts.

The order is window, inhibitors, right to reboot, inhibitors again: the right is one of a few that a whole fleet
shares, so it is asked for last and given back as soon as it is of no use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

Reason = tuple[str, str]  # (code, sentence)

# So many reboots that lashd started by itself may fail to bring one and the same deployment up.
ATTEMPTS = 3
SOFT_SINCE = (2025, 3)  # the first ostree that has `ostree admin prepare-soft-reboot`


class Wanted(StrEnum):
    """When somebody, or the settings, want the reboot."""

    NEVER = "never"
    WINDOW = "window"
    READY = "ready"
    NOW = "now"


class Right(StrEnum):
    """The right to reboot that a FleetLock server hands out, as far as this host knows."""

    NONE = "none"
    PERHAPS = "perhaps"  # asked for, and no clear answer; or held since before a restart of lashd
    HELD = "held"


class Step(StrEnum):
    WAIT = "wait"
    LOOK = "look"  # ask logind who blocks
    TAKE = "take"  # take the right to reboot
    GIVE_BACK = "give-back"
    START = "start"  # start the unit that reboots


@dataclass(frozen=True, slots=True)
class Facts:
    """All that decides. Defaults are those of a host at which nothing is going on."""

    wanted: Wanted = Wanted.NEVER
    by_person: bool = False  # somebody asked; else it is the settings' wish
    pending: bool = False  # there is something to boot into
    ready: bool = False  # it was verified and declared ready, and nothing that changes the host runs
    window_open: bool = False
    opens: str = ""  # when the window opens next, as a person reads it; empty when it never does
    inhibitors: tuple[str, ...] | None = None  # a sentence for each that blocks; None: not known yet
    shared: bool = False  # the right to reboot is needed
    right: Right = Right.NONE
    refusal: str = ""  # why it could not be taken just now
    tried: bool = False  # the server was spoken to in vain just now: leave it alone for a while
    failure: str = ""  # why the last attempt to reboot came to nothing
    wasted: int = 0  # reboots in a row that did not bring up what is pending
    started: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    step: Step
    reasons: tuple[Reason, ...] = ()  # why there is no reboot now although one is wanted


def decide(facts: Facts) -> Decision:
    """The next step. Never START unless everything that has to hold does hold."""
    if facts.started:
        return Decision(Step.WAIT)
    reasons = _reasons(facts)
    if facts.wanted is Wanted.NEVER or not facts.pending or not facts.ready or reasons:
        step = Step.WAIT if facts.right is Right.NONE or facts.tried else Step.GIVE_BACK
        return Decision(step, tuple(reasons))
    if facts.inhibitors is None:
        return Decision(Step.LOOK)
    if facts.shared and facts.right is not Right.HELD:
        if not facts.tried:
            return Decision(Step.TAKE)
        return Decision(Step.WAIT, (("fleetlock", facts.refusal or "The right to reboot is asked for again soon."),))
    return Decision(Step.START)


def _reasons(facts: Facts) -> Sequence[Reason]:
    """What stands against a reboot that is wanted, apart from the right to it. What is not ready is told elsewhere."""
    if facts.wanted is Wanted.NEVER or not facts.pending or not facts.ready:
        return []
    reasons: list[Reason] = []
    if facts.wanted is Wanted.WINDOW and not facts.window_open:
        opens = f"the next one opens {facts.opens}" if facts.opens else "no window is set that ever opens"
        reasons.append(("outside-window", f"The reboot waits for its window; {opens}."))
    if not facts.by_person and facts.wasted >= ATTEMPTS:
        reasons.append(
            (
                "reboot-without-effect",
                f"{facts.wasted} reboots in a row did not bring up what is to be booted, so lashd starts no more "
                "by itself; see the journal of those boots, then ask for one with 'lashctl reboot'.",
            )
        )
    if facts.failure:
        reasons.append(("reboot-failed", facts.failure))
    reasons += [("inhibited", sentence) for sentence in facts.inhibitors or ()]
    return reasons


@dataclass(frozen=True, slots=True)
class Manner:
    """How to reboot. `hindrance` says, in a sentence, why not in the soft way that was wished for."""

    soft: bool
    hindrance: str = ""


def choose_manner(*, wish: bool, finalised: bool, ostree: tuple[int, ...], failed_before: bool = False) -> Manner:
    """Soft (userspace only) or ordinary. `ostree` is its version, empty when unknown.

    A staged deployment is finalised at shutdown only, after the gate's last look, and a soft reboot must not come
    before that: its /etc would not be merged.
    """
    if not wish:
        return Manner(False)
    if ostree < SOFT_SINCE:
        version = ".".join(str(number) for number in ostree) or "of unknown version"
        need = ".".join(str(number) for number in SOFT_SINCE)
        why = f"This host's ostree ({version}) cannot prepare a soft reboot, which needs {need}"
    elif not finalised:
        why = "What is to be booted is finalised at shutdown only, which is too late for a soft reboot"
    elif failed_before:
        why = "The soft reboot failed"
    else:
        return Manner(True)
    return Manner(False, f"{why}; it is an ordinary one.")
