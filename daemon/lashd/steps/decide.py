# SPDX-License-Identifier: Apache-2.0
"""May this deployment be finalised? The pure functions that the daemon and the gate ask alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lashd.things.composefs import is_id, letting_through, unlocking
from lashd.words.model import BoundImage, Deployment, Discovery, ImageState, Order, Record

BAD_ENTRY = "bad-entry"
UNRECORDED = "unrecorded"
UNKNOWN = "unknown"
FOREIGN_LOCK = "foreign-lock"
LOCKED_KEY = "locked-key"
ORDERED = "ordered"
UNSUPPORTED = "unsupported"
UNREAD = "unread"

_SENTENCES = {
    ImageState.UNVERIFIED: "{image} is in the store, but has not been verified yet.",
    ImageState.UNKNOWN: "It is not known whether {image} is in the store.",
    ImageState.MISSING: "{image} is not in the store.",
    ImageState.INCOMPLETE: "{image} is in the store, but not all of its layers are.",
    ImageState.DRIFTED: "The name of {image} means another image than the one that the deployment is bound to.",
    ImageState.PULLING: "{image} is being fetched.",
    ImageState.FAILED: "{image} could not be fetched.",
    ImageState.INVALID: "{image} is not described correctly.",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """`release`, or hold for `reasons`: a code for programs and a whole sentence for people, each."""

    release: bool
    reasons: tuple[tuple[str, str], ...] = ()


def decide(discovery: Discovery, record: Record | None, states: Mapping[str, ImageState]) -> Decision:
    """Release only if everything that the deployment binds is known and present.

    `record` is this deployment's, if it has one; `states` maps the name of each unit to the state of its image, as
    `verify.classify` sees it with this record. Codes: `bad-entry`, `unrecorded` (the record does not say what a
    floating name is to mean), `unknown` (no state), else the state. Nothing bound means nothing to wait for.
    """
    reasons = [(BAD_ENTRY, f"{bad.unit}: {bad.problem}") for bad in discovery.bad]
    for image in discovery.images:
        reason = _against(image, record, states.get(image.unit))
        if reason:
            reasons.append(reason)
    return Decision(not reasons, tuple(reasons))


def _against(image: BoundImage, record: Record | None, state: ImageState | None) -> tuple[str, str] | None:
    shown = f"{image.reference} ({image.unit})"
    if state is None:
        return UNKNOWN, f"Nothing is known of {shown}."
    if state is not ImageState.PRESENT:
        return state.value, _SENTENCES[state].format(image=shown)
    if record is not None and not image.reference.pinned and record.image(str(image.reference)) is None:
        return UNRECORDED, (
            f"The record of the deployment does not say which digest {shown} is bound to, so it is not known whether "
            "the image in the store is the right one; 'lashctl bind' asks the registry, and records it."
        )
    return None


def at_shutdown(
    deployment: Deployment,
    seen: Decision,
    order: Order | None,
    policy: Literal["hold", "warn", "off"],
) -> Decision:
    """What the gate does about `deployment` now that the system shuts down; `seen` is what `decide` says of it.

    `order` counts when it is for just this deployment and digest; to let through it can overrule what is missing, never
    a lock of somebody else's, nor one that only the daemon takes away (`key_locked`). A decision to release has reasons
    when something is missing all the same.
    """
    if deployment.foreign_lock:
        why = f"Somebody else than lashd has locked the deployment {deployment.key}; {taking_away(deployment)}."
        return Decision(False, ((FOREIGN_LOCK, why),))
    if deployment.key_locked:
        why = f"The deployment {deployment.key} was never released since it was staged."
        return Decision(False, (*seen.reasons, (LOCKED_KEY, why)))
    if order is not None and order.is_for(deployment):
        return _by_order(order, seen.reasons)
    return Decision(seen.release or policy != "hold", seen.reasons)


def taking_away(locked: Deployment) -> str:
    """What takes somebody else's lock from the staged deployment `locked`: the rest of a sentence."""
    if is_id(locked.checksum):
        return f"{unlocking(locked.checksum)} takes that away"
    file = "'rm /run/ostree/staged-deployment-locked' where only that file is there"
    return f"{unlocking(locked.checksum)} takes that away, or {file}"


def unread(deployment: Deployment) -> Decision:
    """What is seen of a staged deployment of bootc's composefs backend that nobody has mounted and read."""
    why = (
        f"The deployment {deployment.key} was staged by bootc's composefs backend, and what it binds was not read "
        "before the shutdown, which has no time to mount it; so nobody knows whether its bound images are there. "
        f"{letting_through(deployment.checksum)}"
    )
    return Decision(False, ((UNREAD, why),))


def _by_order(order: Order, reasons: tuple[tuple[str, str], ...]) -> Decision:
    what = "kept back" if order.hold else "let through as it is"
    ordered = (ORDERED, f"User {order.uid} ordered that it be {what}: {order.reason or 'no reason was given'}.")
    return Decision(not order.hold, (*reasons, ordered))
