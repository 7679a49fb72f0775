# SPDX-License-Identifier: Apache-2.0
"""Which image is fetched next, so that no layer crosses the line twice, and how many at once. No process, no file.

skopeo reuses a layer that is in the store's index and knows nothing of other skopeos: two that want the same layer at
the same time both fetch it. So every missing layer has one owner, the image that was started first with it; another
image that wants the layer waits until it is in the index, and not until all of its owner is there.
"""

from __future__ import annotations

import os
import random
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from lashd.words.config import PullSettings
from lashd.words.errors import LashdError

Key = TypeVar("Key", bound=Hashable)


def most_at_once(settings: PullSettings) -> int:
    """Images on the line at once. Each is a process of some 35 MB, and small images are mostly round trips."""
    return settings.parallel or min(max(8, 8 * (os.cpu_count() or 1)), 32)


def unpacking_at_once() -> int:
    """Images whose bytes are all there and that are being unpacked, which containers-storage does one by one."""
    return max(4, 2 * (os.cpu_count() or 1))


def delay(settings: PullSettings, attempt: int, error: LashdError) -> float:
    """Seconds to wait after the failed `attempt` (1 is the first): doubling, half of it by chance, more if told so."""
    whole = min(settings.backoff_seconds * 2.0 ** min(attempt - 1, 30), settings.backoff_limit_seconds)
    return max(whole * random.uniform(0.5, 1.0), error.retry_after or 0.0)


class Schedule(Generic[Key]):
    """Images that wait, and layers that are claimed by those that were started.

    Add every image, then take `next`, `start` it, and `leave` when it has ended; one to be tried again is added again.
    Nothing holds a claim while it waits, so there is no deadlock.
    """

    def __init__(self) -> None:
        self._waiting: dict[Key, dict[str, int]] = {}
        self._claims: dict[Key, frozenset[str]] = {}
        self._here: set[str] = set()

    def add(self, key: Key, layers: Mapping[str, int]) -> None:
        """`key` waits for its turn; `layers` are those it may have to fetch: digest → bytes."""
        assert key not in self._claims
        self._waiting[key] = dict(layers)

    def next(self) -> Key | None:
        """The waiting image that is best started now, or None when all of them wait for claimed layers (or none waits).

        First whatever others wait for, and of several owners the one with the least of its own beside it, for that
        would share the line with the shared layer; then the largest, so that the end of the pull is not one long tail.
        """
        claimed = self._claimed()
        wanted: dict[str, int] = {}
        for layers in self._waiting.values():
            for digest in layers:
                wanted[digest] = wanted.get(digest, 0) + 1
        best: tuple[int, int] | None = None
        chosen: Key | None = None
        for key, layers in self._waiting.items():
            missing = layers.keys() - self._here
            if missing & claimed:
                continue
            freed = sum((wanted[digest] - 1) * layers[digest] for digest in missing)
            size = sum(layers[digest] for digest in missing)
            rank = (freed, size if not freed else -size)
            if best is None or rank > best:
                best, chosen = rank, key
        return chosen

    def start(self, key: Key) -> frozenset[str]:
        """`key` is being fetched from now on; returns the layers that it will fetch, and nobody else."""
        layers = self._waiting.pop(key)
        claim = frozenset(layers.keys() - self._here)
        assert not claim & self._claimed()
        self._claims[key] = claim
        return claim

    def arrived(self, digests: Iterable[str]) -> None:
        """These layers are in the store now, complete: nobody has to fetch them any more."""
        self._here.update(digests)

    def leave(self, key: Key) -> None:
        """`key` is no longer being fetched; what it claimed and did not bring is free for others."""
        del self._claims[key]

    @property
    def waiting(self) -> int:
        """How many images wait, for their turn or for a layer."""
        return len(self._waiting)

    @property
    def blocking(self) -> frozenset[str]:
        """Claimed layers that a waiting image wants: as soon as one is in the store, look again."""
        claimed = self._claimed()
        return frozenset(digest for layers in self._waiting.values() for digest in layers if digest in claimed)

    def _claimed(self) -> set[str]:
        return {digest for claim in self._claims.values() for digest in claim if digest not in self._here}
