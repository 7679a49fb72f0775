# SPDX-License-Identifier: Apache-2.0
"""What of a store goes and what is left: a pure function of its index, of what deployments keep, and of what is in use.

When in doubt it stays. So a name goes only if it is nobody's and its image keeps another one where it is looked for,
and what nobody ever recorded stays for an hour: somebody may be about to bind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lashd.steps.keep import Kept
from lashd.things.standing import Standing
from lashd.things.store import StoredImage, StoredLayer, StoreIndex
from lashd.words.errors import LashdError
from lashd.words.reference import Reference, parse_reference

GRACE_SECONDS = 3600.0

# The first part of a tag that lashd gave so that an image stays reachable by digest.
_KEPT_TAG = "lashd-"


@dataclass(frozen=True, slots=True)
class Doomed:
    """What goes: whole images, single names of images that stay, and layers. `bytes` are those of the layers, unpacked.

    `kept_because`: each image (by a name), layer without image, and name that is not wanted and stays → why.
    """

    images: tuple[StoredImage, ...] = ()
    names: tuple[tuple[StoredImage, Reference], ...] = ()
    layers: tuple[StoredLayer, ...] = ()
    bytes: int = 0
    kept_because: Mapping[str, str] = field(default_factory=dict)


def what_goes(
    index: StoreIndex, kept: Kept, standing: Standing, *, now: float, arrived: Mapping[str, float] | None = None
) -> Doomed:
    """`now` and when each image (id) `arrived` are seconds since the epoch; unknown is long ago."""
    if kept.doubt:
        return Doomed(kept_because={label(image): kept.doubt for image in index.images})
    sorter = _Sorter(index, kept, standing, now, arrived or {})
    sorter.keep_bound()
    sorter.keep_used()
    return sorter.doomed()


def label(image: StoredImage) -> str:
    """A name of `image`, or its id."""
    return image.names[0] if image.names else image.id


def size(layers: Iterable[StoredLayer]) -> int:
    """Bytes that `layers` take unpacked, as far as the store knows."""
    return sum(max(layer.uncompressed_size, 0) for layer in layers)


class _Sorter:
    def __init__(
        self, index: StoreIndex, kept: Kept, standing: Standing, now: float, arrived: Mapping[str, float]
    ) -> None:
        self._index = index
        self._kept = kept
        self._standing = standing
        self._now = now
        self._arrived = arrived
        # What was made up in order to be removed is never kept.
        self._images = [image for image in index.images if not index.made_up(image)]
        self._chains = {image.id: index.known_chain(image.top_layer) for image in index.images}
        self._why: dict[str, str] = {}  # image id → why it stays
        self._wanted: dict[str, set[str]] = {}  # image id → its names that somebody is bound to
        self._homes: dict[str, set[str]] = {}  # image id → repositories in which it is looked for by digest
        self._because: dict[str, str] = {}

    def keep_bound(self) -> None:
        """Images that a deployment is bound to, or may be."""
        for name, who in self._kept.names.items():
            found = self._index.image_named(name)
            if name.pinned:
                self._keep_digest(name.name, name.digest, who)
            elif found is not None:
                self._keep(found, f"{who} is bound to it as {name}.")
                self._wanted.setdefault(found.id, set()).add(str(name))
        for (repository, digest), who in self._kept.digests.items():
            self._keep_digest(repository, digest, who)
        for image in self._images:
            if image.id in self._kept.images:
                self._keep(image, f"{self._kept.images[image.id]} is bound to it.")

    def keep_used(self) -> None:
        """Images that stay for another reason, with all their names."""
        for image in self._images:
            unclear = sorted(image.repositories & set(self._kept.repositories))
            if unclear:
                who = self._kept.repositories[unclear[0]]
                self._keep(image, f"It is unknown which image of {unclear[0]} {who} is bound to.", whole=True)
            elif image.id not in self._why and image.id in self._standing.images:
                self._keep(image, f"It is used by {self._standing.images[image.id]}.", whole=True)
            elif image.id not in self._why and self._came_for_owed(self._arrived.get(image.id, 0.0)):
                self._keep(image, self._for_owed, whole=True)
            elif image.id not in self._why and self._is_new(image.id, self._arrived.get(image.id, 0.0)):
                self._keep(image, "It came less than an hour ago, and somebody may be about to bind it.", whole=True)
        # Layers in use whose image is not: skopeo removes no layer that an image stands on.
        covered = {layer for image in self._images if image.id in self._why for layer in self._chains[image.id]}
        for layer in sorted(self._standing.layers, key=lambda layer: -len(self._index.known_chain(layer))):
            above = [image for image in self._images if layer in self._chains[image.id]]
            if layer not in covered and above:
                chosen = min(above, key=lambda image: (len(self._chains[image.id]), image.id))
                self._keep(chosen, f"Its layers are used by {self._standing.layers[layer]}.", whole=True)
                covered.update(self._chains[chosen.id])

    def doomed(self) -> Doomed:
        names = [(image, name) for image in self._images for name in self._surplus(image)]
        stays = self._staying_layers()
        layers = tuple(layer for layer in self._index.layers.values() if layer.id not in stays)
        because = {label(image): self._why[image.id] for image in self._images if image.id in self._why}
        return Doomed(
            images=tuple(image for image in self._index.images if image.id not in self._why),
            names=tuple(names),
            layers=layers,
            bytes=size(layers),
            kept_because=because | self._because,
        )

    def _keep_digest(self, repository: str, digest: str, who: str) -> None:
        for image in self._images:
            if digest in image.digests and repository in image.repositories:
                self._keep(image, f"{who} is bound to it as {repository}@{digest}.")
                self._homes.setdefault(image.id, set()).add(repository)

    def _keep(self, image: StoredImage, why: str, *, whole: bool = False) -> None:
        self._why.setdefault(image.id, why[0].upper() + why[1:])
        if whole:
            self._wanted.setdefault(image.id, set()).update(image.names)

    def _is_new(self, identity: str, since: float) -> bool:
        # Also what seems to come from the future: the clock was wrong then, or is now.
        return identity not in self._kept.known and since > self._now - GRACE_SECONDS

    def _came_for_owed(self, arrived: float) -> bool:
        return self._kept.since is not None and arrived >= self._kept.since

    @property
    def _for_owed(self) -> str:
        return f"It may have been fetched for {self._kept.since_who} and it is unknown what that is bound to."

    def _surplus(self, image: StoredImage) -> list[Reference]:
        """The names of a staying image that can go."""
        wanted, homes = self._wanted.get(image.id, set()), self._homes.get(image.id, set())
        if image.id not in self._why or not (wanted or homes):
            return []
        unwanted = {name: _tag(name) for name in image.names if name not in wanted}
        found = {name: tag for name, tag in unwanted.items() if tag is not None}
        for name in unwanted.keys() - found.keys():
            if not any(name.startswith(f"{home}@") for home in homes | {_home(each) for each in wanted}):
                self._because[name] = "It is nobody's, but a name with a digest goes only with its image."
        left = [name for name in image.names if name not in found]
        for home in sorted(homes):
            if not any(_home(name) == home for name in left):
                # Without any name there it could not be found by digest either. lashd's own tag says what it is for.
                tags = sorted((tag for tag in found.values() if tag.name == home), key=_own_first)
                left.append(str(tags[0]))
                del found[str(tags[0])]
        return sorted(found.values())

    def _staying_layers(self) -> set[str]:
        in_images = {layer for chain in self._chains.values() for layer in chain}
        parts = self._unfinished()
        loose = {}
        for layer in self._index.layers.values():
            if layer.id not in in_images and (why := self._why_loose(layer, parts)):
                loose[layer.id] = why
        # skopeo removes a layer together with all that it stands on and nothing else does.
        stays = set()
        for layer in self._index.layers.values():
            below = self._index.known_chain(layer.id)
            held = next((each for each in below if each in loose), None)
            if layer.id not in in_images and held is not None:
                self._because[layer.id] = loose[held]
                stays.update(below)
        for image in self._images:
            if image.id in self._why:
                stays.update(self._chains[image.id])
        return stays

    def _why_loose(self, layer: StoredLayer, parts: str) -> str:
        """Why a layer that no image stands on stays; empty when it goes."""
        if layer.id in self._standing.layers:
            return f"It is used by {self._standing.layers[layer.id]}."
        if layer.id in self._kept.layers:
            return "It belongs to an image that a deployment is bound to."
        if layer.anchors:
            # Of no image, and so never a part of one that is on its way.
            keeps = layer.parent in self._kept.layers
            return "It keeps other programs from removing what a deployment is bound to." if keeps else ""
        arrived = self._now if layer.arrived is None else layer.arrived
        if self._came_for_owed(arrived):
            return self._for_owed
        if self._is_new(layer.id, arrived):
            return "It came less than an hour ago, and its image may still be on its way."
        return parts

    def _unfinished(self) -> str:
        for name in sorted(self._kept.unfinished):
            if self._index.image_named(name) is None:
                return f"It may be a part of {name}, which is not complete yet."
        return ""


def _tag(name: str) -> Reference | None:
    """`name` as a tag that skopeo can be told, or None."""
    with contextlib.suppress(LashdError):
        found = parse_reference(name)
        if not found.pinned and str(found) == name:
            return found
    return None


def _home(name: str) -> str:
    tag = _tag(name)
    return tag.name if tag is not None else name.partition("@")[0]


def _own_first(tag: Reference) -> tuple[bool, str]:
    return not tag.tag.startswith(_KEPT_TAG), tag.tag
