# SPDX-License-Identifier: Apache-2.0
"""What an operator says about the staged deployment: hold it back, or let it through as it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lashd.running.jobs import Initiator
from lashd.steps.shutdowns import Shutdowns
from lashd.things.composefs import unlocking
from lashd.things.host import HostBackend
from lashd.words import events
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId
from lashd.words.model import Deployment, Order, Owed

log = logging.getLogger(__name__)


def expected_staged(staged: Deployment | None, options: Mapping[str, Any], *, needed: bool = False) -> Deployment:
    """The staged deployment, if it is the one that `expected-digest` names; with `needed` that must be there.

    Raises NothingStaged, InvalidArgument, DigestMismatch.
    """
    expected = options.get("expected-digest")
    if needed and not expected:
        raise LashdError(
            ErrorName.INVALID_ARGUMENT,
            "Say with 'expected-digest' which staged deployment is to be let through: its digest, or its checksum when "
            "it was not made from an image.",
        )
    if staged is None:
        raise LashdError(ErrorName.NOTHING_STAGED)
    _require(expected, staged, "The staged deployment")
    return staged


def expected_owed(owed: Owed, options: Mapping[str, Any]) -> Owed:
    """What a reboot has lost, if it is what `expected-digest` names. Raises DigestMismatch."""
    _require(options.get("expected-digest"), owed, "Nothing is staged, and what is to be staged again")
    return owed


def _require(expected: str | None, found: Deployment | Owed, what: str) -> None:
    """That `found`, called `what`, is the `expected` one: by digest, or by checksum when it was made from no image."""
    known = found.digest or found.checksum
    if expected and expected != known:
        raise LashdError(
            ErrorName.DIGEST_MISMATCH, f"{what} is {known}, not {expected} as expected; nothing was changed."
        )


def came_back(staged: Deployment | None, owed: Owed) -> Deployment | None:
    """The staged deployment, if it is `owed` staged again; None when nothing is. Raises DigestMismatch for another."""
    if staged is not None and staged.checksum != owed.checksum:
        raise LashdError(
            ErrorName.DIGEST_MISMATCH,
            f"Meanwhile {staged.key} was staged, and took the place of what was to be given up; nothing was changed.",
        )
    return staged


@dataclass(frozen=True, slots=True)
class Orders:
    """Gives orders: first written down, then carried out; when that fails the order before it stands again."""

    backend: HostBackend
    shutdowns: Shutdowns

    async def hold(self, staged: Deployment, by: Initiator, reason: str) -> None:
        """Keep it back. What somebody else holds stays so, and the order is there for when that ends.

        To say it again without a reason leaves the reason that was given.
        """
        standing = self.shutdowns.order()
        if not reason and standing is not None and standing.hold and standing.is_for(staged):
            reason = standing.reason
        before = await self._give(Order(staged.key, staged.digest or "", True, by.uid, reason, int(time.time())))
        try:
            if not staged.foreign_lock:
                await self.backend.hold(staged)
        except LashdError:
            await asyncio.to_thread(self.shutdowns.give_order, before)
            raise
        told = events.fields(MessageId.HELD, deployment=staged.key, digest=staged.digest, uid=by.uid)
        why = reason or "no reason given"
        log.warning("User %d ordered that %s is held back: %s", by.uid, staged.key, why, extra=told)

    async def release(self, staged: Deployment, by: Initiator, reason: str, *, complete: bool) -> None:
        """Take back that it is held; only what is not `complete` is from then on let through as it is.

        Else no order is left: what makes it incomplete later is found by the gate as ever. Raises Held while somebody
        else holds it, and what the backend raises.
        """
        if staged.foreign_lock:
            raise LashdError(
                ErrorName.HELD,
                f"The staged deployment {staged.key} is locked by somebody else than lashd, so it was not released; "
                f"{unlocking(staged.checksum)} does that.",
            )
        force = Order(staged.key, staged.digest or "", False, by.uid, reason, int(time.time()))
        before = await self._give(None if complete else force)
        try:
            await self.backend.release(staged)
        except LashdError:
            await asyncio.to_thread(self.shutdowns.give_order, before)
            raise
        what = "is not held back any more" if complete else "is let through although images are missing"
        message = MessageId.RELEASED if complete else MessageId.FORCED
        told = events.fields(message, deployment=staged.key, digest=staged.digest, uid=by.uid)
        why = reason or "no reason given"
        log.warning("User %d ordered that %s %s: %s", by.uid, staged.key, what, why, extra=told)

    async def _give(self, order: Order | None) -> Order | None:
        before = self.shutdowns.order()
        await asyncio.to_thread(self.shutdowns.give_order, order)
        return before
