# SPDX-License-Identifier: Apache-2.0
"""What of the bound image store is in use: by containers, by other stores, by mounts.

A container keeps no image of the bound store from being removed, because it lives in another store. So every store
that storage.conf names is read (images built on a layer of the bound store count as well), and every mount of every
mount namespace in which a process is (`mounts`).

Not seen are stopped containers of a store that no storage.conf names (`podman --root`), and mount namespaces that
nothing but a file keeps alive. Users other than root cannot open the bound image store (its mode is 0700).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from lashd.things.mounts import mounted_layers
from lashd.things.storageconf import CONFIGURATIONS, StorageConf, parse_storage
from lashd.things.store import Store
from lashd.words import files
from lashd.words.errors import ErrorName, LashdError

# Of newer versions of podman: each adds to the others, in order of their names.
_DROP_INS = ("etc/containers/storage.conf.d", "usr/share/containers/storage.conf.d")

_LIMIT = 256 * 1024 * 1024  # bytes of one of these
_CONTAINERS = ("overlay-containers/containers.json", "overlay-containers/volatile-containers.json")
_IMAGES = ("overlay-images/images.json",)
_LAYERS = ("overlay-layers/layers.json", "overlay-layers/volatile-layers.json")


@dataclass(frozen=True, slots=True)
class Standing:
    """Ids of images and of layers that are in use → by whom, as in "the container web". Some are of other stores."""

    images: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)


class _Entry(BaseModel):
    """What is looked at in containers.json, images.json and layers.json."""

    id: str
    names: list[str] | None = None
    image: str | None = None
    layer: str | None = None
    parent: str | None = None
    mapped: list[str] | None = Field(None, alias="mapped-layers")


_ENTRIES = TypeAdapter(list[_Entry])


def read_standing(store: Store, root: Path, proc: Path = Path("/proc")) -> Standing:
    """What of `store` is in use on the running system below `root`. Blocks for some milliseconds.

    Raises StoreDamaged when anything that exists cannot be read or understood: then nobody knows.
    """
    # Mounts first: whoever makes a container writes it down before it is mounted, and forgets it after.
    standing = Standing(layers=mounted_layers(store.root / "overlay", proc))
    for group in _groups(store, root):
        _add_group(standing, group)
    for place in (store.root, store.run_root):
        for entry in _read_all([place], _CONTAINERS):
            _add(standing.images, entry.image, _called(entry))
            _add(standing.layers, entry.layer, _called(entry))
    return standing


def _groups(store: Store, root: Path) -> Iterator[list[Path]]:
    """The other stores, each as the directories that together are one."""
    # Also the default one when another is configured: what was made before that is still there.
    confs = [StorageConf(), *(_read_conf(path) for path in _conf_files(root))]
    groups = [(conf.graph_root, conf.run_root, conf.image_store) for conf in confs]
    groups += [(place, "", "") for conf in confs for place in conf.additional]
    for group in dict.fromkeys(groups):
        # The bound store is none of them, under whatever name: what it has itself must not count as theirs.
        yield [path for place in group if place and not _same(path := root / place.lstrip("/"), store.root)]


def _conf_files(root: Path) -> list[Path]:
    found = [root / name for name in CONFIGURATIONS]
    for directory in _DROP_INS:
        found += sorted((root / directory).glob("*.conf"))
    return found


def _read_conf(path: Path) -> StorageConf:
    content = _read(path)
    try:
        conf = parse_storage(content.decode())
    except UnicodeDecodeError as error:
        raise _unknown(path, "it is not text") from error
    if not conf.valid:
        raise _unknown(path, "it is not a storage.conf")
    return conf


def _add_group(standing: Standing, places: list[Path]) -> None:
    images, layers = _read_all(places, _IMAGES), _read_all(places, _LAYERS)
    # What a store has itself it uses itself: podman asks the additional ones last.
    own_images, own_layers = {entry.id for entry in images}, {entry.id for entry in layers}
    for entry in _read_all(places, _CONTAINERS):
        if entry.image not in own_images:
            _add(standing.images, entry.image, _called(entry))
    where = ", ".join(map(str, places))
    for entry in images:
        name = (entry.names or [entry.id])[0]
        for layer in (entry.layer, *(entry.mapped or ())):
            if layer not in own_layers:
                _add(standing.layers, layer, f"the image {name} of the store {where}")
    for entry in layers:
        if entry.parent not in own_layers:
            _add(standing.layers, entry.parent, f"the layer {entry.id} of the store {where}")


def _add(found: dict[str, str], identity: str | None, who: str) -> None:
    if identity:
        found.setdefault(identity, who)


def _called(container: _Entry) -> str:
    return f"the container {(container.names or [container.id])[0]}"


def _read_all(places: Iterable[Path], names: Iterable[str]) -> list[_Entry]:
    found = []
    for path in (place / name for place in places for name in names):
        content = _read(path)
        if content.strip():  # an empty one names nothing, as for podman
            try:
                found += _ENTRIES.validate_json(content)
            except ValidationError as error:
                raise _unknown(path, str(error.errors()[0]["msg"])) from error
    return found


def _read(path: Path) -> bytes:
    try:
        return files.read_regular(path, _LIMIT)[0]
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _unknown(path, str(error.strerror)) from error
    except ValueError as error:
        if path.is_char_device():
            return b""  # a link to /dev/null is how a drop-in of /usr is masked
        raise _unknown(path, str(error)) from error


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unknown(one, str(error.strerror)) from error


def _unknown(path: Path, why: str) -> LashdError:
    return LashdError(
        ErrorName.STORE_DAMAGED,
        f"{path} cannot be read ({why}), so it is unknown which images containers stand on, and nothing was removed. "
        f"Mend or remove that file.",
    )
