# SPDX-License-Identifier: Apache-2.0
"""Is a bound image really in the store, and will it stay? And what to take out of the store when it is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from lashd.steps.examine import Finding, examine, look_up, recorded_images, require
from lashd.things.store import Store, StoredImage, StoreIndex
from lashd.words.errors import LashdError
from lashd.words.model import BoundImage, ImageState, PlannedImage, Record, RecordedImage
from lashd.words.progress import Report, ignore


def classify(
    image: BoundImage, record: Record | None, store: Store, vouched: frozenset[str], *, named: bool = False
) -> tuple[ImageState, StoredImage | None]:
    """The state of a bound image, and the image of the store that it is about; reads nothing but index and lstat(2).

    Wanted is the digest that `record` names; without one, the image's own digest if it is pinned, or whatever its name
    means now. With `named` its name must mean that very image, as it must for the booted deployment; another one gets
    its names when it boots (activation).
    Raises StoreDamaged when the index cannot be read.
    """
    index = store.index()
    meant = index.image_named(image.reference)
    recorded = record.image(str(image.reference)) if record else None
    found = index.image_with_digest(image.reference.name, recorded.digest) if recorded else meant
    if found is None:
        # Something has its name, but it is not what the deployment is bound to.
        return (ImageState.DRIFTED, meant) if meant else (ImageState.MISSING, None)
    chain = index.chain(found)
    if chain is None or not store.layers_on_disk(chain):
        return ImageState.INCOMPLETE, found
    if named and meant is not found:
        return ImageState.DRIFTED, found
    if not all(layer.id in vouched for layer in chain):
        return ImageState.UNVERIFIED, found
    return ImageState.PRESENT, found


async def verify(
    wanted: Sequence[PlannedImage],
    store: Store,
    vouched: frozenset[str],
    *,
    report: Report = ignore,
    fresh: frozenset[str] = frozenset(),
    deep: bool = False,
) -> tuple[RecordedImage, ...]:
    """Make sure of `wanted`, and that it stays: what this returns may be written into a record.

    `vouched` are the layers (ids) that need no reading because of a record, `fresh` those that this bind has just
    fetched: skopeo compared them with their digests, and the sync at the end puts them on disk. With `deep` every layer
    is read. Raises BoundImageMissing, or StoreDamaged when something is there and wrong, naming every such image.
    """
    if not wanted:
        # Where nothing was ever bound there need not even be a store.
        return ()
    index = store.index()
    findings = await examine(wanted, store, vouched, report=report, fresh=fresh, deep=deep)
    require(findings)
    await store.sync()
    if store.index() is not index:
        # Somebody else was at work meanwhile, and may have removed what was just read.
        now = tuple(look_up(planned, store, store.index()) for planned in wanted)
        require(now)
        unread = {layer for finding in now for layer in finding.layers}
        if unread - {layer for finding in findings for layer in finding.layers}:
            return await verify(wanted, store, vouched, report=report, fresh=fresh, deep=deep)
    return tuple(recorded for finding in findings for recorded in recorded_images(finding))


async def repair(
    wanted: Sequence[PlannedImage],
    store: Store,
    vouched: frozenset[str] = frozenset(),
    *,
    fresh: frozenset[str] = frozenset(),
    deep: bool = False,
    within_reach: Callable[[Sequence[PlannedImage]], Awaitable[None]] | None = None,
) -> tuple[str, ...]:
    """Take out of the store what is damaged of `wanted`, so that a pull fetches it instead of using it again.

    Looks as `verify` does, with the same arguments, and does nothing to what is merely missing. Returns a sentence for
    each thing done: none means that nothing was damaged. `within_reach` is told which images are to go before any does,
    and may raise.
    """
    done = await mend(store)
    findings = await examine(wanted, store, vouched, fresh=fresh, deep=deep)
    if within_reach is not None:
        await within_reach([finding.planned for finding in findings if finding.damaged])
    broken = frozenset[str]().union(*(finding.broken for finding in findings))
    return (*done, *await _take_out(store, broken, damaged(findings, store.index())))


async def mend(store: Store) -> tuple[str, ...]:
    """Before a plan: set aside an index that cannot be read, and take out every layer whose directory is gone.

    A pull cannot do that by itself: it uses a layer that the index names, and fails on one whose directory is gone.
    Returns a sentence for each thing done. Costs an lstat(2) or four for each layer when there is nothing to do.
    """
    done = [f"The damaged index of the store was set aside as {path}." for path in await store.set_aside_damaged()]
    gone = store.layers_off_disk(layer for layer in store.index().layers.values() if not layer.incomplete)
    done += await _take_out(store, frozenset(layer.id for layer in gone), ())
    return tuple(done)


def damaged(findings: Iterable[Finding], index: StoreIndex) -> tuple[StoredImage, ...]:
    """The images that must be removed before those of `findings` can be fetched again.

    Not only the wanted ones: a damaged layer stays for as long as any image stands on it.
    """
    bad = [finding for finding in findings if finding.damaged]
    ids = {finding.image.id for finding in bad if finding.image}
    ids |= {image.id for finding in bad for image in index.standing_on(finding.broken)}
    return tuple(image for image in index.images if image.id in ids)


async def _take_out(store: Store, broken: frozenset[str], images: Iterable[StoredImage]) -> list[str]:
    done = []
    index = store.index()
    doomed = {image.id: image for image in (*images, *index.standing_on(broken))}
    await store.set_aside_layers(await _in_use(store, doomed, broken))
    for image in doomed.values():
        await store.remove(image)
        done.append(f"The image {', '.join(image.names) or image.id} was removed, because it is damaged.")
    # What is left of them has no image any more.
    for layer_id in sorted(broken):
        layer = store.index().layers.get(layer_id)
        if layer is not None:
            await store.remove_layer(layer)
            done.append(f"The layer {layer_id} was removed, because it is damaged.")
    return done


async def _in_use(store: Store, doomed: Mapping[str, StoredImage], broken: frozenset[str]) -> frozenset[str]:
    """The layers that go with the images `doomed`, by id, or are `broken`, and that something has mounted.

    A container that runs on them would otherwise lose every file that it has not opened yet.
    """
    index = store.index()
    stays = {layer for each in index.images if each.id not in doomed for layer in index.known_chain(each.top_layer)}
    goes = broken.union(*(index.known_chain(image.top_layer) for image in doomed.values())) - stays
    if not goes:
        return frozenset()
    import asyncio  # at boot and at shutdown nothing is removed

    from lashd.things.mounts import mounted_layers

    try:
        return goes & set(await asyncio.to_thread(mounted_layers, store.root / "overlay"))
    except LashdError:
        # Which ones cannot be told: all of them, then.
        return goes
