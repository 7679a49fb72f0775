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
from lashd.steps.plan import ATTEMPTS, LONGEST_DELAY, require_resolved, require_space
from lashd.steps.plan import plan as make_plan
from lashd.steps.record import Records
from lashd.steps.schedule import delay
from lashd.steps.verify import classify, mend, repair, verify
from lashd.things.host import HostBackend
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Discovery, HostImage, ImageState, Plan, Record, RecordedImage, Role
from lashd.words.progress import Report, Stage, StageStarted
from lashd.words.reference import Reference

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
        elif not staged.locked and self._released(staged):
            return None
        bound = await self.bind(staged, report)
        return {
            "deployment": staged.key,
            "digest": newest,
            "image": followed.image.reference,
            **plan_facts(bound.plan),
        }

    async def bind(self, deployment: Deployment, report: Report) -> Bound:
        """Make every bound image of `deployment` present and verified, record it, and release it when it is staged.

        Raises BoundImageInvalid when an entry cannot be used, after the good ones were bound.
        """
        staged = Role.STAGED in deployment.roles
        if staged:
            report(StageStarted(Stage.HOLD))
            await self.backend.hold(deployment)
        report(StageStarted(Stage.DISCOVER))
        found = await asyncio.to_thread(discover, deployment.root)
        record = self.records.get(deployment.key)
        # A damaged store is mended at most once: what is still damaged after that is a disk that cannot be trusted.
        plan, images, changed = await self._fetch(found, record, report)
        if images is None:
            await repair(plan.images, self.store, self._vouched())
            plan, images, _ = await self._fetch(found, record, report, last=True)
            changed = True
        assert images is not None
        changed |= await self._give_names(deployment, plan)
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
        self, found: Discovery, record: Record | None, report: Report, *, last: bool = False
    ) -> tuple[Plan, tuple[RecordedImage, ...] | None, bool]:
        """Plan, pull and verify: (plan, what to record, whether the store changed).

        Without anything to record the store holds damaged content, unless this was the `last` try, which raises.
        """
        mended = await mend(self.store)
        for sentence in mended:
            log.warning("%s", sentence)
        plan = await make_plan(found.images, store=self.store, record=record, settings=self.settings, report=report)
        require_space(plan)
        vouched, fresh = self._vouched(), frozenset[str]()
        if plan.absent:
            before = frozenset(self.store.index().layers)
            await pulling.pull(plan, store=self.store, settings=self.settings, report=report)
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

    async def _give_names(self, deployment: Deployment, plan: Plan) -> bool:
        """Give floating references of `deployment` their meaning in the store, where they do not have it yet.

        Not those that the running system binds, too: what its names mean must not change under it.
        """
        held: frozenset[str] = frozenset()
        booted = self.deployment(Role.BOOTED)
        if booted is not None and booted.key != deployment.key:
            running = await asyncio.to_thread(discover, booted.root)
            held = frozenset(str(name) for image in running.images for name in (image.reference, *image.names))
        changed = False
        for image in plan.images:
            for reference in dict.fromkeys(bound.reference for bound in image.bound):
                index = self.store.index()
                wanted = index.image_with_digest(reference.name, image.digest)
                holder = index.image_named(reference)
                if reference.pinned or wanted is None or (holder is not None and holder.id == wanted.id):
                    continue
                if holder is not None:
                    if str(reference) in held:
                        continue
                    # An image without any name could not be found by its digest either, by whoever is bound to it.
                    await self.store.give_name(reference, kept_name(reference, holder.digest))
                await self.store.give_name(reference.at(image.digest), reference)
                changed = True
        if changed:
            await self.store.sync()
        return changed

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

    async def _release(self, deployment: Deployment, found: Discovery, record: Record) -> bool:
        self._require_release(deployment, found, record)
        now = self.deployment(Role.STAGED)
        if now is None or now.key != deployment.key:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                "Another deployment was staged while this one was being bound; it was not released. Try again.",
                retryable=True,
            )
        if not now.locked:
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


def kept_name(reference: Reference, digest: str) -> Reference:
    """The tag under which an image stays in the store whose own tag has moved on to another one."""
    return Reference(reference.domain, reference.path, f"lashd-{digest.rpartition(':')[2][:32]}")


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
