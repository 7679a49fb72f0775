# SPDX-License-Identifier: Apache-2.0
"""The one walk: stage, hold, discover, plan, pull, verify, record, release.

Every operation is this walk entered at some step. It knows nothing of jobs or of the bus; progress goes out through
the one callback, and cancelling is asyncio cancellation.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lashd.steps import pull as pulling
from lashd.steps.decide import decide
from lashd.steps.discover import discover
from lashd.steps.names import Digests, digests_of, give_names, held_names, name_in_store
from lashd.steps.plan import ATTEMPTS, LONGEST_DELAY, require_resolved, require_space
from lashd.steps.plan import plan as make_plan
from lashd.steps.record import Records
from lashd.steps.schedule import delay
from lashd.steps.shutdowns import Shutdowns
from lashd.steps.verify import classify, mend, repair, verify
from lashd.things.host import HostBackend
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import (
    BoundImage,
    Deployment,
    Discovery,
    HostImage,
    ImageState,
    Order,
    Plan,
    Record,
    RecordedImage,
    Role,
)
from lashd.words.progress import Report, Stage, StageStarted

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a bind came to: the record it left, the plan it followed, and whether anything was fetched or repaired."""

    record: Record
    plan: Plan
    changed: bool


@dataclass(frozen=True, slots=True)
class Walk:
    backend: HostBackend
    store: Store
    records: Records
    settings: Settings

    async def upgrade(self, expected_digest: str | None, report: Report) -> Mapping[str, Any] | None:
        """The whole walk for the host image that the host follows. None: nothing to do."""
        followed = self._followed()
        assert followed.image is not None
        report(StageStarted(Stage.STAGE))
        newest = await self._newest(followed.image)
        if expected_digest and newest != expected_digest:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                f"The newest image of {followed.image.reference} is {newest}, not {expected_digest} as expected; "
                "nothing was changed. Look at the new image and ask again with its digest.",
            )
        staged = self.deployment(Role.STAGED)
        if staged is None or staged.digest != newest:
            booted = self.deployment(Role.BOOTED)
            if staged is None and booted is not None and booted.digest == newest:
                return None
            fetched = await self.backend.fetch(followed.image, expected_digest=newest, report=report)
            staged = await self.backend.stage(fetched, followed.image)
        elif self._needs_no_release(staged) and self._released(staged):
            return None
        bound = await self.bind(staged, report)
        return {
            "deployment": staged.key,
            "digest": newest,
            "image": followed.image.reference,
            **plan_facts(bound.plan),
        }

    async def bind(self, deployment: Deployment, report: Report, *, known_only: bool = False) -> Bound:
        """Make every bound image of `deployment` present and verified, record it, and release it when it is staged.

        With `known_only` images of which nobody knows the digest are left alone: no registry is asked what a name
        means. Raises BoundImageInvalid when an entry cannot be used, after the good ones were bound.
        """
        staged = Role.STAGED in deployment.roles
        if staged:
            report(StageStarted(Stage.HOLD))
            await self._hold(deployment)
        report(StageStarted(Stage.DISCOVER))
        found = await asyncio.to_thread(discover, deployment.root)
        record = self.records.get(deployment.key)
        if known_only:
            found = Discovery(tuple(image for image in found.images if is_known(image, record)), found.bad)
        held = await asyncio.to_thread(held_names, deployment, self.backend.deployments(), self.records)
        # A damaged store is mended at most once: what is still damaged after that is a disk that cannot be trusted.
        ask = self._is_new(deployment)
        plan, images, changed = await self._fetch(found, record, held, report, ask=ask)
        if images is None:
            await repair(plan.images, self.store, self._vouched())
            plan, images, _ = await self._fetch(found, record, held, report, ask=ask, last=True)
            changed = True
        assert images is not None
        changed |= await give_names(self.store, found.images, digests_of(plan), held)
        report(StageStarted(Stage.RECORD))
        new = Record(deployment.key, deployment.digest, images, int(time.time()))
        if record is None or (record.images, record.host_digest) != (new.images, new.host_digest):
            await asyncio.to_thread(self.records.write, new)
            changed = True
        refuse_bad(found, deployment)
        if staged:
            report(StageStarted(Stage.RELEASE))
            # What was released before, and held only while it was looked at, is no news.
            changed |= await self._release(deployment, found, new) and deployment.locked
        return Bound(new, plan, changed)

    async def _fetch(
        self,
        found: Discovery,
        record: Record | None,
        held: Digests,
        report: Report,
        *,
        ask: bool,
        last: bool = False,
    ) -> tuple[Plan, tuple[RecordedImage, ...] | None, bool]:
        """Plan, pull and verify: (plan, what to record, whether the store changed).

        Without anything to record the store holds damaged content, unless this was the `last` try, which raises.
        """
        mended = await mend(self.store)
        for sentence in mended:
            log.warning("%s", sentence)
        # What a deployment that is not new has run with is what its names mean here, and not in the registry by now.
        plan = await make_plan(
            found.images, store=self.store, record=record, settings=self.settings, refresh=ask, report=report
        )
        require_space(plan)
        vouched, fresh = self._vouched(), frozenset[str]()
        if plan.absent:
            before = frozenset(self.store.index().layers)
            await pulling.pull(
                plan,
                store=self.store,
                settings=self.settings,
                names=lambda image: name_in_store(image, self.store.index(), held),
                report=report,
            )
            fresh = frozenset(self.store.index().layers) - before
        # Only now: what could be found out has been fetched, and the next run need not do that.
        require_resolved(plan)
        try:
            images = await verify(plan.images, self.store, vouched, fresh=fresh, report=report)
        except LashdError as error:
            if last or error.name is not ErrorName.STORE_DAMAGED:
                raise
            log.warning("%s", error.message)
            return plan, None, True
        return plan, images, bool(mended or plan.absent)

    def _vouched(self) -> frozenset[str]:
        """Layers that need no reading: a record vouches for just the copies that are in the store."""
        return self.records.vouched(self.store.index().layers)

    async def plan(self, deployment: Deployment, report: Report) -> Plan:
        """What a bind of `deployment` would do now; changes nothing."""
        report(StageStarted(Stage.DISCOVER))
        found = await asyncio.to_thread(discover, deployment.root)
        plan = await make_plan(
            found.images,
            store=self.store,
            record=self.records.get(deployment.key),
            settings=self.settings,
            refresh=self._is_new(deployment),
            report=report,
        )
        require_resolved(plan)
        return plan

    async def roll_back(self, *, drop_staged: bool, report: Report) -> Mapping[str, Any] | None:
        """Make the rollback deployment the next boot, after its images were verified and, if need be, fetched again.

        None: it boots next already, with all of its images.
        """
        target = self.deployment(Role.ROLLBACK)
        if target is None:
            raise LashdError(ErrorName.ROLLBACK_UNAVAILABLE)
        staged = self.deployment(Role.STAGED)
        if staged is not None and not drop_staged:
            raise LashdError(
                ErrorName.WOULD_DROP_STAGED,
                f"Deployment {staged.version or staged.key} is staged and a rollback would drop it; nothing was "
                "changed. Ask again with 'drop-staged' if that is wanted.",
            )
        try:
            bound = await self.bind(target, report)
        except LashdError as error:
            if error.name in (ErrorName.CANCELLED, ErrorName.BOUND_IMAGE_INVALID):
                raise
            raise LashdError(
                ErrorName.ROLLBACK_IMAGES_MISSING,
                f"The rollback deployment's images are not complete and could not be repaired, so nothing was "
                f"changed: {error.message}",
                retryable=error.retryable,
            ) from error
        report(StageStarted(Stage.ROLL_BACK))
        changed = await self.backend.roll_back(target, drop_staged=drop_staged)
        if not (changed or bound.changed):
            return None
        return {"deployment": target.key, "version": target.version or "", **plan_facts(bound.plan)}

    async def newest(self) -> Mapping[str, Any]:
        """Is there a newer host image? What it binds is known only once it has been fetched."""
        followed = self._followed()
        assert followed.image is not None
        digest = await self._newest(followed.image)
        return {"newest": digest, "newer": digest != followed.digest}

    async def _newest(self, image: HostImage) -> str:
        """The digest that `image` means now; asked again a few times when that may help."""
        attempt = 1
        while True:
            try:
                return await self.backend.check(image)
            except LashdError as error:
                seconds = delay(self.settings.pull, attempt, error)
                if (
                    not error.retryable
                    or attempt >= min(ATTEMPTS, self.settings.pull.attempts)
                    or seconds > LONGEST_DELAY
                ):
                    raise
            await asyncio.sleep(seconds)
            attempt += 1

    def deployment(self, role: Role) -> Deployment | None:
        return next((deployment for deployment in self.backend.deployments() if role in deployment.roles), None)

    def _is_new(self, deployment: Deployment) -> bool:
        """Whether nothing has ever run with what its names mean. On a sysroot that is not booted nothing ever did."""
        return Role.STAGED in deployment.roles or self.deployment(Role.BOOTED) is None

    def _followed(self) -> Deployment:
        """The deployment whose image an upgrade follows: as with bootc, the staged one's, else the booted one's."""
        for role in (Role.STAGED, Role.BOOTED):
            deployment = self.deployment(role)
            if deployment is not None and deployment.image is not None:
                return deployment
        raise LashdError(
            ErrorName.UNSUPPORTED_HOST,
            "The booted deployment does not follow a container image (its origin names none), so there is nothing to "
            "upgrade to; switch the host to an image first.",
        )

    def _released(self, staged: Deployment) -> bool:
        """Whether a staged deployment that nobody holds was also bound completely."""
        try:
            found = discover(staged.root)
            return decide(found, self.records.get(staged.key), self.states(staged, found)).release
        except LashdError as error:
            # What cannot be told (a damaged store, say) is not so; the bind that follows mends what it can.
            log.warning("%s", error.message)
            return False

    def states(self, deployment: Deployment, found: Discovery) -> dict[str, ImageState]:
        """The state of each bound image in the store, by unit."""
        record, vouched = self.records.get(deployment.key), self._vouched()
        return {image.unit: classify(image, record, self.store, vouched)[0] for image in found.images}

    def order(self, deployment: Deployment) -> Order | None:
        """What an operator said about the staged `deployment`, if anything."""
        order = Shutdowns(self.settings.paths.state, self.settings.paths.run).order()
        return order if order is not None and order.is_for(deployment) else None

    async def _hold(self, staged: Deployment) -> None:
        order = self.order(staged)
        if (order is not None and order.hold) or (order is None and self.settings.gate.policy == "hold"):
            await self.backend.hold(staged)
        elif self.backend.holds(staged) and not (staged.declared or staged.foreign_lock):
            # Our own staging is held from its first instant on, whoever wants it so or not.
            await self.backend.release(staged)

    def _needs_no_release(self, staged: Deployment) -> bool:
        """Whether a bind of the staged deployment would not end in declaring it ready."""
        order = self.order(staged)
        if staged.declared or staged.foreign_lock or (order is not None and order.hold):
            return True
        return self.settings.gate.policy != "hold" and not staged.locked

    async def _release(self, deployment: Deployment, found: Discovery, record: Record) -> bool:
        order = self.order(deployment)
        if order is not None:
            return False
        self._require_release(deployment, found, record)
        now = self.deployment(Role.STAGED)
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
        return True

    def _require_release(self, deployment: Deployment, found: Discovery, record: Record) -> None:
        decision = decide(found, record, self.states(deployment, found))
        if not decision.release:
            raise LashdError(ErrorName.HELD, " ".join(sentence for _code, sentence in decision.reasons))


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


def plan_facts(plan: Plan) -> dict[str, Any]:
    """The figures of a plan as job details: bytes and counts."""
    return {
        "bytes-to-fetch": plan.bytes_to_fetch,
        "bytes-on-disk": plan.bytes_on_disk,
        "bytes-free": plan.bytes_free,
        "images": len(plan.images),
        "images-to-fetch": len(plan.absent),
        "fits": plan.fits,
    }
