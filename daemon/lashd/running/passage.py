# SPDX-License-Identifier: Apache-2.0
"""Hold and release of the staged deployment, as the walk does them: by the settings, and by an operator's orders."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lashd.steps.decide import decide
from lashd.steps.discover import discover
from lashd.steps.record import Records
from lashd.steps.shutdowns import Shutdowns
from lashd.steps.verify import classify
from lashd.things.host import HostBackend
from lashd.things.store import Store
from lashd.words import events
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Discovery, ImageState, Order, Record, Role

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Passage:
    backend: HostBackend
    store: Store
    records: Records
    settings: Settings

    async def hold(self, staged: Deployment) -> None:
        """Hold it as long as it is bound, or let go of it when neither the settings nor an order want it held."""
        order = self.order(staged)
        if (order is not None and order.hold) or (order is None and self.settings.gate.policy == "hold"):
            await self.backend.hold(staged)
        elif self.backend.holds(staged) and not (staged.declared or staged.foreign_lock):
            # Our own staging is held from its first instant on, whoever wants it so or not.
            await self.backend.release(staged)

    def needs_no_release(self, staged: Deployment) -> bool:
        """Whether a bind of the staged deployment would not end in declaring it ready."""
        order = self.order(staged)
        if staged.declared or staged.foreign_lock or (order is not None and order.hold):
            return True
        return self.settings.gate.policy != "hold" and not staged.locked

    async def release(self, deployment: Deployment, found: Discovery, record: Record) -> bool:
        """Declare it ready, if it is complete and nothing else was staged meanwhile; whether that was to be done.

        Raises Held, DigestMismatch, and what the backend raises.
        """
        order = self.order(deployment)
        if order is not None:
            return False
        self._require_release(deployment, found, record)
        now = next((one for one in self.backend.deployments() if Role.STAGED in one.roles), None)
        if now is None or now.key != deployment.key:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                "Another deployment was staged while this one was being bound; it was not released. Try again.",
                retryable=True,
            )
        if now.foreign_lock:
            log.info("%s is complete, and stays held by somebody else", deployment.key)
            return False
        if now.declared or (not now.locked and self.settings.gate.policy != "hold"):
            return False
        await self.backend.release(deployment)
        try:
            # To unlock takes a process, and a moment in which somebody may have removed an image.
            self._require_release(deployment, found, record)
        except LashdError:
            await self.backend.hold(deployment)
            raise
        log_released(deployment)
        return True

    def _require_release(self, deployment: Deployment, found: Discovery, record: Record) -> None:
        decision = decide(found, record, self.states(deployment, found))
        if not decision.release:
            raise LashdError(ErrorName.HELD, " ".join(sentence for _code, sentence in decision.reasons))

    def released(self, staged: Deployment) -> bool:
        """Whether a staged deployment that nobody holds was also bound completely."""
        try:
            found = discover(staged.root, staged.merges)
            return decide(found, self.records.get(staged.key), self.states(staged, found)).release
        except LashdError as error:
            # What cannot be told (a damaged store, say) is not so; the bind that follows mends what it can.
            log.warning("%s", error.message)
            return False

    def states(self, deployment: Deployment, found: Discovery) -> dict[str, ImageState]:
        """The state of each bound image in the store, by unit."""
        record, vouched = self.records.get(deployment.key), self.records.vouched(self.store.index().layers)
        return {image.unit: classify(image, record, self.store, vouched)[0] for image in found.images}

    def order(self, deployment: Deployment) -> Order | None:
        """What an operator said about the staged `deployment`, if anything."""
        order = Shutdowns(self.settings.paths.state, self.settings.paths.run).order()
        return order if order is not None and order.is_for(deployment) else None


def log_released(staged: Deployment) -> None:
    """Say that `staged` was declared ready."""
    told = events.fields(events.MessageId.RELEASED, deployment=staged.key, digest=staged.digest)
    log.info(
        "%s is ready: all of its bound images are verified, and the next reboot brings it up", staged.key, extra=told
    )
