# SPDX-License-Identifier: Apache-2.0
"""Adoption: the record of a host that was already running when lashd came.

What the names of the booted deployment mean now is what it runs with. Of a deployment that is not booted nobody knows
what its names meant when it ran, so it is not adopted; and no tag is ever asked of a registry here.
"""

from __future__ import annotations

import json
from dataclasses import replace

from lashd.steps.examine import examine, recorded_images
from lashd.things.store import Store, StoredImage
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, Deployment, Discovery, PlannedImage, Record, RecordedImage, Role
from lashd.words.progress import Report, ignore
from lashd.words.reference import Reference


async def adopt(
    deployment: Deployment,
    discovery: Discovery,
    store: Store,
    now: int,
    *,
    vouched: frozenset[str] = frozenset(),
    report: Report = ignore,
) -> Record:
    """The record of the booted `deployment`, made at `now` (seconds since the epoch).

    Every layer that no record vouches for is read. An image that is damaged is recorded by its digest and without
    layers: nothing vouches for it, and a bind fetches that very digest again. An image that is not in the store is left
    out. Raises StoreDamaged when the index cannot be read, InvalidArgument for a deployment that is not booted.
    """
    if Role.BOOTED not in deployment.roles:
        raise LashdError(
            ErrorName.INVALID_ARGUMENT,
            f"Deployment {deployment.key} is not booted, so it is unknown what its image names meant.",
        )
    index = store.index()
    bound: dict[Reference, list[BoundImage]] = {}
    for image in discovery.images:
        bound.setdefault(image.reference, []).append(image)
    wanted = []
    for reference, images in bound.items():
        stored = index.image_named(reference)
        if stored is None or not stored.digest:
            continue
        digest, index_digest = own_digest(stored, store)
        wanted.append(PlannedImage(reference, digest, tuple(images), present=True, index_digest=index_digest))
    findings = await examine(wanted, store, vouched, report=report)
    recorded: list[RecordedImage] = []
    for finding in findings:
        if finding.image is not None:
            entries = recorded_images(finding)
            recorded += [replace(entry, layers=(), stamps=()) for entry in entries] if finding.problem else entries
    if recorded:
        await store.sync()
    return Record(
        deployment=deployment.key,
        host_digest=deployment.digest,
        images=tuple(recorded),
        created=now,
        adopted=True,
    )


def own_digest(image: StoredImage, store: Store) -> tuple[str, str | None]:
    """The digest of the image's own manifest, and that of the index it was fetched by, if it was."""
    try:
        fetched = json.loads(store.big_data(image, f"manifest-{image.digest}") or b"{}")
        listed = [str(entry["digest"]) for entry in fetched.get("manifests", ())]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        listed = []
    own = next((digest for digest in listed if digest in image.digests), None)
    return (own, image.digest) if own else (image.digest, None)
