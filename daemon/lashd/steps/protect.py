# SPDX-License-Identifier: Apache-2.0
"""Bound images that somebody else's clean-up cannot take for good: they come back without any registry.

bootc removes every image that no deployment names byte for byte as it is named in the store. That takes just those by
which a rollback is real: images that a floating name meant before, or will mean after the reboot. The layers, which are
nearly all of an image, are kept from that by an anchor (`Store.anchor`). The rest, a few kilobytes, is copied here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lashd.things.store import Store, StoredImage
from lashd.words import files
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import Record, RecordedImage
from lashd.words.reference import Reference, parse_reference

_VERSION = b"Directory Transport Version: 1.1\n"
_MANIFEST = "manifest.json"
_LIMIT = 64 * 1024 * 1024


# Given an image's id: whether it is not to be touched.
Leave = Callable[[str], bool]


def _none(_image_id: str) -> bool:
    return False


class _Incomplete(Exception):
    """The store does not have all that describes an image, or not as its digests say."""


@dataclass(frozen=True, slots=True)
class Protection:
    """`folder` has one directory for each digest that an image is asked for by, of its manifest or of an index, as
    skopeo's `dir:` has it, without layers; it need not exist."""

    store: Store
    folder: Path

    async def protect(self, records: Iterable[Record], *, leave: Leave = _none) -> Mapping[str, str]:
        """Keep what is in the store of the images of `records`; what is kept of any other image is given up.

        Answers image id → a sentence for each that cannot be kept: should it be removed, only a registry can bring it
        back. Images (ids) that `leave` says yes of when it is their turn are left alone this time. Raises StoreDamaged
        when the index cannot be read. With nothing to do: some lstat(2), no process.
        """
        import asyncio  # at boot nearly always nothing is lost, and nothing of this is needed

        problems = {}
        wanted = {_asked_for(image): image for record in records for image in record.images}
        for image in wanted.values():
            stored = self._stored(image)
            if stored is None or leave(image.image_id):
                continue
            try:
                await asyncio.to_thread(self._save, image, stored)
                # An image without layers is described by its copy alone.
                if stored.top_layer is not None and not await self.store.anchor(stored):
                    raise _Incomplete("the store does not know all of its layers by their content")
            except (LashdError, OSError, ValueError, _Incomplete) as error:
                problems[image.image_id] = f"{image.reference} cannot be kept from other programs' clean-up: {error}"
        names = {_hex(digest) for image in wanted.values() for digest in _digests(image)}
        await asyncio.to_thread(self._give_up, frozenset(names))
        return problems

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
            if not self._is_whole(image)
            and all(layer in index.layers for layer in image.layers)
            and self.store.layers_on_disk(index.layers[layer] for layer in image.layers)
            and (digest := self._kept(image))
            and not self._has(image, digest)
        )

    async def bring_back(self, record: Record | None, *, leave: Leave = _none) -> tuple[str, ...]:
        """Put what `record` has `lost` back into the store, without any network; a sentence for each that is back.

        What does not come back is left to the registry, and the log says so. `leave` is as in `protect`. Raises
        StoreDamaged as `lost` does.
        """
        lost = self.lost(record)
        if not lost:
            return ()
        import asyncio
        import logging

        log, back = logging.getLogger(__name__), []
        for image in lost:
            digest = self._kept(image)
            if leave(image.image_id) or not digest:
                continue
            reference = parse_reference(image.reference)
            folder = self.folder / _hex(digest)
            try:
                platform = await asyncio.to_thread(_platform, folder, image.digest) if digest != image.digest else ()
                await self.store.bring_back(folder, reference.at(digest), platform)
            except (LashdError, OSError, ValueError) as error:
                log.warning("%s was removed by another program and cannot be brought back: %s", reference, error)
                continue
            if self._has(image, digest):
                back.append(f"{reference.at(image.digest)} was removed by another program and is back.")
        if back:
            await self.store.sync()
        return tuple(back)

    # ---- inner ----

    def _stored(self, image: RecordedImage) -> StoredImage | None:
        return self.store.index().image_with_digest(_repository(image).name, image.digest)

    def _has(self, image: RecordedImage, digest: str) -> bool:
        """Whether `image` is in the store, and found there by `digest`."""
        stored = self._stored(image)
        return stored is not None and digest in stored.digests

    def _is_whole(self, image: RecordedImage) -> bool:
        return all(self._has(image, digest) for digest in _digests(image))

    def _kept(self, image: RecordedImage) -> str:
        """The digest by which a copy of `image` is here, that of its index if there is one; empty without a copy."""
        return next((each for each in _digests(image) if (self.folder / _hex(each) / _MANIFEST).exists()), "")

    def _save(self, image: RecordedImage, stored: StoredImage) -> None:
        """Raises OSError, ValueError, _Incomplete."""
        digest = next(each for each in _digests(image) if each in stored.digests)
        target = self.folder / _hex(digest)
        if (target / _MANIFEST).exists():
            return
        import shutil

        content = self._content(image, stored)
        partial = self.folder / f".{_hex(digest)}"
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


def _platform(folder: Path, digest: str) -> tuple[str, ...]:
    """How skopeo is told that of the index in `folder` the image with `digest` is meant. Raises OSError, ValueError.

    By the index's own word: the configuration of an image that was built on another machine may say something else.
    """
    try:
        entries = json.loads(files.read_small(folder / _MANIFEST, _LIMIT))["manifests"]
        parts = next(entry["platform"] for entry in entries if entry["digest"] == digest)
        given = {"arch": parts["architecture"], "os": parts["os"], "variant": parts.get("variant")}
    except (TypeError, KeyError, AttributeError, StopIteration, RecursionError) as error:
        raise ValueError(f"the index in {folder} does not say for which platform {digest} is") from error
    return tuple(f"--override-{name}={value}" for name, value in given.items() if value)


def _digests(image: RecordedImage) -> tuple[str, ...]:
    """What `image` may be asked for by: the digest of its index, if it came from one, before that of its manifest."""
    return tuple(digest for digest in (image.index_digest, image.digest) if digest)


def _asked_for(image: RecordedImage) -> tuple[str, ...]:
    return _repository(image).name, *_digests(image)


def _repository(image: RecordedImage) -> Reference:
    return parse_reference(image.reference)


def _hex(digest: str) -> str:
    return digest.partition(":")[2]
