# SPDX-License-Identifier: Apache-2.0
"""What the keeper does next: one pure function from what is the case to the one step that matters most now.

Doing one step and looking again is all there is to it: whoever else is at work, and wherever a daemon was killed, the
next look starts from what is true then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lashd.steps.shutdowns import restageable, still_owed
from lashd.things.host import Staging
from lashd.words.model import Deployment, Order, Owed

# A staged deployment that is not to be seen for so long (seconds) was dropped, and is not just being replaced.
DROPPED_SECONDS = 1.0
# What is staged again has no deployment yet; its tries are counted under this name.
RESTAGE = "restage"

_UNTOLD = Staging()


class Do(StrEnum):
    HOLD = "hold"  # set our hold on the staged deployment, or take back that it is ready
    TAKE_DOWN = "take-down"  # what a soft reboot would bring up
    OWE = "owe"  # remember the staged deployment durably
    SETTLE = "settle"  # nothing is owed any more
    COUNT = "count"  # another reboot was wasted
    FORGET_ORDER = "forget-order"
    LOOK = "look"  # into the store: which of the deployments are complete?
    DECLARE = "declare"  # an operator said so
    BIND = "bind"
    GIVE_UP = "give-up"  # our own bind of a deployment that is gone
    RESTAGE = "restage"
    WAIT = "wait"


# Steps that write down something.
MEMORY = frozenset({Do.OWE, Do.SETTLE, Do.COUNT, Do.FORGET_ORDER})


@dataclass(frozen=True, slots=True)
class Step:
    """`deployment` is what BIND is about; WAIT is over at `until`, or when something happens (None: only then).

    `why` is the rest of a sentence, for the log.
    """

    do: Do
    deployment: Deployment | None = None
    until: float | None = None
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Look:
    """What a look into the store found: names of deployments.

    `complete`: may be finalised as it is. `lacking`: something is missing that a bind could bring.
    """

    complete: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is the case. Times are those of one clock that never jumps."""

    boot: str  # id of this boot
    now: float
    holds: bool = True  # policy: what is not complete is held
    restages: bool = True  # policy: what a reboot has lost is staged again
    staged: Deployment | None = None
    booted: Deployment | None = None
    following: Deployment | None = None  # boots next when nothing staged is finalised
    installed: frozenset[str] = frozenset()  # names of the deployments that have a boot entry
    finalised: bool = False  # what is owed has a boot entry
    ours: bool = False  # our own hold is set, for just the staged deployment
    order: Order | None = None
    owed: Owed | None = None
    runs: Staging = _UNTOLD  # how the running system boots, if it is of the same commit as what is owed
    remembered: bool = False  # `owed` says all of the staged deployment
    nextroot: str | None = None  # name of what a soft reboot would bring up
    gone_since: float | None = None  # since when nothing is staged, when something was
    memory: bool = True  # what is to be remembered can be written
    busy: bool = False  # a job changes the host
    binding: str = ""  # key of what that binds, when nobody asked for it and it can be given up
    look: Look | None = None
    not_before: Mapping[str, float] = field(default_factory=dict)  # key → when it may be tried again


def next_step(facts: Facts) -> Step:
    """The step that matters most. Safety comes first, then memory, then what takes time."""
    if facts.staged is not None and _must_hold(facts, facts.staged):
        return Step(Do.HOLD)
    if facts.holds and facts.nextroot is not None and not _may_pass(facts, facts.nextroot):
        return Step(Do.TAKE_DOWN)
    return (_memory(facts) if facts.memory else None) or _work(facts)


def released_by_order(facts: Facts) -> bool:
    return facts.staged is not None and facts.order is not None and not facts.order.hold and _in_force(facts)


def held_by_order(facts: Facts) -> bool:
    return facts.staged is not None and facts.order is not None and facts.order.hold and _in_force(facts)


def _in_force(facts: Facts) -> bool:
    return facts.staged is not None and facts.order is not None and facts.order.is_for(facts.staged)


def _must_hold(facts: Facts, staged: Deployment) -> bool:
    if staged.foreign_lock or released_by_order(facts):
        return False
    if held_by_order(facts):
        return not facts.ours or staged.declared
    if not facts.holds:
        return False
    if not facts.ours:
        return True
    # While a job runs it is the job that declares, and that takes it back.
    return staged.declared and facts.look is not None and staged.name not in facts.look.complete and not facts.busy


