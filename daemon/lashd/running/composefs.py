# SPDX-License-Identifier: Apache-2.0
"""The gate on a host of bootc's composefs backend, and the orders that can be given where the daemon does not run.

What the staged deployment binds was copied to lashd's run directory by the daemon, which had the time to mount it
(lashd.things.bootc.roots). With such a copy it is judged like any other; without one nobody knows, and only an
operator's order or the policy lets it through. Boot entries are bootc's own: what boots when nothing is staged is
looked at and told, and cannot be changed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lashd.running.judge import Judge, Reason
from lashd.running.nextboot import SOFT_REBOOT, SOFT_REBOOT_LEFT, check_boot_order
from lashd.steps.decide import UNKNOWN, UNSUPPORTED, Decision, at_shutdown, unread
from lashd.steps.shutdowns import Shutdowns, boot_id
from lashd.things.bootc.deployments import ComposefsSysroot
from lashd.things.composefs import STAGED, Note, Unreadable, hold, is_host, read_note, release
from lashd.things.ostree.nextroot import mounted, take_down
from lashd.words import files
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Order, Passed, Verdict

_LOOKS = 3
_CHANGED = "What is staged changed again and again."


def decide_now(
    settings: Settings, write: Callable[[Verdict], None], nextroot: Path, passed: str, since: float
) -> Verdict:
    """Decide about what is staged, and do it; the verdict is written before anything is let through.

    `passed` names the file in lashd's run directory that says what was; `since`: when the system was booted, in seconds
    since the epoch. Raises OSError.
    """
    run, sysroot, judge = settings.paths.composefs_run, ComposefsSysroot(settings), Judge(settings, since)
    changed: Deployment | None = None
    for _ in range(_LOOKS):
        try:
            # The hold came first, without us; this is for whoever starts the gate in another way.
            note = _held(run)
        except Unreadable as error:
            # bootc may well understand what we do not: the missing word of ours keeps it back.
            return _told(write, None, Decision(False, ((UNKNOWN, f"{run / STAGED} cannot be understood: {error}."),)))
        if note is None or note.deployment == sysroot.booted:
            return _without(settings, sysroot, judge, write, nextroot)
        staged = sysroot.staged(note)
        decision = _decide(settings, judge, staged)
        if not decision.release:
            if not note.locked:
                why = f"{run / STAGED} has no flag that could hold it; only the check before bootc's own command does."
                decision = Decision(False, (*decision.reasons, (UNSUPPORTED, why)))
            if settings.gate.policy == "hold":
                decision = Decision(False, (*decision.reasons, *_soft_reboot(settings, nextroot)))
            return _told(write, staged, decision)
        verdict = _told(write, staged, decision)
        if _let_through(settings, note, passed):
            return verdict
        # Somebody staged something else meanwhile, or locked it.
        changed = staged
        judge.forget()
    return _told(write, changed, Decision(False, ((UNKNOWN, _CHANGED),)))


def _decide(settings: Settings, judge: Judge, staged: Deployment) -> Decision:
    if staged.root.is_dir():
        judged = judge.judge(staged)
        return Decision(judged.release, judged.reasons)
    order = Shutdowns(settings.paths.state, settings.paths.run).order()
    seen = Decision(True) if settings.gate.policy == "off" else unread(staged)
    return at_shutdown(staged, seen, order, settings.gate.policy)


def _without(
    settings: Settings, sysroot: ComposefsSysroot, judge: Judge, write: Callable[[Verdict], None], nextroot: Path
) -> Verdict:
    """Nothing is staged: what is first in the boot order boots, and is looked at."""
    everything = sysroot.deployments()
    following: Deployment | None = None
    reasons: list[Reason] = []
    if everything:  # else its kernel was not told what it has booted, and bootc itself finds nothing
        following, reasons = check_boot_order(everything, judge, _leave)
    if settings.gate.policy == "hold":
        # Of a rollback, for example; nothing tells which deployment it is.
        reasons += _soft_reboot(settings, nextroot)
    name, digest = (following.key, following.digest or "") if following else ("", "")
    verdict = Verdict(Passed.NOTHING, boot_id(), int(time.time()), name, digest, tuple(reasons))
    write(verdict)
    return verdict


def _leave(first: Deployment) -> None:
    raise LashdError(ErrorName.UNSUPPORTED_HOST, "the boot entries are bootc's own; 'bootc rollback' changes them.")


def give_order(settings: Settings, arguments: Sequence[str]) -> int:
    """`hold ID [REASON]` and `release ID [REASON]`: what an operator says about the staged deployment `ID`.

    As the root user only. Good for just this deployment; to let it through only until the next reboot. Returns the exit
    status: 0, or 2 when that cannot be.
    """
    what, deployment, *reason = arguments
    if not is_host(settings):
        return _refused(f"Only on hosts of bootc's composefs backend; here 'lashctl {what}' does that.")
    try:
        note = read_note(settings.paths.composefs_run)
    except Unreadable as error:
        return _refused(f"{settings.paths.composefs_run / STAGED} cannot be understood: {error}.")
    if note is None:
        return _refused("No deployment is staged.")
    if note.deployment != deployment:
        return _refused(f"The staged deployment is {note.deployment}, not {deployment}; nothing was changed.")
    staged = ComposefsSysroot(settings).staged(note)
    order = Order(staged.key, staged.digest or "", what == "hold", os.getuid(), " ".join(reason), int(time.time()))
    try:
        Shutdowns(settings.paths.state, settings.paths.run).give_order(order)
    except LashdError as error:
        return _refused(error.message)
    print("It is kept back at shutdown." if order.hold else "It is let through as it is at the next shutdown.")
    return 0


def _held(run: Path) -> Note | None:
    try:
        return hold(run)
    except OSError as error:
        print(f"The flag in {run / STAGED} cannot be set: {error}.", flush=True)
        return read_note(run)


def _let_through(settings: Settings, note: Note, passed: str) -> bool:
    """Take our flag away, and only ours, if `note` is still what is staged. Answers whether it may be finalised now."""
    settings.paths.run.mkdir(parents=True, exist_ok=True)
    word = settings.paths.run / passed
    files.write_durably(word, note.with_flag(False))
    if release(settings.paths.composefs_run, note) if note.ours else read_note(settings.paths.composefs_run) == note:
        return True
    word.unlink()
    return False


def _soft_reboot(settings: Settings, nextroot: Path) -> tuple[Reason, ...]:
    """bootc mounts what a soft reboot would start, whatever the flag says; it goes unless what is staged passes."""
    if not mounted(nextroot):
        return ()
    try:
        take_down(settings.paths.ostree_run, nextroot)
    except OSError as error:
        return ((SOFT_REBOOT_LEFT, f"A soft reboot was prepared and cannot be taken back: {error}."),)
    return ((SOFT_REBOOT, "A soft reboot was prepared; it was taken back."),)


def _told(write: Callable[[Verdict], None], about: Deployment | None, decision: Decision) -> Verdict:
    result = Passed.RELEASED if decision.release else Passed.HELD
    key, digest = (about.key, about.digest or "") if about else ("", "")
    verdict = Verdict(result, boot_id(), int(time.time()), key, digest, decision.reasons)
    write(verdict)
    return verdict


def _refused(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2
