# SPDX-License-Identifier: Apache-2.0
"""Bound images that somebody else's clean-up cannot take for good: they come back without any registry.

bootc removes every image that no deployment names byte for byte as it is named in the store. That takes just those by
which a rollback is real: images that a floating name meant before, or will mean after the reboot. The layers, which are
nearly all of an image, are kept from that by an anchor (`Store.anchor`). The rest, a few kilobytes, is copied here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lashd.things.store import Store, StoredImage
from lashd.words import files
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import Record, RecordedImage
from lashd.words.reference import Reference, parse_reference

log = logging.getLogger(__name__)

_VERSION = b"Directory Transport Version: 1.1\n"
_MANIFEST = "manifest.json"
_LIMIT = 64 * 1024 * 1024


class _Incomplete(Exception):
    """The store does not have all that describes an image, or not as its digests say."""


@dataclass(frozen=True, slots=True)
class Protection:
    """`folder` has one directory for each image (id), as skopeo's `dir:` has it, without layers; it need not exist."""

    store: Store
    folder: Path

    async def protect(self, records: Iterable[Record]) -> tuple[str, ...]:
        """Keep what is in the store of the images of `records`; what is kept of any other image is given up.

        Answers a sentence for each that cannot be kept: should it be removed, only a registry can bring it back.
        Raises StoreDamaged when the index cannot be read. With nothing to do: some lstat(2), no process.
        """
        import asyncio  # at boot nearly always nothing is lost, and nothing of this is needed

        problems = []
        wanted = {image.image_id: image for record in records for image in record.images}
        for image in wanted.values():
            stored = self._stored(image)
            if stored is None:
                continue
            try:
                await asyncio.to_thread(self._save, image, stored)
                if not await self.store.anchor(stored):
                    raise _Incomplete("the store does not know all of its layers by their content")
            except (LashdError, OSError, ValueError, _Incomplete) as error:
                problems.append(f"{image.reference} cannot be kept from other programs' clean-up: {error}")
        await asyncio.to_thread(self._give_up, frozenset(wanted))
        return tuple(problems)

    def lost(self, record: Record | None) -> tuple[RecordedImage, ...]:
        """The images of `record` that are not in the store any more, and can be brought back from here.

        Raises StoreDamaged when the index cannot be read. As long as none is gone that costs nothing but the index.
        """
        if record is None:
            return ()
        index = self.store.index()
        return tuple(
            image
            for image in record.images
            if self._stored(image) is None
            and all(layer in index.layers for layer in image.layers)
            and self.store.layers_on_disk(index.layers[layer] for layer in image.layers)
            and (self.folder / image.image_id / _MANIFEST).exists()
        )

    async def bring_back(self, record: Record | None) -> tuple[str, ...]:
        """Put what `record` has `lost` back into the store, without any network; a sentence for each that is back.

        What does not come back is left to the registry, and the log says so. Raises StoreDamaged as `lost` does.
        """
        lost = self.lost(record)
        if not lost:
            return ()
        import asyncio

        back = []
        for image in lost:
            folder = self.folder / image.image_id
            reference = parse_reference(image.reference)
            try:
                platform = await asyncio.to_thread(_platform, folder)
                digest = (image.index_digest if platform else None) or image.digest
                await self.store.bring_back(folder, reference.at(digest), platform)
            except (LashdError, OSError, ValueError) as error:
                log.warning("%s was removed by another program and cannot be brought back: %s", reference, error)
                continue
            if self._stored(image) is not None:
                back.append(f"{reference.at(image.digest)} was removed by another program and is back.")
        if back:
            await self.store.sync()
        return tuple(back)

    # ---- inner ----

    def _stored(self, image: RecordedImage) -> StoredImage | None:
        return self.store.index().image_with_digest(_repository(image).name, image.digest)

    def _save(self, image: RecordedImage, stored: StoredImage) -> None:
        """Raises OSError, ValueError, _Incomplete."""
        target = self.folder / image.image_id
        if (target / _MANIFEST).exists():
            return
        import shutil

        content = self._content(image, stored)
        partial = self.folder / f".{image.image_id}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, mode=0o700)
        for name, data in content.items():
            files.write_durably(partial / name, data)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        files.sync_directory(self.folder)

    def _content(self, image: RecordedImage, stored: StoredImage) -> Mapping[str, bytes]:
        """File name → content of all that describes `image`. Raises _Incomplete, ValueError."""
        manifest = self._piece(stored, f"manifest-{image.digest}", image.digest)
        content = {"version": _VERSION}
        if image.index_digest and image.index_digest in stored.digests:
            content[_MANIFEST] = self._piece(stored, f"manifest-{image.index_digest}", image.index_digest)
            content[f"{_hex(image.digest)}.{_MANIFEST}"] = manifest
        else:
            content[_MANIFEST] = manifest
        try:
            config = str(json.loads(manifest)["config"]["digest"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _Incomplete("its manifest names no configuration") from None
        content[_hex(config)] = self._piece(stored, config, config)
        return content

    def _piece(self, stored: StoredImage, key: str, digest: str) -> bytes:
        from lashd.things import manifests

        piece = self.store.big_data(stored, key)
        if piece is None or manifests.digest_of(piece, digest) != digest:
            raise _Incomplete(f"the store does not have its {digest}")
        return piece

    def _give_up(self, wanted: frozenset[str]) -> None:
        import shutil

        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)


def protection_of(settings: Settings, store: Store) -> Protection:
    """Of the images in `store`, where these `settings` say that lashd keeps what must last."""
    return Protection(store, settings.paths.state / "images")


def _platform(folder: Path) -> tuple[str, ...]:
    """How skopeo is told which image of an index it is; nothing where there is no index. Raises OSError, ValueError."""
    members = [path for path in folder.iterdir() if path.name.endswith(f".{_MANIFEST}")]
    if not members:
        return ()
    try:
        config = json.loads(files.read_small(members[0], _LIMIT))["config"]["digest"]
        parts = json.loads(files.read_small(folder / _hex(str(config)), _LIMIT))
        given = {"arch": parts["architecture"], "os": parts["os"], "variant": parts.get("variant")}
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} does not describe an image") from error
    return tuple(f"--override-{name}={value}" for name, value in given.items() if value)


def _repository(image: RecordedImage) -> Reference:
    return parse_reference(image.reference)


def _hex(digest: str) -> str:
    return digest.partition(":")[2]
