# SPDX-License-Identifier: Apache-2.0
"""What decides about the next boot besides staging: the order of the boot entries, and a prepared soft reboot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lashd.running.judge import Judge, Reason
from lashd.steps.decide import UNKNOWN
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.things.ostree.nextroot import prepared, take_down
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Role

RESTORED = "boot-order-restored"
NOT_RESTORED = "boot-order-not-restored"
SOFT_REBOOT = "soft-reboot-cancelled"
SOFT_REBOOT_LEFT = "soft-reboot-not-cancelled"


def check_boot_order(
    everything: Sequence[Deployment], judge: Judge, put_first: Callable[[Deployment], None]
) -> tuple[Deployment | None, list[Reason]]:
    """Look at what boots next when nothing staged does, and put the running deployment before it if need be.

    Answers what was to boot next, unless that is the running one, and what is to be said of it.
    """
    installed = [one for one in everything if Role.STAGED not in one.roles]
    booted = next((one for one in installed if Role.BOOTED in one.roles), None)
    if booted is None:
        return None, [(UNKNOWN, "Which deployment boots next cannot be told: the boot entries do not name this one.")]
    if installed[0] is booted:
        return None, []
    following = installed[0]
    judged = judge.judge(following)
    if judged.release:
        return following, list(judged.reasons)
    shown = following.version or following.key
    try:
        put_first(booted)
    except LashdError as error:
        return following, [*judged.reasons, (NOT_RESTORED, f"{shown} boots next all the same: {error.message}")]
    why = f"{shown} was to boot next; the running system was put back before it."
    return following, [*judged.reasons, (RESTORED, why)]


def check_soft_reboot(
    settings: Settings, everything: Sequence[Deployment], judge: Judge, nextroot: Path
) -> list[Reason]:
    """Take a prepared soft reboot back that leads where a reboot may not: it goes round the lock."""
    name = prepared(settings.paths.ostree_run, everything)
    target = next((one for one in everything if one.name == name), None)
    if name is None or (target is not None and Role.BOOTED in target.roles):
        return []
    if settings.gate.policy != "hold" if target is None else judge.judge(target).release:
        return []
    try:
        take_down(settings.paths.ostree_run, nextroot)
    except OSError as error:
        return [(SOFT_REBOOT_LEFT, f"A soft reboot into {name} was prepared and cannot be taken back: {error}.")]
    return [(SOFT_REBOOT, f"A soft reboot into {name} was prepared; it was taken back.")]


def put_first_now(settings: Settings, first: Deployment) -> None:
    """Make `first` boot next. Raises LashdError. The one thing the gate does that takes a process."""
    import asyncio

    from lashd.things.ostree.client import Worker

    worker = Worker(settings, booted=True, shutting_down=True)
    arguments = {"key": first.key, "stateroot": first.stateroot, "drop_staged": False, "shutting_down": True}
    asyncio.run(worker.change("set-first", **arguments))
    # libostree has been seen to say nothing and to do nothing.
    installed = [one.name for one in OstreeSysroot(settings).deployments() if Role.STAGED not in one.roles]
    if installed[:1] != [first.name]:
        raise LashdError(
            ErrorName.HOST_COMMAND_FAILED, "ostree reported no error, but the boot entries did not change."
        )
