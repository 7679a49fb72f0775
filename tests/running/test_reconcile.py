# SPDX-License-Identifier: Apache-2.0
"""The keeper's next step: a table of cases, and what must hold for every sequence of steps in every state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lashd.running.reconcile import DROPPED_SECONDS, RESTAGE, Do, Facts, Look, Step, next_step
from lashd.things.host import Staging
from lashd.words.model import Deployment, Order, Owed, Role

BOOT, BEFORE = "this-boot", "boot-before"
NOW = 1000.0


def deployment(letter: str, serial: int = 0, *roles: Role, **more: Any) -> Deployment:
    return Deployment("os", letter * 64, serial, Path("/", letter), frozenset(roles), digest=f"sha256:{letter}", **more)


OLD = deployment("a", 0, Role.BOOTED)
NEW = deployment("b", 0, Role.STAGED)
OTHER = deployment("c", 0, Role.ROLLBACK)
HELD = replace(NEW, locked=True)
READY = replace(NEW, declared=True)
FOREIGN = replace(NEW, locked=True, foreign_lock=True)


def owed(boot: str = BOOT, of: Deployment = NEW, **more: Any) -> Owed:
    return Owed(of.key, "os", of.checksum, of.digest or "", "[origin]", boot, 1, **more)


def order(hold: bool, of: Deployment = NEW) -> Order:
    return Order(of.key, of.digest or "", hold, 0, "", 1)


def look(complete: str = "", lacking: str = "") -> Look:
    keys = {"old": OLD.name, "new": NEW.name, "other": OTHER.name}
    return Look(frozenset(keys[one] for one in complete.split()), frozenset(keys[one] for one in lacking.split()))


def facts(**more: Any) -> Facts:
    base: dict[str, Any] = {"boot": BOOT, "now": NOW, "booted": OLD, "installed": frozenset({OLD.name})}
    if "staged" in more:
        base |= {"owed": owed(), "remembered": True, "ours": not more["staged"].foreign_lock}
    else:
        base |= {"gone_since": NOW - 10}
    return Facts(**base | more)


BOTH = frozenset({OLD.name, OTHER.name})
LOST: dict[str, Any] = {"owed": owed(BEFORE, counted=BOOT), "look": look("old other")}
# Staged over what runs, with other kernel arguments.
SAME = replace(owed(BEFORE, deployment("a", 1), counted=BOOT, base=OLD.checksum, kargs=("x",)), origin="[a]\nb=c\n")
CASES: list[tuple[str, Facts, Do]] = [
    ("lost, and another one was chosen since", facts(**LOST, following=OTHER, installed=BOTH), Do.SETTLE),
    ("lost, and another system came meanwhile", facts(owed=owed(BEFORE, base="f" * 64)), Do.SETTLE),
    ("lost by what runs", facts(**LOST | {"owed": owed(BEFORE, counted=BOOT, base=OLD.checksum)}), Do.RESTAGE),
    ("lost, and what runs is it", facts(**LOST | {"owed": SAME, "runs": Staging("[a]\nb=c\n", ("x",))}), Do.SETTLE),
    ("lost, the same with other arguments", facts(**LOST | {"owed": SAME, "runs": Staging("[a]\nb=c\n")}), Do.RESTAGE),
    ("lost with initrds of its own", facts(**LOST | {"owed": replace(LOST["owed"], initrds=("f",))}), Do.WAIT),
    ("lost, and ordered to be held", facts(**LOST, order=order(True)), Do.RESTAGE),
    ("lost, and ordered to be let through", facts(**LOST, order=order(False)), Do.FORGET_ORDER),
    ("lost, and an order about another one", facts(**LOST, order=order(True, OTHER)), Do.FORGET_ORDER),
    ("nothing can be written", facts(staged=HELD, remembered=False, memory=False, look=look("old", "new")), Do.BIND),
    ("nothing to do", facts(look=look("old")), Do.WAIT),
    ("nothing is known yet", facts(), Do.LOOK),
    ("staged by somebody else", facts(staged=NEW, ours=False, owed=None, remembered=False), Do.HOLD),
    ("our lock vanished", facts(staged=NEW, ours=False), Do.HOLD),
    ("our lock is for the one before", facts(staged=HELD, ours=False), Do.HOLD),
    ("even while a job runs", facts(staged=NEW, ours=False, busy=True), Do.HOLD),
    ("declared, and then not complete any more", facts(staged=READY, look=look("old", "new")), Do.HOLD),
    ("declared by a job that is still at it", facts(staged=READY, look=look("old", "new"), busy=True), Do.WAIT),
    ("locked by somebody else", facts(staged=FOREIGN, look=look("old new")), Do.WAIT),
    ("locked by somebody else, incomplete", facts(staged=FOREIGN, look=look("old", "new")), Do.BIND),
    ("policy warn", facts(staged=NEW, ours=False, holds=False, look=look("old new")), Do.WAIT),
    ("policy warn, incomplete", facts(staged=NEW, ours=False, holds=False, look=look("old", "new")), Do.BIND),
    ("policy warn, our own staging", facts(staged=HELD, holds=False, look=look("old new")), Do.BIND),
    ("let through by order", facts(staged=NEW, ours=False, order=order(False), look=look("old", "new")), Do.BIND),
    ("an order to let it through, not carried out", facts(staged=HELD, order=order(False), look=look()), Do.DECLARE),
    ("an order about another one", facts(staged=NEW, ours=False, order=order(False, OTHER)), Do.HOLD),
    ("an order about another one is forgotten", facts(staged=HELD, order=order(False, OTHER)), Do.FORGET_ORDER),
    ("held back by order, although ready", facts(staged=READY, order=order(True), look=look("old new")), Do.HOLD),
    ("held back by order, whatever the policy", facts(staged=NEW, ours=False, holds=False, order=order(True)), Do.HOLD),
    ("held back by order, complete", facts(staged=HELD, order=order(True), look=look("old new")), Do.WAIT),
    ("held back by order, incomplete", facts(staged=HELD, order=order(True), look=look("old", "new")), Do.BIND),
    ("a soft reboot into what is held", facts(staged=HELD, nextroot=NEW.name), Do.TAKE_DOWN),
    ("a soft reboot into what is ready", facts(staged=READY, nextroot=NEW.name, look=look("old new")), Do.WAIT),
    ("a soft reboot into the running one", facts(nextroot=OLD.name, look=look("old")), Do.WAIT),
    ("a soft reboot into nobody knows what", facts(nextroot="unknown", look=look("old")), Do.TAKE_DOWN),
    (
        "a soft reboot into one that lacks something",
        facts(nextroot=OTHER.name, installed=frozenset({OTHER.name}), look=look("old", "other")),
        Do.TAKE_DOWN,
    ),
    (
        "a soft reboot into the running one's commit in another stateroot",
        facts(nextroot=f"other/{OLD.key}", installed=frozenset({OLD.name, f"other/{OLD.key}"}), look=look("old")),
        Do.TAKE_DOWN,
    ),
    ("hold before memory", facts(staged=NEW, ours=False, remembered=False), Do.HOLD),
    ("memory before work", facts(staged=HELD, remembered=False, look=look("old", "new")), Do.OWE),
    ("held and incomplete", facts(staged=HELD, look=look("old", "new")), Do.BIND),
    ("held and complete", facts(staged=HELD, look=look("old new")), Do.BIND),
    ("a bad entry alone", facts(staged=HELD, look=look("old")), Do.WAIT),
    ("ready", facts(staged=READY, look=look("old new")), Do.WAIT),
    ("one job at a time", facts(staged=HELD, look=look("old", "new"), busy=True), Do.WAIT),
    ("our own bind, of what is staged", facts(staged=HELD, busy=True, binding=NEW.key), Do.WAIT),
    ("our own bind, of what was replaced", facts(staged=HELD, busy=True, binding=OTHER.key), Do.GIVE_UP),
    ("our own bind, of what was dropped", facts(busy=True, binding=NEW.key), Do.GIVE_UP),
    ("our own bind, of the running one", facts(staged=HELD, busy=True, binding=OLD.key), Do.WAIT),
    ("our own bind, of one that has a boot entry", facts(busy=True, binding=OTHER.key, installed=BOTH), Do.WAIT),
    ("our own bind, being staged again, perhaps", facts(busy=True, binding=NEW.key, gone_since=NOW - 0.1), Do.WAIT),
    ("hold before giving up", facts(staged=NEW, ours=False, busy=True, binding=OTHER.key), Do.HOLD),
    ("not so soon", facts(staged=HELD, look=look("old", "new"), not_before={NEW.key: NOW + 1}), Do.WAIT),
    ("the running one lacks something", facts(look=look("", "old")), Do.BIND),
    ("what boots next lacks something", facts(following=OTHER, look=look("old", "other")), Do.BIND),
    ("lost at a reboot", facts(owed=owed(BEFORE)), Do.COUNT),
    ("lost at a reboot, counted", facts(owed=owed(BEFORE, counted=BOOT), look=look("old")), Do.RESTAGE),
    ("lost, and not to be staged", facts(owed=owed(BEFORE, counted=BOOT), restages=False, look=look("old")), Do.WAIT),
    (
        "lost, and tried a moment ago",
        facts(owed=owed(BEFORE, counted=BOOT), look=look("old"), not_before={RESTAGE: NOW + 1}),
        Do.WAIT,
    ),
    ("the reboot brought it up", facts(owed=owed(BEFORE, OLD)), Do.SETTLE),
    ("finalised, and not booted", facts(owed=owed(BEFORE, OTHER), finalised=True), Do.SETTLE),
    ("dropped", facts(owed=owed()), Do.SETTLE),
    ("just being replaced, perhaps", facts(owed=owed(), gone_since=NOW - 0.1, look=look("old")), Do.WAIT),
    ("dropped, with an order", facts(order=order(True)), Do.FORGET_ORDER),
]  # fmt: skip


@pytest.mark.parametrize(("state", "do"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_step(state: Facts, do: Do) -> None:
    assert next_step(state).do is do


def test_what_a_bind_is_about_and_how_long_to_wait() -> None:
    everything = facts(staged=HELD, following=OTHER, look=look("", "old new other"))
    assert next_step(everything) == Step(Do.BIND, HELD)
    # One that fails does not keep the others from their turn.
    later = {HELD.key: NOW + 5}
    assert next_step(replace(everything, not_before=later)) == Step(Do.BIND, OLD)
    later |= {OLD.key: NOW + 3}
    assert next_step(replace(everything, not_before=later)) == Step(Do.BIND, OTHER)
    later |= {OTHER.key: NOW + 4}
    assert next_step(replace(everything, not_before=later)) == Step(Do.WAIT, until=NOW + 3)
    gone = facts(owed=owed(), gone_since=NOW - 0.25, look=look("old"), busy=True, binding=NEW.key)
    assert next_step(gone) == Step(Do.WAIT, until=NOW - 0.25 + DROPPED_SECONDS)
    gone = facts(owed=owed(), gone_since=NOW - 0.25, look=look("old"))
    assert next_step(gone) == Step(Do.WAIT, until=NOW - 0.25 + DROPPED_SECONDS)


# -- every sequence of steps ----------------------------------------------------------------------------------------

DEPLOYMENTS = [deployment(letter, serial) for letter in "abc" for serial in (0, 1)]


@dataclass
class World:
    """A host as far as the keeper touches it; `bring` are the keys that a bind can complete."""

    facts: Facts
    complete: set[str]
    bring: set[str]

    def look(self) -> Look:
        known = [one for one in (self.facts.staged, self.facts.booted, self.facts.following) if one]
        return Look(
            frozenset(one.name for one in known if one.key in self.complete),
            frozenset(one.name for one in known if one.key not in self.complete),
        )

    def do(self, step: Step) -> None:
        before = self.facts
        staged = before.staged
        match step.do:
            case Do.HOLD:
                assert staged is not None
                assert not staged.foreign_lock
                self.facts = replace(before, ours=True, staged=replace(staged, locked=True, declared=False))
            case Do.TAKE_DOWN:
                self.facts = replace(before, nextroot=None)
            case Do.OWE:
                assert staged is not None
                self.facts = replace(before, owed=owed(of=staged), remembered=True)
            case Do.SETTLE:
                assert staged is None
                self.facts = replace(before, owed=None)
            case Do.COUNT:
                assert before.owed is not None
                self.facts = replace(before, owed=replace(before.owed, counted=BOOT, wasted=before.owed.wasted + 1))
            case Do.FORGET_ORDER:
                assert not (staged and before.order and before.order.is_for(staged))
                self.facts = replace(before, order=None)
            case Do.LOOK:
                self.facts = replace(before, look=self.look())
            case Do.DECLARE:
                assert staged is not None
                assert before.order is not None
                assert before.order.is_for(staged)
                assert not before.order.hold
                self.facts = replace(before, staged=replace(staged, locked=False, declared=True))
            case Do.GIVE_UP:
                assert before.busy
                there = [before.staged, before.booted, before.following]
                assert before.binding not in [one.key for one in there if one], "what is there is bound to the end"
                # Cancelled, it ends in a moment, and counts as a try.
                tried = {**before.not_before, before.binding: before.now + 30}
                self.facts = replace(before, busy=False, binding="", not_before=tried, look=None)
            case Do.BIND:
                self._bind(step.deployment)
            case Do.RESTAGE:
                assert before.owed is not None
                assert before.owed.checksum != OLD.checksum
                again = next(one for one in DEPLOYMENTS if one.key == before.owed.deployment)
                again = replace(again, roles=frozenset({Role.STAGED}), locked=True)
                self.facts = replace(before, staged=again, ours=True, remembered=False, look=None, gone_since=None)

    def _bind(self, what: Deployment | None) -> None:
        assert what is not None
        before = self.facts
        self.facts = replace(before, not_before={**before.not_before, what.key: before.now + 30}, look=None)
        if what.key in self.bring:
            self.complete.add(what.key)
        staged, order = before.staged, before.order
        # As the walk does it: never what is not complete, is locked by somebody else, or is held back by order.
        if staged is None or what.key != staged.key or what.key not in self.complete or staged.foreign_lock:
            return
        if order is None or not order.is_for(staged):
            self.facts = replace(self.facts, staged=replace(staged, locked=False, declared=True), ours=True)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    chance = st.booleans()
    one = st.sampled_from(DEPLOYMENTS)
    staged = draw(st.none() | one)
    foreign, ours, declared = draw(chance), draw(chance), draw(chance)
    if staged is not None:
        declared = declared and ours and not foreign
        locked = (foreign or ours) and not declared
        roles = frozenset({Role.STAGED})
        staged = replace(staged, roles=roles, locked=locked, declared=declared, foreign_lock=foreign)
    following = draw(st.none() | one)
    busy, binding = draw(chance), draw(st.just("") | st.builds(lambda it: it.key, one))
    about = draw(one)
    state = Facts(
        boot=BOOT,
        now=NOW,
        holds=draw(chance),
        restages=draw(chance),
        staged=staged,
        booted=OLD,
        following=following,
        installed=frozenset({OLD.name, *([following.name] if following else [])}),
        ours=staged is not None and ours,
        order=draw(st.none() | st.builds(order, chance, st.just(about))),
        owed=draw(st.none() | st.builds(owed, st.sampled_from([BOOT, BEFORE]), one)),
        nextroot=draw(st.none() | st.just("unknown") | st.builds(lambda it: it.name, one)),
        gone_since=None if staged else draw(st.sampled_from([NOW - 60, NOW])),
        busy=busy,
        binding=binding if busy else "",
    )
    keys = st.sets(st.sampled_from([each.key for each in DEPLOYMENTS]))
    return World(state, draw(keys), draw(keys))


@settings(max_examples=400, deadline=None)
@given(worlds())
def test_every_world_comes_to_rest_safely(world: World) -> None:
    start = world.facts
    for _ in range(40):
        step = next_step(world.facts)
        if step.do is Do.WAIT:
            break
        assert not (world.facts.busy and step.do in (Do.BIND, Do.RESTAGE)), "one job at a time"
        world.do(step)
    else:
        raise AssertionError("no end")
    rest = world.facts
    there = {name.rpartition("/")[2] for name in rest.installed} | {one.key for one in (rest.staged, OLD) if one}
    dropped = rest.staged is None and rest.gone_since is not None and rest.now - rest.gone_since >= DROPPED_SECONDS
    if rest.binding and (rest.staged or dropped):
        assert rest.binding in there, "what nobody can boot any more keeps the others waiting"
    assert rest.busy or not start.busy or start.binding, "what a person asked for is never given up"
    staged, order_ = rest.staged, rest.order
    if staged is None:
        return
    if start.staged is not None and start.staged.foreign_lock:
        assert staged.foreign_lock
        assert rest.ours == start.ours
        return
    assert rest.remembered
    if order_ is not None:
        assert order_.is_for(staged)
        assert rest.ours or not order_.hold
        assert not (order_.hold and staged.declared)
        return
    if rest.holds:
        assert rest.ours
        if staged.declared and not rest.busy:
            assert staged.key in world.complete
        if staged.key in world.complete | world.bring and not rest.busy:
            assert staged.declared
        assert rest.nextroot is None or rest.nextroot != staged.name or staged.declared
    elif start.staged is not None and not start.ours:
        assert not rest.ours or staged.declared
