# SPDX-License-Identifier: Apache-2.0
"""The index of a containers-storage, parsed: which images and layers it says it has.

Parsing takes bytes, reading files is the store's business. Of the index only what lashd uses is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from msgspec import Struct, field

from lashd.words import shape
from lashd.words.errors import ErrorName, LashdError
from lashd.words.reference import Reference

_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """One layer of the store. Sizes in bytes, -1 or 0 where the store does not know; digests None where it does not.

    `created` is when this copy of the layer was put into the store: a layer that was removed and fetched again has
    the same id and another `created`.
    """

    id: str
    parent: str | None
    compressed_digest: str | None
    compressed_size: int
    uncompressed_digest: str | None
    uncompressed_size: int
    toc_digest: str | None
    incomplete: bool
    created: str = ""

    @property
    def anchors(self) -> bool:
        """Whether it is none of an image's, but one that keeps the layer below it (`StoreIndex.anchored`)."""
        return self.uncompressed_digest == ANCHOR and not self.incomplete

    @property
    def arrived(self) -> float | None:
        """`created` in seconds since the epoch; None when the store does not say it, or not in which time zone."""
        try:
            moment = datetime.fromisoformat(self.created)
            return moment.timestamp() if moment.tzinfo is not None else None
        except (ValueError, OverflowError):
            return None


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of the store. `digest` is the one it was fetched by: of its manifest, or of the index it came from;
    `digests` has both, and those of every manifest that was made of it later."""

    id: str
    digest: str
    names: tuple[str, ...]
    top_layer: str | None
    digests: frozenset[str]

    @property
    def repositories(self) -> frozenset[str]:
        """The names without tag and digest."""
        return frozenset(_repository(name) for name in self.names)


class DamagedIndex(LashdError):
    """StoreDamaged: the index file `path` says nothing sensible, for the reason `why`."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        super().__init__(
            ErrorName.STORE_DAMAGED,
            f"The index {path} of the bound image store is damaged: {why}. 'lashctl bind' sets it aside and fetches "
            f"the images again.",
        )


class StoreIndex:
    """What the store says it has. Immutable; `layers` by their id."""

    __slots__ = ("_by_blob", "_by_digest", "_by_name", "images", "layers")

    def __init__(self, images: Iterable[StoredImage] = (), layers: Iterable[StoredLayer] = ()) -> None:
        self.images = tuple(images)
        self.layers: Mapping[str, StoredLayer] = MappingProxyType({layer.id: layer for layer in layers})
        real = [image for image in self.images if image.id != NOTHING_ID]
        self._by_name = {name: image for image in real for name in image.names}
        self._by_digest: dict[tuple[str, str], StoredImage] = {}
        for image in real:
            for repository in image.repositories:
                for digest in image.digests:
                    self._by_digest.setdefault((repository, digest), image)
        self._by_blob: dict[str, StoredLayer] = {}
        for layer in self.layers.values():
            if not layer.incomplete:
                for blob in (layer.compressed_digest, layer.uncompressed_digest, layer.toc_digest):
                    if blob:
                        self._by_blob.setdefault(blob, layer)

    def image_named(self, reference: Reference) -> StoredImage | None:
        """The image that `reference` means to podman: by its name, or by digest under any name of its repository."""
        image = self._by_name.get(str(reference))
        if image is None and reference.digest:
            image = self.image_with_digest(reference.name, reference.digest)
        return image

    def image_with_digest(self, name: str, digest: str) -> StoredImage | None:
        """The image of the repository `name` (`quay.io/edge/agent`) that has a manifest with `digest`."""
        return self._by_digest.get((name, digest))

    def chain(self, image: StoredImage) -> tuple[StoredLayer, ...] | None:
        """The layers that `image` stands on, topmost first; None when one is unknown or incomplete."""
        return self.chain_from(image.top_layer)

    def chain_from(self, top: str | None) -> tuple[StoredLayer, ...] | None:
        """As `chain`, of the layer `top`; the empty chain of None is complete."""
        found: list[StoredLayer] = []
        wanted = top
        while wanted is not None:
            layer = self.layers.get(wanted)
            # More steps than layers: the parents go round in a circle.
            if layer is None or layer.incomplete or len(found) >= len(self.layers):
                return None
            found.append(layer)
            wanted = layer.parent
        return tuple(found)

    def layer_with_blob(self, digest: str) -> StoredLayer | None:
        """A finished layer by its compressed, uncompressed or TOC digest."""
        return self._by_blob.get(digest)

    def standing_on(self, layer_ids: frozenset[str]) -> tuple[StoredImage, ...]:
        """Every image that has one of these layers in its chain, as far as the chain is known."""
        return tuple(image for image in self.images if layer_ids & set(self.known_chain(image.top_layer)))

    def orphans_on(self, layer_ids: frozenset[str]) -> tuple[StoredLayer, ...]:
        """Layers without an image and without a layer above, that are or stand on one of these layers."""
        used = {layer for image in self.images for layer in self.known_chain(image.top_layer)}
        parents = {layer.parent for layer in self.layers.values()}
        return tuple(
            layer
            for layer in self.layers.values()
            if layer.id not in used and layer.id not in parents and layer_ids & set(self.known_chain(layer.id))
        )

    def anchored(self) -> frozenset[str]:
        """Ids of the layers on which an anchor stands: with all below them they stay when their images are removed."""
        return frozenset(layer.parent for layer in self.layers.values() if layer.anchors and layer.parent)

    def made_up(self, image: StoredImage) -> bool:
        """Whether `image` is one that the store's writer made up (`made_up_config`), and could not remove any more."""
        config = made_up_config(self.chain(image) or ())
        return image.id in (hashlib.sha256(config).hexdigest(), NOTHING_ID)

    def known_chain(self, top: str | None) -> list[str]:
        """The layer `top` and what it stands on, topmost first, as far as the index knows it."""
        found: list[str] = []
        while top is not None and len(found) <= len(self.layers):
            found.append(top)
            layer = self.layers.get(top)
            top = layer.parent if layer else None
        return found


