# SPDX-License-Identifier: Apache-2.0
"""The one narrow callback through which steps tell how far they are. Steps know nothing of jobs or of the bus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """The steps of the walk, in their order."""

    STAGE = "stage"
    HOLD = "hold"
    DISCOVER = "discover"
    PLAN = "plan"
    PULL = "pull"
    VERIFY = "verify"
    RECORD = "record"
    RELEASE = "release"
    ROLL_BACK = "roll-back"
    DISCARD = "discard"
    COLLECT = "collect"
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class StageStarted:
    stage: Stage
    bytes_total: int = 0  # 0 where the stage moves no bytes
    items_total: int = 0


@dataclass(frozen=True, slots=True)
class ItemProgress:
    """One item (image or host layer) of the current stage. Reported often: whoever listens thins it out.

    `state` is `waiting`, `fetching`, `unpacking`, `retrying`, `done` or `failed`; `next_attempt` is seconds since the
    epoch, 0 when no retry waits. Bytes are compressed bytes, as they cross the line.
    """

    item: str
    state: str
    bytes_done: int = 0
    bytes_total: int = 0
    attempt: int = 1
    next_attempt: float = 0.0
    error: str = ""


Event = StageStarted | ItemProgress
Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener for whoever does not care."""
