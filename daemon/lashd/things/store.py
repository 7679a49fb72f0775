# SPDX-License-Identifier: Apache-2.0
"""The bound image store, read: two JSON files and some lstat(2). No process is ever started for reading.

containers-storage replaces both files atomically, so a reader needs no lock: it sees the store before a change or after
it. What writes the store is in `store_write`, which is loaded when it is needed: at boot and at shutdown the store is
only read, and there is no time for more. `Store` here is what most of the program needs to know.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lashd.things.store_index import (
    EMPTY,
    DamagedIndex,
    StoredImage,
    StoredLayer,
    StoreIndex,
    big_data_name,
    parse_index,
)
from lashd.words import files
from lashd.words.errors import ErrorName, LashdError
from lashd.words.reference import Reference

__all__ = ["Store", "StoreIndex", "StoredImage", "StoredLayer"]

_IMAGES = "overlay-images/images.json"
_LAYERS = "overlay-layers/layers.json"
_VOLATILE_LAYERS = "overlay-layers/volatile-layers.json"

# Bytes; a hundred times what stores of hundreds of images have. What is read is in memory for a moment.
_INDEX_LIMIT = 256 * 1024 * 1024
_BIG_DATA_LIMIT = 64 * 1024 * 1024
_LINK_LIMIT = 64 * 1024

# What makes two looks at one file the same look: inode, modification time (ns), size. None: the file is not there.
_Mark = tuple[int, int, int] | None


class Store:
    """The store at `root`, used with the run root `run_root`; `sysroot` is what must be made writable to change it."""

    def __init__(self, root: Path, run_root: Path, sysroot: Path, *, skopeo: str = "skopeo") -> None:
        self.root = root
        self.run_root = run_root
        self.sysroot = sysroot
        self.skopeo = skopeo
        self._index = EMPTY
        # Looked at for every image: joined once, as text, which is much quicker.
        self._overlay = os.fspath(root / "overlay")
        self._files = tuple(os.fspath(root / name) for name in (_IMAGES, _LAYERS, _VOLATILE_LAYERS))
        self._marks: tuple[_Mark, ...] | None = None

    # ---- reading ----

    def index(self) -> StoreIndex:
        """What the store says it has; read again only when one of its files has changed. A missing store is empty.

        Raises StoreDamaged naming the file that cannot be read.
        """
        if self._marks is None or self._marks != self._look():
            # Images before layers: whoever adds an image writes its layers first, so that an image found here has
            # its layers in what is read next.
            images, images_mark = self._read(_IMAGES)
            layers, layers_mark = self._read(_LAYERS)
            volatile, volatile_mark = self._read(_VOLATILE_LAYERS)
            self._index = parse_index(
                (self.root / _IMAGES, images), (self.root / _LAYERS, layers), (self.root / _VOLATILE_LAYERS, volatile)
            )
            self._marks = (images_mark, layers_mark, volatile_mark)
        return self._index

    def signature(self) -> tuple[object, ...]:
        """Changes whenever the index or the set of layer directories does; costs four stat(2) calls."""
        return (*self._look(), _mark_of(self._overlay))

    def layers_on_disk(self, layers: Iterable[StoredLayer]) -> bool:
        """Whether the directory of each layer is there, and what overlay mounts it by. Says nothing of its content."""
        return not self.layers_off_disk(layers)

    def layers_off_disk(self, layers: Iterable[StoredLayer]) -> tuple[StoredLayer, ...]:
        """Those of `layers` whose directory, or what overlay mounts it by, is not there."""
        try:
            overlay = os.open(self._overlay, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return tuple(layers)
        try:
            # The index as it was last read, which is where the caller has the layers from.
            seen = _Overlay(overlay, self._index.layers)
            return tuple(layer for layer in layers if not seen.has(layer))
        finally:
            os.close(overlay)

    def complete(self, image: StoredImage) -> bool:
        """Whether every layer of `image` is known, finished and on disk. Raises StoreDamaged as `index` does."""
        chain = self.index().chain(image)
        return chain is not None and self.layers_on_disk(chain)

    def big_data(self, image: StoredImage, key: str) -> bytes | None:
        """What the store keeps beside `image` under `key`, such as `manifest-sha256:…`; None when it is not there."""
        path = self.root / "overlay-images" / image.id / big_data_name(key)
        with contextlib.suppress(OSError, ValueError):
            return files.read_regular(path, _BIG_DATA_LIMIT)[0]
        return None

    def arrived(self, image: StoredImage) -> float:
        """When `image` came to the store or was last changed, in seconds since the epoch; 0 when that is unknown."""
        with contextlib.suppress(OSError):
            return (self.root / "overlay-images" / image.id).stat().st_mtime
        return 0.0

    def spec(self, name: str) -> str:
        """How skopeo is told the image `name` of this store: `containers-storage:[overlay@ROOT+RUNROOT]NAME`.

        Written this way skopeo ignores storage.conf, and no options are added: what a host sets there (forced
        modes, mount programs, partial pulls) is for its own containers, and layers that everyone can read again and
        compare are worth more here.
        """
        # The way to the store may hold a link (/ostree/bootc on composefs hosts); locks and mounts go by its target.
        return f"containers-storage:[overlay@{self.root.resolve()}+{self.run_root}]{name}"

    # ---- writing: each call is one change, made inside a private mount namespace ----

    async def ensure(self) -> None:
        """Create and initialise the store when it is missing or half made. Raises UnsupportedHost, StoreDamaged."""
        from lashd.things import store_write

        await store_write.ensure(self)

    async def remove(self, image: StoredImage) -> None:
        """Remove `image` with all its names, and the layers that nothing else stands on."""
        from lashd.things import store_write

        await store_write.remove(self, image)

    async def remove_layer(self, layer: StoredLayer) -> None:
        """Remove a layer that no image stands on, with whatever stands on it; such are left by a pull that was killed.

        skopeo would use it again for the next image, whatever has become of its files.
        """
        from lashd.things import store_write

        await store_write.remove_layer(self, layer)

    async def tidy(self) -> None:
        """Make whoever wrote the store clean up: incomplete layers go that nobody is writing at this moment."""
        from lashd.things import store_write

        await store_write.tidy(self)

    async def give_name(self, image_ref: Reference, name: Reference) -> None:
        """Make `name` mean the image that `image_ref` names; another image that has the name loses it. Offline."""
        from lashd.things import store_write

        await store_write.give_name(self, image_ref, name)

    async def drop_name(self, image: StoredImage, name: Reference) -> bool:
        """Take the tag `name` away from `image`, unless it is its last name or somebody else's by now. Offline."""
        from lashd.things import store_write

        return await store_write.drop_name(self, image, name)

    async def set_aside_damaged(self) -> tuple[Path, ...]:
        """Rename index files that cannot be read, so that the store can be filled again. Returns their new names."""
        from lashd.things import store_write

        return await store_write.set_aside_damaged(self)

    async def set_aside_layers(self, layers: Iterable[str]) -> None:
        """Before they are removed: move the directories of `layers` (ids) away, for those who have them mounted.

        What is mounted stays whole then. `drop_set_aside` removes them after the next boot.
        """
        from lashd.things import store_write

        await store_write.set_aside_layers(self, layers)

    async def drop_set_aside(self) -> None:
        """Remove what `set_aside_layers` left in an earlier boot. Without any: no process."""
        from lashd.things import store_write

        await store_write.drop_set_aside(self)

    async def anchor(self, image: StoredImage) -> bool:
        """Let the layers of `image` stay when somebody else removes it; answers whether they do now.

        Not of an image without layers, or of one whose layers the index does not know by their content. The anchor goes
        with `remove_layer`, and then what it stands on, unless an image does.
        """
        from lashd.things import store_write

        return await store_write.anchor(self, image)

    async def bring_back(self, folder: Path, name: Reference, platform: Sequence[str] = ()) -> None:
        """Let `name` mean again the image that `folder` (skopeo's `dir:`) describes and whose layers are here. Offline.

        `platform` are skopeo's options that choose it from an index.
        """
        from lashd.things import store_write

        await store_write.bring_back(self, folder, name, platform)

    async def sync(self) -> None:
        """Write back the store's filesystem: what is in the store now survives a power cut."""
        import asyncio

        try:
            await asyncio.to_thread(files.sync_filesystem, self.root)
        except OSError as error:
            raise LashdError(
                ErrorName.STORE_DAMAGED,
                f"The filesystem of the bound image store {self.root} could not be written back: {error.strerror}.",
            ) from error

    # ---- inner ----

    def _look(self) -> tuple[_Mark, ...]:
        return tuple(_mark_of(path) for path in self._files)

    def _read(self, name: str) -> tuple[bytes, _Mark]:
        path = self.root / name
        try:
            # The mark is of the opened file: it may be replaced while it is read.
            content, status = files.read_regular(path, _INDEX_LIMIT)
            return content, _mark(status)
        except (FileNotFoundError, NotADirectoryError):
            return b"", None
        except OSError as error:
            raise LashdError(
                ErrorName.STORE_DAMAGED,
                f"The index {path} of the bound image store cannot be read: {error.strerror}.",
            ) from error
        except ValueError as error:
            raise DamagedIndex(path, str(error)) from error