def made_up_config(chain: Iterable[StoredLayer]) -> bytes:
    """The configuration of an image made of just these layers, topmost first, in order to be removed with them."""
    return config_of([layer.uncompressed_digest for layer in reversed(tuple(chain))])


def config_of(diff_ids: Sequence[str | None]) -> bytes:
    """The configuration of an image of layers with these uncompressed digests, the lowest first."""
    config = {"architecture": "unknown", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    return json.dumps(config).encode()


# An image of nothing: it takes a name away from another one, and is then removed with it. Should somebody be killed in
# between, the name means nothing.
NOTHING = made_up_config(())
NOTHING_ID = hashlib.sha256(NOTHING).hexdigest()

EMPTY = StoreIndex()

# The content (uncompressed digest) of a layer that `things/store_write.py` puts on top of what must stay.
ANCHOR = "sha256:2f852bfa20edeccd2d032aa3faa3ae18840e615b13387d277115db2bed0fa23f"


class _Image(Struct, frozen=True):
    id: str
    digest: str | None = None
    names: list[str] | None = None
    layer: str | None = None
    big_data_digests: dict[str, str] | None = field(name="big-data-digests", default=None)


class _Layer(Struct, frozen=True):
    id: str
    parent: str | None = None
    created: str = ""
    compressed_digest: str | None = field(name="compressed-diff-digest", default=None)
    compressed_size: int = field(name="compressed-size", default=0)
    uncompressed_digest: str | None = field(name="diff-digest", default=None)
    uncompressed_size: int = field(name="diff-size", default=0)
    toc_digest: str | None = field(name="toc-digest", default=None)
    flags: dict[str, Any] | None = None


_Entry = TypeVar("_Entry", _Image, _Layer)


def parse_index(images: tuple[Path, bytes], *layers: tuple[Path, bytes]) -> StoreIndex:
    """The index that these files hold; each is given as its path, for the error, and its content, empty for none.

    Raises StoreDamaged naming the file.
    """
    return StoreIndex(
        [_image(entry) for entry in _parse(_Image, *images)],
        [_layer(entry) for path, content in layers for entry in _parse(_Layer, path, content)],
    )


def _parse(kind: type[_Entry], path: Path, content: bytes) -> list[_Entry]:
    if not content.strip():
        # containers-storage too takes an empty index for one that names nothing.
        return []
    try:
        entries: list[_Entry] = shape.from_json(list[kind], content)  # type: ignore[valid-type]
    except ValueError as error:
        raise DamagedIndex(path, str(error)) from error
    for entry in entries:
        # Ids become file names.
        if not _ID.fullmatch(entry.id):
            raise DamagedIndex(path, f"{entry.id[:80]!r} is not an id")
    return entries


def _image(entry: _Image) -> StoredImage:
    digests = {value for key, value in (entry.big_data_digests or {}).items() if key.startswith("manifest")}
    if entry.digest:
        digests.add(entry.digest)
    return StoredImage(entry.id, entry.digest or "", tuple(entry.names or ()), entry.layer or None, frozenset(digests))


def _layer(entry: _Layer) -> StoredLayer:
    return StoredLayer(
        id=entry.id,
        parent=entry.parent or None,
        compressed_digest=entry.compressed_digest or None,
        compressed_size=entry.compressed_size,
        uncompressed_digest=entry.uncompressed_digest or None,
        uncompressed_size=entry.uncompressed_size,
        toc_digest=entry.toc_digest or None,
        incomplete=bool((entry.flags or {}).get("incomplete")),
        created=entry.created,
    )


def big_data_name(key: str) -> str:
    """The file name under which containers-storage keeps the big data `key` of an image."""
    if re.fullmatch(r"[.0-9a-z]*", key):
        return key
    return "=" + base64.b64encode(key.encode()).decode()


def _repository(name: str) -> str:
    name = name.partition("@")[0]
    head, colon, tail = name.rpartition(":")
    return head if colon and "/" not in tail else name
