# SPDX-License-Identifier: Apache-2.0
"""What is booted, and whether all that it binds is there: from files alone, without daemon, bus, network or process."""

from __future__ import annotations

from dataclasses import dataclass

from lashd.steps.discover import discover
from lashd.steps.examine import look_up
from lashd.steps.names import digests_of
from lashd.steps.record import Records
from lashd.steps.verify import classify
from lashd.things.host import find_deployments
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, Discovery, ImageState, PlannedImage, Record, Role


@dataclass(frozen=True, slots=True)
class Booted:
    """The booted deployment: what it binds, and the record that says what its names mean, if there is one."""

    found: Discovery
    record: Record | None
    records: Records
    store: Store


def look(settings: Settings) -> Booted | None:
    """What is booted; None on a host that is none of ours. Starts no process, writes nothing.

    Raises Internal when the booted deployment cannot be told or its record cannot be used, BoundImageInvalid when its
    root cannot be read.
    """
    try:
        deployments = find_deployments(settings)
    except LashdError as error:
        if error.name is ErrorName.UNSUPPORTED_HOST:
            return None
        raise
    booted = next((each for each in deployments if Role.BOOTED in each.roles), None)
    if booted is None:
        if not settings.booted_sysroot:
            return None
        raise LashdError(ErrorName.INTERNAL, "Which deployment is booted cannot be told, so its names were not judged.")
    records = Records(settings.paths.state / "records")
    record = records.get(booted.key)
    for problem in records.problems() if record is None else ():
        if f"{booted.key}.json" in problem:
            raise LashdError(ErrorName.INTERNAL, problem)
    store = Store(settings.store, settings.store_run, settings.host.sysroot, skopeo=settings.tools.skopeo)
    return Booted(discover(booted.root), record, records, store)


def check(booted: Booted) -> list[tuple[bool, str]]:
    """For each bound image, and each entry that cannot be used: whether all is well with it, and a sentence."""
    told = [_judge(image, booted) for image in booted.found.images]
    return told + [(False, f"{entry.unit}: {entry.problem}") for entry in booted.found.bad]


def _judge(image: BoundImage, booted: Booted) -> tuple[bool, str]:
    store, records = booted.store, booted.records
    shown = f"{image.unit}: {image.reference}"
    try:
        index = store.index()
        state, stored = classify(image, booted.record, store, records.vouched(index.layers), named=True)
        digest = digests_of(booted.record).get(str(image.reference)) or image.reference.digest
        digest = digest or (stored.digest if stored else "")
        if state in (ImageState.PRESENT, ImageState.UNVERIFIED):
            finding = look_up(PlannedImage(image.reference, digest, (image,), present=True), store, index)
            if finding.problem:
                return False, f"{shown}: {finding.problem}"
    except LashdError as error:
        return False, f"{shown}: {error.message}"
    match state:
        case ImageState.PRESENT:
            return True, f"{shown} is complete ({digest})."
        case ImageState.UNVERIFIED:
            return True, f"{shown} is complete ({digest}); it has not been read and compared yet."
        case ImageState.DRIFTED:
            return False, f"{shown} means another image than {digest}, which this deployment is bound to."
        case ImageState.INCOMPLETE:
            return False, f"{shown} is in the store, but not all of its layers are ({digest})."
        case _:
            return False, f"{shown} is not in the store."
