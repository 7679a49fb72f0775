# SPDX-License-Identifier: Apache-2.0
"""The gate on a host of bootc's composefs backend, and the orders that it goes by.

What is staged there cannot be read yet, so that nothing is released for being complete: only an operator's order or the
policy lets something through. The daemon does not run on such a host; orders are given with the gate's own program.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lashd.running.nextboot import SOFT_REBOOT, SOFT_REBOOT_LEFT
from lashd.steps.decide import UNKNOWN, UNSUPPORTED, Decision, unread_at_shutdown
from lashd.steps.shutdowns import Shutdowns, boot_id
from lashd.things.composefs import STAGED, Note, Unreadable, hold, is_host, read_note, release
from lashd.things.ostree.nextroot import mounted, take_down
from lashd.words import files
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import Order, Passed, Verdict

_LOOKS = 3
_CHANGED = "What is staged changed again and again."


def decide_now(settings: Settings, write: Callable[[Verdict], None], nextroot: Path, passed: str) -> Verdict:
    """Decide about what is staged, and do it; the verdict is written before anything is let through.

    `passed` names the file in lashd's run directory that says what was. Raises OSError.
    """
    run, order = settings.paths.composefs_run, Shutdowns(settings.paths.state, settings.paths.run).order()
    changed = ""
    for _ in range(_LOOKS):
        try:
            # The hold came first, without us; this is for whoever starts the gate in another way.
            note = _held(run)
        except Unreadable as error:
            # bootc may well understand what we do not: the missing word of ours keeps it back.
            return _told(write, "", Decision(False, ((UNKNOWN, f"{run / STAGED} cannot be understood: {error}."),)))
        if note is None:
            verdict = Verdict(Passed.NOTHING, boot_id(), int(time.time()))
            write(verdict)
            return verdict
        decision = unread_at_shutdown(note.deployment, order, settings.gate.policy, foreign=note.foreign)
        if not decision.release:
            if not note.locked:
                why = f"{run / STAGED} has no flag that could hold it; only the check before bootc's own command does."
                decision = Decision(False, (*decision.reasons, (UNSUPPORTED, why)))
            if settings.gate.policy == "hold":
                decision = Decision(False, (*decision.reasons, *_soft_reboot(settings, nextroot)))
            return _told(write, note.deployment, decision)
        verdict = _told(write, note.deployment, decision)
        if _let_through(settings, note, passed):
            return verdict
        # Somebody staged something else meanwhile, or locked it.
        changed = note.deployment
    return _told(write, changed, Decision(False, ((UNKNOWN, _CHANGED),)))


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
    order = Order(deployment, "", what == "hold", os.getuid(), " ".join(reason), int(time.time()))
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


def _soft_reboot(settings: Settings, nextroot: Path) -> tuple[tuple[str, str], ...]:
    """bootc mounts what a soft reboot would start, whatever the flag says; it goes with what is held."""
    if not mounted(nextroot):
        return ()
    try:
        take_down(settings.paths.ostree_run, nextroot)
    except OSError as error:
        return ((SOFT_REBOOT_LEFT, f"A soft reboot was prepared and cannot be taken back: {error}."),)
    return ((SOFT_REBOOT, "A soft reboot was prepared; it was taken back."),)


def _told(write: Callable[[Verdict], None], deployment: str, decision: Decision) -> Verdict:
    result = Passed.RELEASED if decision.release else Passed.HELD
    verdict = Verdict(result, boot_id(), int(time.time()), deployment, "", decision.reasons)
    write(verdict)
    return verdict


def _refused(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2
