# SPDX-License-Identifier: Apache-2.0
"""What a bind would fetch and keep, in bytes, before anything is done.

What is complete in the store costs no process and no question to a registry, whether or not a record vouches for it
yet: `verify` reads what nobody vouches for, and can do so without network.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from lashd.steps.failed import log_failed
from lashd.steps.schedule import delay, most_at_once, unpacking_at_once
from lashd.things import manifests
from lashd.things.registry import resolve
from lashd.things.store import Store, StoredImage, StoreIndex
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError, all_in_one
from lashd.words.model import BoundImage, Layer, Manifest, Plan, PlannedImage, PullOptions, Record
from lashd.words.progress import ItemProgress, Report, Stage, StageStarted, ignore
from lashd.words.reference import Reference

# Questions to registries at the same time. Each is a short process that mostly waits for the line.
QUESTIONS = 32
# A plan is short: what does not pass quickly is left to whoever asks for the next one.
ATTEMPTS = 3
LONGEST_DELAY = 5.0

# How much larger a layer is when it is unpacked; manifests do not tell. Container layers shrink to between a half and a
# third under gzip. The store's own experience counts more once it has this many compressed bytes.
UNPACKED_FACTOR = 2.5
FACTOR_LIMITS = (1.0, 5.0)
EXPERIENCE_BYTES = 64 * 1024 * 1024


# What registries have answered, by what they were asked: the reference, and how to ask (platform, credentials).
Told = Mapping[tuple[Reference, PullOptions], Manifest]
NOTHING_TOLD: Told = MappingProxyType({})


async def plan(
    bound: Sequence[BoundImage],
    *,
    store: Store,
    record: Record | None,
    settings: Settings,
    refresh: bool = True,
    told: Told = NOTHING_TOLD,
    report: Report = ignore,
    complain: bool = False,
) -> Plan:
    """Find out what each of `bound` means and which of its layers the store does not have.

    A pinned reference means its digest, a floating one what the deployment's `record` says; without one the registry is
    asked, unless `refresh` is false and the store has something complete under that name, or the registry's answer of a
    moment ago is in `told`. Layers that the index has but
    whose directory is gone are to be fetched (take them out of the store first: `verify.mend`).
    An image that nobody can tell about does not stop the others: `unresolved` of the plan is one error that names all
    of them; the journal hears of each if it is to `complain`. Raises StoreDamaged when the index cannot be read.
    """
    report(StageStarted(Stage.PLAN, items_total=len(bound)))
    uses: dict[tuple[Reference, PullOptions], list[BoundImage]] = {}
    for image in bound:
        uses.setdefault((image.reference, image.pull), []).append(image)
    questions = asyncio.Semaphore(QUESTIONS)

    async def mean(reference: Reference, options: PullOptions) -> _Meaning | LashdError:
        try:
            meaning = _known(reference, options, record, store, refresh)
            if not meaning.present:
                async with questions:
                    meaning = await _asked(meaning, options, store, settings, told, report)
        except LashdError as error:
            report(ItemProgress(str(reference), "failed", error=error.message))
            if complain:
                log_failed(reference, error)
            return error
        report(ItemProgress(str(reference), "done"))
        return meaning

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(mean(*use)) for use in uses]
    results = [task.result() for task in tasks]
    errors = [result for result in results if isinstance(result, LashdError)]
    pairs = zip(results, uses.values(), strict=True)
    images = _planned([(result, who) for result, who in pairs if isinstance(result, _Meaning)], store)
    unresolved = f"The meaning of {len(errors)} of {len(uses)} bound images could not be found out."
    measured = _measured(images, store, settings)
    return replace(measured, unresolved=all_in_one(errors, unresolved)) if errors else measured


def told_by(plan: Plan) -> Told:
    """What registries answered for `plan`."""
    return {
        (bound.reference, bound.pull): image.manifest
        for image in plan.images
        if image.manifest is not None
        for bound in image.bound
    }


def require_resolved(plan: Plan) -> None:
    """Raises what kept images of `plan` from being found out, if anything did."""
    if plan.unresolved is not None:
        raise plan.unresolved


def require_space(plan: Plan) -> None:
    """Raises NoSpace, with the bytes needed and free, unless `plan` fits. To be asked before the first byte."""
    if plan.fits:
        return
    raise LashdError(
        ErrorName.NO_SPACE,
        f"The bound images need about {human(plan.bytes_on_disk)} of disk space (of which "
        f"{human(plan.bytes_to_fetch)} are fetched), and {human(plan.reserve)} are kept in reserve, but only "
        f"{human(plan.bytes_free)} are free. Nothing was fetched; free some space and try again.",
    )


def human(size: int) -> str:
    """`size` bytes for people: 999 bytes, 1.5 MB, 12 GB."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 10 else f"{value:.1f} {unit}"


# What a reference means


@dataclass(frozen=True, slots=True)
class _Meaning:
    reference: Reference
    digest: str | None = None  # of the platform's manifest; None as long as only the registry knows
    index_digest: str | None = None
    present: bool = False
    manifest: Manifest | None = None


def _known(reference: Reference, options: PullOptions, record: Record | None, store: Store, refresh: bool) -> _Meaning:
    """What is known without asking a registry."""
    index = store.index()
    recorded = record.image(str(reference)) if record and not reference.pinned else None
    if recorded:
        found = index.image_with_digest(reference.name, recorded.digest)
        present = found is not None and store.complete(found)
        return _Meaning(reference, recorded.digest, recorded.index_digest, present)
    if reference.pinned or not refresh:
        found = index.image_named(reference)
        if found is not None and store.complete(found):
            return _stored(reference, options, found, store)
    return _Meaning(reference)


