# SPDX-License-Identifier: Apache-2.0
"""storage.conf: where podman keeps images and containers, and which further stores it looks in.

The first of the files that exists says it all. Parsing takes text; whoever reads the file decides what it means that
one cannot be read.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from lashd.things.toml import parse_toml

# Below the root of a system, the one that goes first first.
CONFIGURATIONS = ("etc/containers/storage.conf", "usr/share/containers/storage.conf")
GRAPH_ROOT = "/var/lib/containers/storage"
RUN_ROOT = "/run/containers/storage"

# The bound image store under all of its names.
BOUND_STORES = frozenset(
    [
        "/usr/lib/bootc/storage",
        "/ostree/bootc/storage",
        "/sysroot/ostree/bootc/storage",
        "/sysroot/composefs/bootc/storage",
    ]
)


@dataclass(frozen=True, slots=True)
class StorageConf:
    """What a storage.conf says: absolute paths, podman's defaults where it says nothing sensible.

    `image_store` is where images are kept when that is not the graph root, else empty; `additional` are the stores
    that are only looked into. Not `valid`: it is not a storage.conf at all, and podman would not start.
    """

    graph_root: str = GRAPH_ROOT
    run_root: str = RUN_ROOT
    image_store: str = ""
    additional: tuple[str, ...] = ()
    valid: bool = True

    @property
    def names_bound_store(self) -> bool:
        return any(is_bound_store(store) for store in self.additional)


def parse_storage(text: str) -> StorageConf:
    """What the text of a storage.conf says; never raises."""
    try:
        storage = parse_toml(text).get("storage", {})
    except ValueError:
        return StorageConf(valid=False)
    if not isinstance(storage, dict):
        return StorageConf(valid=False)
    options = storage.get("options", {})
    listed = options.get("additionalimagestores", []) if isinstance(options, dict) else []
    return StorageConf(
        graph_root=_absolute(storage.get("graphroot")) or GRAPH_ROOT,
        run_root=_absolute(storage.get("runroot")) or RUN_ROOT,
        image_store=_absolute(storage.get("imagestore")),
        additional=tuple(filter(None, map(_absolute, listed))) if isinstance(listed, list) else (),
    )


def is_bound_store(path: str) -> bool:
    return posixpath.normpath(path) in BOUND_STORES


def _absolute(path: object) -> str:
    return path if isinstance(path, str) and path.startswith("/") else ""
