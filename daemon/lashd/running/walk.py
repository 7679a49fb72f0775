# SPDX-License-Identifier: Apache-2.0
"""The one walk: stage, hold, discover, plan, pull, verify, record, release.

Every operation is this walk entered at some step. It knows nothing of jobs or of the bus; progress goes out through
the one callback, and cancelling is asyncio cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lashd.running.ahead import Ahead
from lashd.running.bind import Binder, Bound
from lashd.running.passage import Passage
from lashd.steps.discover import discover
from lashd.steps.plan import ATTEMPTS, LONGEST_DELAY, require_resolved
from lashd.steps.plan import plan as make_plan
from lashd.steps.record import Records
from lashd.steps.schedule import delay
from lashd.things.composefs import unlocking
from lashd.things.host import HostBackend
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Discovery, HostImage, ImageState, Plan, Role
from lashd.words.progress import Report, Stage, StageStarted


@dataclass(frozen=True, slots=True)
class Walk:
    backend: HostBackend
    store: Store
    records: Records
    settings: Settings

    @property
    def _passage(self) -> Passage:
        return Passage(self.backend, self.store, self.records, self.settings)

    @property
    def _binder(self) -> Binder:
        return Binder(self.backend, self.store, self.records, self.settings, self._passage)

    async def upgrade(self, expected_digest: str | None, report: Report, *, to: str = "") -> Mapping[str, Any] | None:
        """The whole walk for the host image that the host follows, or to another one. None: nothing to do."""
        image = self._followed().image
        assert image is not None
        if to:
            # Under the policy for signatures that the present one is under.
            image = replace(image, reference=to, transport="registry")
        report(StageStarted(Stage.STAGE))
        newest = await self._newest(image)
        if expected_digest and newest != expected_digest:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                f"The newest image of {image.reference} is {newest}, not {expected_digest} as expected; "
                "nothing was changed. Look at the new image and ask again with its digest.",
            )
        staged = self.deployment(Role.STAGED)
        if staged is None or (staged.digest, staged.image) != (newest, image):
            booted = self.deployment(Role.BOOTED)
            if staged is None and booted is not None and (booted.digest, booted.image) == (newest, image):
                return None
            async with Ahead(self.backend, self.store, self.records, self.settings) as ahead:
                fetched = await self.backend.fetch(image, expected_digest=newest, report=report, arrived=ahead.begin)
                staged = await self.backend.stage(fetched, image)
                bound = await self._binder.bind(staged, report, ahead=ahead)
        elif self._passage.needs_no_release(staged) and self._passage.released(staged):
            return None
        else:
            bound = await self.bind(staged, report)
        return {
            "deployment": staged.key,
            "digest": newest,
            "image": image.reference,
            **plan_facts(bound.plan),
        }

    async def bind(self, deployment: Deployment, report: Report, *, known_only: bool = False) -> Bound:
        """As `Binder.bind` says."""
        return await self._binder.bind(deployment, report, known_only=known_only)

    async def plan(self, deployment: Deployment, report: Report) -> Plan:
        """What a bind of `deployment` would do now; changes nothing."""
        self.records.require()
        report(StageStarted(Stage.DISCOVER))
        found = await asyncio.to_thread(discover, deployment.root, deployment.merges)
        plan = await make_plan(
            found.images,
            store=self.store,
            record=self.records.get(deployment.key),
            settings=self.settings,
            refresh=self._binder.is_new(deployment),
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

    def held_back(self) -> str:
        """Why the staged deployment stays held whatever is bound, and what ends that; empty when it does not."""
        staged = self.deployment(Role.STAGED)
        if staged is None or not staged.locked:
            return ""
        if staged.foreign_lock:
            return (
                f"It stays held: somebody else than lashd has locked it; {unlocking(staged.checksum)} takes that away."
            )
        order = self._passage.order(staged)
        if order is None or not order.hold:
            return ""
        name = staged.digest or staged.checksum
        return f"It stays held, as user {order.uid} ordered; 'lashctl release {name}' takes that back."

    async def newest(self) -> Mapping[str, Any]:
        """Is there a newer host image? What it binds is known only once it has been fetched."""
        followed = self._followed()
        assert followed.image is not None
        digest = await self._newest(followed.image)
        facts: dict[str, Any] = {"newest": digest, "newer": digest != followed.digest}
        if facts["newer"]:
            # That there is one is worth telling alone.
            with contextlib.suppress(LashdError):
                outline = await self.backend.outline(followed.image)
                if outline.digest == digest:
                    facts |= {"newest-version": outline.version, "newest-bytes": outline.bytes}
        return facts

    async def moved(self, deployment: Deployment) -> Mapping[str, Any]:
        """Have floating images of `deployment` moved on in their registries since it was bound to them?"""
        from lashd.steps.moved import moved  # asked for now and then

        self.records.require()
        found = await asyncio.to_thread(discover, deployment.root, deployment.merges)
        now = await moved(found.images, self.records.get(deployment.key), self.settings)
        return {"deployment": deployment.key, "moved": list(now.references), "unknown": list(now.unknown)}

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

    def states(self, deployment: Deployment, found: Discovery) -> dict[str, ImageState]:
        """As `Passage.states` says."""
        return self._passage.states(deployment, found)

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
