# SPDX-License-Identifier: Apache-2.0
"""The part of the walk that binds one deployment: hold, discover, plan, pull, verify, record, release."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lashd.running import restarts
from lashd.running.ahead import NO_HEADWAY, Ahead, Headway
from lashd.running.passage import Passage
from lashd.steps import pull as pulling
from lashd.steps.discover import discover
from lashd.steps.names import Digests, digests_of, give_names, held_names, name_in_store
from lashd.steps.plan import plan as make_plan
from lashd.steps.plan import require_resolved, require_space
from lashd.steps.protect import protection_of
from lashd.steps.record import Records
from lashd.steps.verify import mend, repair, verify
from lashd.things.host import HostBackend
from lashd.things.registry import resolve
from lashd.things.store import Store
from lashd.words import events
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId
from lashd.words.model import (
    BoundImage,
    Deployment,
    Discovery,
    Plan,
    PlannedImage,
    PullOptions,
    Record,
    RecordedImage,
    Role,
)
from lashd.words.progress import Report, Stage, StageStarted, ignore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a bind came to: the record it left, the plan it followed, and whether anything was fetched or repaired."""

    record: Record
    plan: Plan
    changed: bool


@dataclass(frozen=True, slots=True)
class Binder:
    backend: HostBackend
    store: Store
    records: Records
    settings: Settings
    passage: Passage

    async def bind(
        self, deployment: Deployment, report: Report, *, known_only: bool = False, ahead: Ahead | None = None
    ) -> Bound:
        """Make every bound image of `deployment` present and verified, record it, and release it when it is staged.

        With `known_only` images of which nobody knows the digest are left alone: no registry is asked what a name
        means. `ahead` is the head start that this job has had. Raises BoundImageInvalid when an entry cannot be used,
        after the good ones were bound.
        """
        staged = Role.STAGED in deployment.roles
        if staged:
            report(StageStarted(Stage.HOLD))
            await self.passage.hold(deployment)
        self.records.require()
        report(StageStarted(Stage.DISCOVER))
        await self.backend.make_readable()
        found = await asyncio.to_thread(discover, deployment.root, deployment.merges)
        record = self.records.get(deployment.key)
        back = await self._brought_back(record)
        if known_only:
            found = Discovery(tuple(image for image in found.images if is_known(image, record)), found.bad)
        before, doubts = restarts.meanings(found.images, self.store), self.records.doubts()
        held = await asyncio.to_thread(held_names, deployment, self.backend.deployments(), self.records)
        # A damaged store is mended at most once: what is still damaged after that is a disk that cannot be trusted.
        ask = self.is_new(deployment)
        headway = NO_HEADWAY if ahead is None else await ahead.join(found.images, report)
        plan, images, changed = await self._fetch(found, record, held, report, ask=ask, headway=headway)
        if images is None:
            _mended(await repair(plan.images, self.store, self._vouched(), within_reach=self._require_reachable))
            plan, images, _ = await self._fetch(found, record, held, report, ask=ask, last=True)
            changed = True
        assert images is not None
        changed |= back | await give_names(self.store, found.images, digests_of(plan), held)
        if Role.BOOTED in deployment.roles:
            for sentence in restarts.note(self.settings, before, restarts.meanings(found.images, self.store)):
                log.warning("%s", sentence)
        report(StageStarted(Stage.RECORD))
        new = Record(deployment.key, deployment.digest, images, int(time.time()))
        same = record is not None and (record.images, record.host_digest) == (new.images, new.host_digest)
        if not same or self.records.doubts() - doubts:
            while not await asyncio.to_thread(self.records.write_unless_doubted, new, doubts):
                # Somebody else has meanwhile read what was taken on trust here, and found it damaged.
                doubts = self.records.doubts()
                new = replace(new, images=await verify(plan.images, self.store, self._vouched(), report=report))
            changed = True
        refuse_bad(found, deployment)
        if staged:
            report(StageStarted(Stage.RELEASE))
            if not known_only:
                await _require_unchanged(deployment, found)
            # What was released before, and held only while it was looked at, is no news.
            changed |= await self.passage.release(deployment, found, new) and deployment.locked
        return Bound(new, headway.figures(plan), changed)

    async def _fetch(
        self,
        found: Discovery,
        record: Record | None,
        held: Digests,
        report: Report,
        *,
        ask: bool,
        headway: Headway = NO_HEADWAY,
        last: bool = False,
    ) -> tuple[Plan, tuple[RecordedImage, ...] | None, bool]:
        """Plan, pull and verify: (plan, what to record, whether the store changed).

        Without anything to record the store holds damaged content, unless this was the `last` try, which raises.
        """
        mended = await mend(self.store)
        _mended(mended)
        # What a deployment that is not new has run with is what its names mean here, and not in the registry by now.
        plan = await make_plan(
            found.images,
            store=self.store,
            record=record,
            settings=self.settings,
            refresh=ask,
            told=headway.told,
            # Once images were being fetched the job does not go back to planning them.
            report=ignore if headway.reported else report,
            complain=True,
        )
        require_space(plan)
        vouched, before = self._vouched(), headway.before
        if plan.absent:
            before = frozenset(self.store.index().layers) if before is None else before
            await pulling.pull(
                plan,
                store=self.store,
                settings=self.settings,
                names=lambda image: name_in_store(image, self.store.index(), held),
                report=report,
            )
        # Only now: what could be found out has been fetched, and the next run need not do that.
        require_resolved(plan)
        fresh = frozenset[str]() if before is None else frozenset(self.store.index().layers) - before
        try:
            images = await verify(plan.images, self.store, vouched, fresh=fresh, report=report)
        except LashdError as error:
            if last or error.name is not ErrorName.STORE_DAMAGED:
                raise
            log.warning("%s", error.message, extra=events.fields(MessageId.STORE_DAMAGED, error=error.name))
            return plan, None, True
        return plan, images, bool(mended or plan.absent or fresh)

    async def _brought_back(self, record: Record | None) -> bool:
        """Whether what another program has removed of `record` came back without a registry, all of it or some."""
        try:
            back = await protection_of(self.settings, self.store).bring_back(record)
        except LashdError as error:
            log.debug("%s", error.message)  # of what is wrong with the store the plan will speak
            return False
        for sentence in back:
            log.info("%s", sentence, extra=events.fields(MessageId.BROUGHT_BACK))
        return bool(back)

    def _vouched(self) -> frozenset[str]:
        """Layers that need no reading: a record vouches for just the copies that are in the store."""
        return self.records.vouched(self.store.index().layers)

    async def _require_reachable(self, damaged: Sequence[PlannedImage]) -> None:
        """Raise, with what the registry answers, unless the images can be fetched again.

        A damaged image is worth more than none, to a container that runs from it and to the next start of it.
        """
        for image in damaged:
            reference = image.reference.at(image.index_digest or image.digest)
            try:
                await resolve(reference, image.bound[0].pull if image.bound else PullOptions(), self.settings)
            except LashdError as error:
                raise LashdError(
                    error.name,
                    f"{image.reference} is damaged in the store and cannot be fetched again now, so it was left as it "
                    f"is: {error.message}",
                    retryable=error.retryable,
                    retry_after=error.retry_after,
                ) from error

    def is_new(self, deployment: Deployment) -> bool:
        """Whether nothing has ever run with what its names mean. On a sysroot that is not booted nothing ever did."""
        return Role.STAGED in deployment.roles or not any(
            Role.BOOTED in one.roles for one in self.backend.deployments()
        )