def _mark_of(path: str) -> _Mark:
    try:
        return _mark(os.stat(path))  # noqa: PTH116
    except OSError:
        return None


def _mark(status: os.stat_result) -> _Mark:
    return status.st_ino, status.st_mtime_ns, status.st_size


class _Overlay:
    """The directory `overlay`, open as `descriptor`, looked at once for `layers`."""

    def __init__(self, descriptor: int, layers: Mapping[str, StoredLayer]) -> None:
        self._descriptor = descriptor
        self._layers = layers
        # Layer id → the short link that overlay mounts it by, and the short links of what it mounts below it.
        self._ways: dict[str, tuple[str, str]] = {}

    def has(self, layer: StoredLayer) -> bool:
        try:
            os.stat(f"{layer.id}/diff", dir_fd=self._descriptor, follow_symlinks=False)
            short, below = self._way(layer)
            if os.readlink(f"l/{short}", dir_fd=self._descriptor) != f"../{layer.id}/diff":
                return False
            if layer.parent is None:
                return True
            # Stale where the parent was lost and fetched again: it has another link then, and would not be mounted.
            parent, further = self._way(self._layers[layer.parent])
            return below == (f"l/{parent}:{further}" if further else f"l/{parent}")
        except (OSError, ValueError, KeyError):
            return False

    def _way(self, layer: StoredLayer) -> tuple[str, str]:
        # Both files are written without sync: after a power cut they may be there and empty.
        way = self._ways.get(layer.id)
        if way is None:
            below = self._read(f"{layer.id}/lower") if layer.parent is not None else ""
            way = self._ways[layer.id] = self._read(f"{layer.id}/link"), below
        return way

    def _read(self, name: str) -> str:
        content, _ = files.read_regular(name, _LINK_LIMIT, flags=os.O_NOFOLLOW, directory=self._descriptor)
        return content.decode("ascii")
