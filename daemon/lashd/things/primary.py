# SPDX-License-Identifier: Apache-2.0
"""The running host's own image store. podman asks it first, so what lies there hides the bound image store."""

from __future__ import annotations

import tomllib
from pathlib import Path

from lashd.things.store import Store
from lashd.words.errors import LashdError
from lashd.words.reference import Reference

_CONFIGURATIONS = ("etc/containers/storage.conf", "usr/share/containers/storage.conf")
_DEFAULT = "/var/lib/containers/storage"


class PrimaryStore:
    """root's store on the system below `root`. Only ever read; one that cannot be read has nothing."""

    def __init__(self, root: Path) -> None:
        place = root / graph_root(root).lstrip("/")
        self._store = Store(place, place, place)

    def signature(self) -> tuple[object, ...]:
        """Changes whenever the store's index does."""
        return self._store.signature()

    def shadows(self, reference: Reference, image_id: str) -> bool:
        """Whether `reference` means another image there than the one called `image_id` in the bound image store."""
        try:
            found = self._store.index().image_named(reference)
        except LashdError:
            return False
        return found is not None and found.id != image_id


def graph_root(root: Path) -> str:
    """Where storage.conf of the system below `root` puts images: an absolute path on that system."""
    for name in _CONFIGURATIONS:
        try:
            storage = tomllib.loads((root / name).read_text(encoding="utf-8")).get("storage")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
            return _DEFAULT
        place = storage.get("graphroot") if isinstance(storage, dict) else None
        return place if isinstance(place, str) and place.startswith("/") else _DEFAULT
    return _DEFAULT
