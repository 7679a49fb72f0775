# SPDX-License-Identifier: Apache-2.0
"""What the gate at shutdown can see by itself of a deployment's images, with or without the daemon's records.

Nothing is read but the deployment's own files, the store's index and lstat(2) of its layers; no process is started.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lashd.steps.adopt import own_digest
from lashd.steps.decide import UNKNOWN, Decision, decide
from lashd.steps.discover import discover
from lashd.steps.record import Records
from lashd.steps.verify import classify
from lashd.things.store import Store, StoredImage, StoredLayer
from lashd.words.errors import LashdError
from lashd.words.model import BoundImage, Deployment, Record, RecordedImage


@dataclass(frozen=True, slots=True)
class Evidence:
    """`decision` on what was found.

    Before it is used to release, the store's filesystem has to be synced if it is `unsynced`, because the decision
    stands on layers that no record vouches for, and then the record `new` has to be written, unless it is None.
    """

    decision: Decision
    unsynced: bool = False
    new: Record | None = None


def gather(
    deployment: Deployment, store: Store, records: Records, *, since: float, now: float, installed: bool = False
) -> Evidence:
    """Look at `deployment`. Never raises: what cannot be seen is a reason to hold.

    A layer that no record vouches for counts only when it came into the store between `since`, when the system booted,
    and `now` (both in seconds since the epoch): it cannot have been lost by a power cut, and once it is synced it will
    not be. With `installed` every finished layer counts: the deployment was there before, and so were its images.
    One that was found damaged counts in neither case.
    """
    try:
        found = discover(deployment.root, deployment.merges)
        index = store.index()
        record, vouched, distrusted = _recorded(deployment, store, records)
        arrived = {each.id for each in index.layers.values() if installed or came_between(each, since, now)}
        trusted = vouched | (arrived - distrusted)
        seen = {image.unit: classify(image, record, store, trusted) for image in found.images}
        decision = decide(found, record, {unit: state for unit, (state, _) in seen.items()})
        if not decision.release:
            return Evidence(decision)
        chains = {image.id: index.chain(image) or () for _, image in seen.values() if image is not None}
        unsynced = not all(layer.id in vouched for chain in chains.values() for layer in chain)
        if not unsynced and (record is not None or not chains):
            return Evidence(decision)
        images = ((image, stored) for image in found.images if (stored := seen[image.unit][1]) is not None)
        new = _record(deployment, record, images, chains, store, int(now))
        return Evidence(decision, unsynced, new)
    except Exception as error:
        # Whatever it is: nobody has seen then that all is there.
        why = error.message if isinstance(error, LashdError) else f"What it binds could not be looked at: {error!r}."
        return Evidence(Decision(False, ((UNKNOWN, why),)))


def came_between(layer: StoredLayer, since: float, now: float) -> bool:
    """Whether this copy of the layer was put into the store then, by the store's own word."""
    return layer.arrived is not None and since <= layer.arrived <= now


def _recorded(
    deployment: Deployment, store: Store, records: Records
) -> tuple[Record | None, frozenset[str], frozenset[str]]:
    """Its record, and the layers that records vouch for, and that were found damaged."""
    try:
        layers = store.index().layers
        return records.get(deployment.key), records.vouched(layers), records.distrusted(layers)
    except OSError:
        # The place where they are kept is gone or damaged, which is the same as no records.
        return None, frozenset(), frozenset()


def _record(
    deployment: Deployment,
    record: Record | None,
    found: Iterable[tuple[BoundImage, StoredImage]],
    chains: dict[str, tuple[StoredLayer, ...]],
    store: Store,
    now: int,
) -> Record:
    """The record that says what the index says: each image as it was recorded, or as its name means now."""
    images: dict[str, RecordedImage] = {}
    for bound, stored in found:
        reference = str(bound.reference)
        known = images.get(reference) or (record.image(reference) if record else None)
        if known is None:
            digest, index_digest = own_digest(stored, store)
            known = RecordedImage(reference, digest, stored.id, index_digest=index_digest)
        chain = chains[stored.id]
        images[reference] = replace(
            known,
            image_id=stored.id,
            layers=tuple(layer.id for layer in chain),
            stamps=tuple(layer.created for layer in chain),
            units=tuple(sorted({*known.units, bound.unit})),
        )
    return Record(deployment.key, deployment.digest, tuple(images.values()), now)
