# SPDX-License-Identifier: Apache-2.0
"""The running host's own image store. podman asks it first, so what lies there hides the bound image store."""

from __future__ import annotations

from pathlib import Path

from lashd.things.storageconf import CONFIGURATIONS, GRAPH_ROOT, parse_storage
from lashd.things.store import Store
from lashd.words import files
from lashd.words.errors import LashdError
from lashd.words.reference import Reference

_LIMIT = 1024 * 1024  # bytes of a storage.conf


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
    for name in CONFIGURATIONS:
        try:
            return parse_storage(files.read_regular(root / name, _LIMIT)[0].decode()).graph_root
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            break
    return GRAPH_ROOT
