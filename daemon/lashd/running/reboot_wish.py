# SPDX-License-Identifier: Apache-2.0
"""Which reboot is wanted and when: by the settings, and by a person whose request waits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from lashd.running.reboot_notes import Asked, Notes, Request
from lashd.steps.reboot import ATTEMPTS, Wanted
from lashd.steps.window import next_opening, open_at, parse
from lashd.words.config import RebootSettings
from lashd.words.errors import ErrorName, LashdError

log = logging.getLogger(__name__)


class Wish:
    """`now` is the wall clock. Writers raise NoSpace or Internal."""

    def __init__(self, settings: RebootSettings, notes: Notes, now: Callable[[], datetime]) -> None:
        self._policy = Wanted(settings.when)
        self._windows = tuple(parse(text) for text in settings.windows)
        self._notes = notes
        self._now = now

    def wanted(self, target: str) -> tuple[Wanted, bool]:
        """The sooner one of what the settings and a person want for `target`, and whether a person does."""
        request = self._notes.asked.request
        if request is None:
            return self._policy, False
        if self._policy is Wanted.READY and self._notes.kept.wasted(target, self._notes.boot) < ATTEMPTS:
            return self._policy, True
        return request.when, True

    def require(self, when: str) -> None:
        """Raise when a reboot can never be had so: InvalidArgument, OutsideWindow when no window ever opens."""
        if when not in (Wanted.NOW, Wanted.WINDOW, Wanted.READY):
            raise LashdError(ErrorName.INVALID_ARGUMENT, f"'{when}' is not when to reboot: now, ready or window.")
        if when == Wanted.WINDOW and self.next_window() is None:
            raise LashdError(
                ErrorName.OUTSIDE_WINDOW,
                "No reboot window is set that ever opens; set 'windows' in the section [reboot] of the settings.",
                retryable=False,
            )

    def ask(self, when: str, *, name: str, uid: int) -> None:
        """Remember a request until the host reboots, or it is withdrawn or forgotten."""
        request = Request(Wanted(when), name, uid, int(time.time()))
        self._notes.ask(replace(self._notes.asked, request=request))
        log.info("A reboot (%s) was asked for by %s (user %d)", when, name or "somebody", uid)

    def withdraw(self, *, name: str, uid: int) -> bool:
        """Whether there was a request, which is none any more."""
        if self._notes.asked.request is None:
            return False
        self._notes.ask(replace(self._notes.asked, request=None))
        log.info("The reboot that was asked for was withdrawn by %s (user %d)", name or "somebody", uid)
        return True

    def forget(self) -> None:
        """A request goes with what it was about: what is staged next week must not reboot the host by it."""
        asked = self._notes.asked
        if asked.request is not None:
            log.info("Nothing is left to boot into, so the reboot that was asked for is forgotten")
            self._notes.ask(Asked(asked.boot, None, asked.started))

    # -- windows ----------------------------------------------------------------------------------------------------

    def window_open(self) -> bool:
        return open_at(self._windows, self._now())

    def next_window(self) -> float | None:
        """When a window opens next, in seconds since the epoch; now when one is open, None when none ever does."""
        return next_opening(self._windows, self._now()) if self._windows else None

    def opens(self) -> str:
        """The same as a person reads it; empty for never."""
        opens = self.next_window()
        zone = self._now().tzinfo
        return "" if opens is None else datetime.fromtimestamp(opens, zone).strftime("on %a %d %b at %H:%M %Z")

    # -- to be shown ------------------------------------------------------------------------------------------------

    def row(self, target: str) -> dict[str, Any]:
        """When (`never`, `ready`, `window`), who asked (uid -1: nobody) and at what time, and the next window."""
        request = self._notes.asked.request
        return {
            "when": self.wanted(target)[0].value,
            "asked-by": request.name if request else "",
            "asked-uid": request.uid if request else -1,
            "asked-at": max(request.asked, 0) if request else 0,
            "next-window": int(self.next_window() or 0),
        }