def _may_pass(facts: Facts, name: str) -> bool:
    """Whether a soft reboot may bring up the deployment `name`; as long as nobody has looked, it may."""
    staged = facts.staged
    if staged is not None and staged.name == name:
        return staged.declared
    if facts.booted is not None and facts.booted.name == name:
        return True
    return name in facts.installed and (facts.look is None or name in facts.look.complete)


def _memory(facts: Facts) -> Step | None:
    staged, owed = facts.staged, facts.owed
    if staged is not None:
        if not facts.remembered:
            return Step(Do.OWE)
        if facts.order is not None and not _in_force(facts):
            return Step(Do.FORGET_ORDER)
        return None
    dropped = _dropped(facts)
    if facts.order is not None and dropped and not _about_owed(facts.order, facts):
        return Step(Do.FORGET_ORDER)
    if owed is None:
        return None
    if facts.finalised:
        return Step(Do.SETTLE, why="it is installed")
    if facts.booted is not None and not still_owed(owed, facts.booted, facts.runs):
        return Step(Do.SETTLE, why="it runs, or another system runs by now than the one that it was to follow")
    if owed.boot != facts.boot and facts.following is not None:
        # To stage it again would undo that.
        return Step(Do.SETTLE, why="since a reboot lost it somebody has chosen another one to boot next")
    if owed.boot == facts.boot:
        return Step(Do.SETTLE, why="somebody dropped it") if dropped else None
    return Step(Do.COUNT) if owed.counted != facts.boot else None


def _about_owed(order: Order, facts: Facts) -> bool:
    """Whether `order` keeps back what was lost in a reboot, and is about to be staged again."""
    owed = facts.owed
    if owed is None or owed.boot == facts.boot or not order.hold:
        return False
    return order.deployment.partition(".")[0] == owed.checksum and order.digest == owed.digest


def _dropped(facts: Facts) -> bool:
    return facts.staged is None and facts.gone_since is not None and facts.now - facts.gone_since >= DROPPED_SECONDS


def _work(facts: Facts) -> Step:
    soon = facts.now
    if facts.staged is None and facts.gone_since is not None and not _dropped(facts):
        soon = facts.gone_since + DROPPED_SECONDS
    waits = [soon] if soon > facts.now else []
    if facts.busy and _is_in_vain(facts):
        return Step(Do.GIVE_UP)
    if facts.busy:
        return Step(Do.WAIT, until=min(waits, default=None))
    if facts.look is None:
        return Step(Do.LOOK)
    if facts.staged is not None and released_by_order(facts) and _can_declare(facts, facts.staged):
        return Step(Do.DECLARE)
    for name, step in wanted(facts, facts.look):
        at = facts.not_before.get(name, facts.now)
        if at <= facts.now:
            return step
        waits.append(at)
    return Step(Do.WAIT, until=min(waits, default=None))


def _is_in_vain(facts: Facts) -> bool:
    """Whether our own bind is about a deployment that is no more: the one that came instead must not wait for it."""
    there = {name.rpartition("/")[2] for name in facts.installed}
    there |= {one.key for one in (facts.staged, facts.booted) if one is not None}
    # With nothing staged at all it may only be about to be staged again.
    return facts.binding not in {"", *there} and (facts.staged is not None or _dropped(facts))


def _can_declare(facts: Facts, staged: Deployment) -> bool:
    return facts.ours and not staged.declared and not staged.foreign_lock


def wanted(facts: Facts, look: Look) -> list[tuple[str, Step]]:
    """What is to be done, most important first, each under the name that its tries are counted by."""
    wanted: list[tuple[str, Step]] = []
    staged, owed = facts.staged, facts.owed
    if staged is not None and (staged.name in look.lacking or _is_to_be_declared(facts, staged, look)):
        wanted.append((staged.key, Step(Do.BIND, staged)))
    lost = staged is None and owed is not None and owed.boot != facts.boot
    if lost and owed is not None and facts.restages and restageable(owed):
        wanted.append((RESTAGE, Step(Do.RESTAGE)))
    # The running system first, then what would run next.
    for deployment in dict.fromkeys(one for one in (facts.booted, facts.following) if one is not None):
        if deployment.name in look.lacking:
            wanted.append((deployment.key, Step(Do.BIND, deployment)))
    return wanted


def _is_to_be_declared(facts: Facts, staged: Deployment, look: Look) -> bool:
    """Whether a bind would end in declaring it ready, or in letting go of a hold that the policy no longer wants."""
    if staged.name not in look.complete or staged.foreign_lock or held_by_order(facts) or staged.declared:
        return False
    return facts.ours
