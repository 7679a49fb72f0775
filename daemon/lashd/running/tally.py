# SPDX-License-Identifier: Apache-2.0
"""How far a job is: one number that only grows, weighted by bytes, out of what the steps report."""

from __future__ import annotations

from typing import Any

from lashd.words.progress import Event, ItemProgress, Stage

# The end of a job that moves no bytes: verifying, recording, releasing.
BYTES_SHARE = 0.97
# While the host image is fetched nobody knows yet how much the bound images are: that much of the bar is kept for them.
BEFORE_PLAN = 0.5


class Tally:
    """Counts events. Bytes add up over the stages of a job, items are those of its stage, `fraction` is from 0 to 1."""

    def __init__(self) -> None:
        self.stage = ""
        self.item = ""
        self.fraction = 0.0
        self.bytes_done = 0
        self.bytes_total = 0
        self.items_done = 0
        self.items_total = 0
        self.attempt = 1
        self.next_attempt = 0.0
        self._items: dict[str, ItemProgress] = {}
        self._stage_bytes = 0
        self._stage_total = 0
        self._before_bytes = 0
        self._stage_from = 0.0
        self._retries = 0

    @property
    def retries(self) -> int:
        """How many attempts failed and were made again."""
        return self._retries

    def visible(self) -> dict[str, Any]:
        """The attributes that are shown, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def count(self, event: Event) -> None:
        if isinstance(event, ItemProgress):
            self._count_item(event)
        else:
            self.stage, self.item, self.attempt, self.next_attempt = event.stage.value, "", 1, 0.0
            self._before_bytes += self._stage_bytes
            self._items, self._stage_bytes, self._stage_total = {}, 0, event.bytes_total
            self._stage_from = self.fraction
            self.bytes_total = self._before_bytes + event.bytes_total
            self.items_total, self.items_done = event.items_total, 0

    def complete(self) -> None:
        self.fraction = 1.0
        self.bytes_done = self.bytes_total

    def _count_item(self, event: ItemProgress) -> None:
        before = self._items.get(event.item)
        if event.state == "retrying" and (
            before is None or (before.state, before.attempt) != ("retrying", event.attempt)
        ):
            self._retries += 1
        self._items[event.item] = event
        self.item, self.attempt, self.next_attempt = event.item, event.attempt, event.next_attempt
        # An attempt that starts anew reports fewer bytes than the one before it: the sum must not shrink.
        self._stage_bytes = max(self._stage_bytes, sum(item.bytes_done for item in self._items.values()))
        self.bytes_total = max(self.bytes_total, self._before_bytes + self._stage_bytes)
        self.bytes_done = max(self.bytes_done, self._before_bytes + self._stage_bytes)
        self.items_done = sum(item.state == "done" for item in self._items.values())
        if self._stage_total:
            until = BEFORE_PLAN if self.stage == Stage.STAGE else BYTES_SHARE
            share = min(1.0, self._stage_bytes / self._stage_total)
            self.fraction = max(self.fraction, self._stage_from + share * max(0.0, until - self._stage_from))