def _mended(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        log.warning("%s", sentence, extra=events.fields(MessageId.STORE_MENDED))


async def _require_unchanged(staged: Deployment, found: Discovery) -> None:
    """Raise when somebody changed what `staged` binds while it was being bound: the local /etc is part of it."""
    if staged.merges is None or await asyncio.to_thread(discover, staged.root, staged.merges) == found:
        return
    raise LashdError(
        ErrorName.DIGEST_MISMATCH,
        "Local changes in /etc have changed what the staged deployment binds while it was being bound; it was not "
        "released. Try again.",
        retryable=True,
    )


def is_known(image: BoundImage, record: Record | None) -> bool:
    """Whether it is known by digest what `image` is to mean, without asking a registry."""
    return image.reference.pinned or (record is not None and record.image(str(image.reference)) is not None)


def refuse_bad(found: Discovery, deployment: Deployment) -> None:
    """Raise BoundImageInvalid when an entry of `deployment` cannot be used: it is never released."""
    if found.bad:
        raise LashdError(
            ErrorName.BOUND_IMAGE_INVALID,
            f"Deployment {deployment.version or deployment.key} has "
            f"{len(found.bad)} bound {'entry' if len(found.bad) == 1 else 'entries'} that cannot be used, so it stays "
            "held; mend them in the host image. " + " ".join(f"{entry.unit}: {entry.problem}" for entry in found.bad),
        )
