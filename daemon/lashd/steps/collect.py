# SPDX-License-Identifier: Apache-2.0
"""Collect: remove from the bound image store what no deployment is bound to and no container stands on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lashd.steps.keep import Kept, Present, what_stays
from lashd.steps.leave import Doomed, label, size, what_goes
from lashd.steps.record import Records
from lashd.things.standing import read_standing
from lashd.things.store import Store, StoredImage
from lashd.words.errors import ErrorName, LashdError
from lashd.words.progress import ItemProgress, Report, Stage, StageStarted, ignore


@dataclass(frozen=True, slots=True)
class Collected:
    """What went, or in a dry run would go: images by a name, single names of images that stay, ids of layers.

    `bytes` is what the layers take unpacked. `kept_because`: image, layer or name that stays → a sentence.
    """

    images: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    bytes: int = 0
    kept_because: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return bool(self.images or self.names or self.layers)


async def collect(
    store: Store,
    records: Records,
    present: Callable[[], Present],
    root: Path,
    *,
    dry_run: bool = False,
    report: Report = ignore,
    clock: Callable[[], float] = time.time,
) -> Collected:
    """Remove what nobody needs; afterwards the store is synced.

    `present` is asked anew before each removal, and so are the containers of the running system below `root`; whatever
    cannot be told stays. The store can be read at every moment, and after a kill the next run carries on. Records of
    deployments that are gone are removed once their images are.
    Raises StoreDamaged before anything is removed when it is unknown what is in use, or when the index cannot be read.
    """
    run = _Run(store, present, root, clock)
    doomed = await run.look()
    if dry_run:
        return _told(doomed)
    report(StageStarted(Stage.COLLECT, items_total=len(doomed.images)))
    before = store.index()
    try:
        await run.remove_images(report)
        await run.drop_names()
        await run.remove_layers()
        doomed = await run.look()
    finally:
        if store.root.is_dir():
            await store.sync()
    await _forget(records, store, await asyncio.to_thread(what_stays, present()))
    after = store.index()
    gone = [layer for layer in before.layers.values() if layer.id not in after.layers and layer.id in run.layers]
    return Collected(
        images=tuple(label(image) for image in run.removed),
        names=tuple(run.dropped),
        layers=tuple(layer.id for layer in gone),
        bytes=size(gone),
        kept_because={**doomed.kept_because, **run.failed},
    )


class _Run:
    def __init__(
        self,
        store: Store,
        present: Callable[[], Present],
        root: Path,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._present = present
        self._root = root
        self._clock = clock
        self.removed: list[StoredImage] = []
        self.dropped: list[str] = []
        self.layers: set[str] = set()  # all that were to go at some moment
        self.failed: dict[str, str] = {}

    async def look(self) -> Doomed:
        """What is to go, by what is true now. What was just added is in none of what is read first."""
        index = self._store.index()
        arrived = {image.id: self._store.arrived(image) for image in index.images}

        present = self._present()

        def read() -> Doomed:
            standing = read_standing(self._store, self._root)
            return what_goes(index, what_stays(present), standing, now=self._clock(), arrived=arrived)

        doomed = await asyncio.to_thread(read)
        self.layers |= {layer.id for layer in doomed.layers}
        return doomed

    async def remove_images(self, report: Report) -> None:
        tried: set[str] = set()
        while image := next((each for each in (await self.look()).images if each.id not in tried), None):
            tried.add(image.id)
            await self._store.remove(image)
            self.removed.append(image)
            report(ItemProgress(label(image), "done"))

    async def drop_names(self) -> None:
        tried: set[str] = set()
        while pair := next((each for each in (await self.look()).names if str(each[1]) not in tried), None):
            image, name = pair
            tried.add(str(name))
            if await self._store.drop_name(image, name):
                self.dropped.append(str(name))

    async def remove_layers(self) -> None:
        tried: set[str] = set()
        while left := [each for each in (await self.look()).layers if each.id not in tried]:
            # What was never finished first: it hinders the removal of what it stands on.
            layer = next((each for each in left if each.incomplete), left[0])
            tried.add(layer.id)
            try:
                await (self._store.tidy() if layer.incomplete else self._store.remove_layer(layer))
            except LashdError as error:
                if error.name is not ErrorName.STORE_DAMAGED:
                    raise
                self.failed[layer.id] = error.message


async def _forget(records: Records, store: Store, kept: Kept) -> None:
    """Remove the records of deployments that are gone, but for those that say what a container still stands on."""
    if kept.doubt:
        return
    left = {image.id for image in store.index().images} - set(kept.images)
    for key, record in records.load_all().items():
        if key not in kept.deployments and not any(image.image_id in left for image in record.images):
            await asyncio.to_thread(records.remove, key)
    for key in records.damaged() - kept.deployments:
        await asyncio.to_thread(records.remove, key)


def _told(doomed: Doomed) -> Collected:
    return Collected(
        images=tuple(label(image) for image in doomed.images),
        names=tuple(str(name) for _, name in doomed.names),
        layers=tuple(layer.id for layer in doomed.layers),
        bytes=size(doomed.layers),
        kept_because=doomed.kept_because,
    )