def _stored(reference: Reference, options: PullOptions, found: StoredImage, store: Store) -> _Meaning:
    """What `reference` means by the manifests that the store keeps beside its image `found`."""
    named = reference.digest or found.digest
    if found.digests == {named}:
        # Of an index it would also have the manifest of the platform.
        return _Meaning(reference, named, present=True)
    raw = store.big_data(found, f"manifest-{named}")
    try:
        manifest = manifests.parse(raw or b"", named, str(reference))
        if isinstance(manifest, Manifest):
            return _Meaning(reference, named, present=True)
        digest = manifests.choose(manifest, manifests.wanted(options), str(reference))
    except LashdError:
        # It cannot be told from the store: the registry knows.
        return _Meaning(reference)
    # The store may have the image of another platform from the same index.
    return _Meaning(reference, digest, named, present=True) if digest in found.digests else _Meaning(reference)


async def _asked(
    known: _Meaning, options: PullOptions, store: Store, settings: Settings, told: Told, report: Report
) -> _Meaning:
    """What the registry says; of a recorded image only what its digest holds, never what its tag means now."""
    reference, answer = known.reference, told.get((known.reference, options))
    if known.digest is not None:
        reference, answer = reference.at(known.index_digest or known.digest), None
    attempt = 1
    while True:
        try:
            manifest = answer or await resolve(reference, options, settings)
            break
        except LashdError as error:
            seconds = delay(settings.pull, attempt, error)
            if not error.retryable or attempt >= min(ATTEMPTS, settings.pull.attempts) or seconds > LONGEST_DELAY:
                raise
            report(ItemProgress(str(known.reference), "retrying", attempt=attempt, error=error.message))
            await asyncio.sleep(seconds)
            attempt += 1
    if known.digest is not None and known.digest not in (manifest.digest, manifest.index_digest):
        raise LashdError(
            ErrorName.DIGEST_MISMATCH,
            f"{known.reference} is recorded with {known.digest}, but {reference} holds {manifest.digest} for this "
            "machine, so it was not used.",
        )
    found = store.index().image_with_digest(reference.name, manifest.digest)
    # By index, podman finds it only if the store knows that index, too.
    wanted = known.reference.digest or manifest.digest
    present = found is not None and wanted in found.digests and store.complete(found)
    return _Meaning(known.reference, manifest.digest, manifest.index_digest, present, manifest)


def _planned(meanings: Iterable[tuple[_Meaning, list[BoundImage]]], store: Store) -> tuple[PlannedImage, ...]:
    """One planned image for everything in one repository that means the same content."""
    planned: dict[tuple[str, str | None, str | None], PlannedImage] = {}
    for meaning, bound in meanings:
        assert meaning.digest is not None
        key = (meaning.reference.name, meaning.digest, meaning.index_digest)
        same = planned.get(key)
        if same is not None:
            # The tag is the name that needs to be given; by digest it is found under any name.
            reference = meaning.reference if same.reference.pinned else same.reference
            planned[key] = replace(same, reference=reference, bound=(*same.bound, *bound))
            continue
        planned[key] = PlannedImage(
            reference=meaning.reference,
            digest=meaning.digest,
            bound=tuple(bound),
            present=meaning.present,
            manifest=meaning.manifest,
            missing=() if meaning.present or meaning.manifest is None else _missing(meaning.manifest, store),
            index_digest=meaning.index_digest,
        )
    return tuple(planned.values())


def _missing(manifest: Manifest, store: Store) -> tuple[Layer, ...]:
    index = store.index()
    missing: dict[str, Layer] = {}
    for layer in manifest.layers:
        stored = index.layer_with_blob(layer.digest)
        if stored is None or not store.layers_on_disk([stored]):
            missing.setdefault(layer.digest, layer)
    return tuple(missing.values())


# What it takes


def _measured(images: tuple[PlannedImage, ...], store: Store, settings: Settings) -> Plan:
    owners: dict[str, int] = {}
    held = [0] * len(images)
    unpacked = 0.0
    factor = _factor(store.index())
    for number, image in enumerate(images):
        for layer in image.missing:
            if owners.setdefault(layer.digest, number) == number:
                held[number] += layer.size
                unpacked += layer.size * (1.0 if layer.media_type.endswith(".tar") else factor)
    # An image's compressed layers stay beside the unpacked ones until all of it is in the store.
    at_once = most_at_once(settings.pull) + unpacking_at_once()
    in_flight = sum(sorted(held, reverse=True)[:at_once])
    needed, free = _space(store.root, round(unpacked), settings.paths.state, in_flight, settings.pull.reserve_bytes)
    return Plan(images, sum(held), needed, free, settings.pull.reserve_bytes)


def _factor(index: StoreIndex) -> float:
    pairs = [
        (layer.compressed_size, layer.uncompressed_size)
        for layer in index.layers.values()
        if layer.compressed_size > 0 and layer.uncompressed_size > 0
    ]
    compressed = sum(pair[0] for pair in pairs)
    if compressed < EXPERIENCE_BYTES:
        return UNPACKED_FACTOR
    return min(max(sum(pair[1] for pair in pairs) / compressed, FACTOR_LIMITS[0]), FACTOR_LIMITS[1])


def _space(store: Path, unpacked: int, downloads: Path, in_flight: int, reserve: int) -> tuple[int, int]:
    """(bytes needed, bytes free) of the filesystem where it is tighter, if store and downloads are on two."""
    store, downloads = _existing(store), _existing(downloads)
    if store.stat().st_dev == downloads.stat().st_dev:
        return unpacked + in_flight, _free(store)
    both = ((unpacked, _free(store)), (in_flight, _free(downloads)))
    return min(both, key=lambda pair: pair[1] - pair[0] - reserve)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
