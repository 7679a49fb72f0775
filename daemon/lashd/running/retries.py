# SPDX-License-Identifier: Apache-2.0
"""When what has failed may be tried again: waits that grow, by name. No clock of its own, no task."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Retries:
    """`first` seconds after the first failure, doubling up to `limit`; a fifth of it is left to chance."""

    first: float
    limit: float
    _failures: dict[str, int] = field(default_factory=dict)
    _at: dict[str, float] = field(default_factory=dict)

    @property
    def at(self) -> Mapping[str, float]:
        """Name → when it may be tried again, by the clock that `failed` was told."""
        return self._at

    def failed(self, name: str, now: float, *, at_least: float = 0.0) -> None:
        count = self._failures[name] = self._failures.get(name, 0) + 1
        whole = min(self.first * 2.0 ** min(count - 1, 30), self.limit)
        # Hosts that lost the same registry at the same time must not all come back at the same time.
        self._at[name] = now + max(whole * random.uniform(0.8, 1.0), at_least)

    def forget(self, name: str) -> None:
        self._failures.pop(name, None)
        self._at.pop(name, None)

    def keep(self, names: Iterable[str]) -> None:
        """Forget all others."""
        kept = set(names)
        for name in [name for name in self._failures if name not in kept]:
            self.forget(name)
