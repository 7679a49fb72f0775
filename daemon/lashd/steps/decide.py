# SPDX-License-Identifier: Apache-2.0
"""May this deployment be finalised? The one pure function that the daemon and the gate ask alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lashd.words.model import BoundImage, Discovery, ImageState, Record

BAD_ENTRY = "bad-entry"
UNRECORDED = "unrecorded"
UNKNOWN = "unknown"

_SENTENCES = {
    ImageState.UNVERIFIED: "{image} is in the store, but has not been verified yet.",
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
        return UNRECORDED, f"The record of the deployment does not say which digest {shown} is bound to."
    return None
