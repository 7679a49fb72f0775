# SPDX-License-Identifier: Apache-2.0
"""A head start: the bound images of a host image are fetched while it is still being staged.

It is that and nothing else. Nothing is recorded, released or decided by it, and no name that means anything moves. The
bind of what was staged in the end does all of its work as ever, and finds in the store what has come in the meantime.
What goes wrong here is left to that bind; what was fetched for nothing is not bound by anything, and is collected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from lashd.steps import pull as pulling
from lashd.steps.discover import discover_in
from lashd.steps.names import name_in_store, running_names
from lashd.steps.plan import NOTHING_TOLD, Told, require_space, told_by
from lashd.steps.plan import plan as make_plan
from lashd.steps.record import Records
from lashd.things.host import HostBackend
from lashd.things.rootfs import Root
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import BoundImage, Plan, PlannedImage, PullOptions
from lashd.words.progress import Event, ItemProgress, Report, Stage, StageStarted, ignore
from lashd.words.reference import Reference

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Headway:
    """How far a head start has come.

    `told` is what registries have answered about the images that are in the store by now; `before` the layers (ids)
    that were in the store before anything was fetched, None when nothing was; `plan` what it set out to fetch;
    `reported` whether the job has told that images are being fetched.
    """

    told: Told = field(default_factory=dict)
    before: frozenset[str] | None = None
    plan: Plan | None = None
    reported: bool = False

    def figures(self, plan: Plan) -> Plan:
        """What the whole job had to fetch, whose bind came to `plan` after this. Each layer counts once."""
        if self.plan is None or self.before is None:
            return plan
        first = {_content(image): image for image in self.plan.images}
        images = tuple(first.get(_content(image), image) for image in plan.images)
        layers = {layer.digest: layer.size for image in images for layer in image.missing}
        # What only the bind has found out comes on top.
        more = plan.bytes_on_disk if any(_content(image) not in first for image in plan.absent) else 0
        # Both did fit, whatever the sum of two estimates is.
        room = max(self.plan.bytes_free - self.plan.reserve, self.plan.bytes_on_disk)
        return replace(
            self.plan,
            images=images,
            bytes_to_fetch=sum(layers.values()),
            bytes_on_disk=min(self.plan.bytes_on_disk + more, room),
            unresolved=plan.unresolved,
        )


NO_HEADWAY = Headway()


def _content(image: PlannedImage) -> tuple[str, str]:
    return str(image.reference), image.digest


class Ahead:
    """One head start of one job: leaving its block ends what is under way, with all processes.

    async with Ahead(…) as ahead:
        fetched = await backend.fetch(…, arrived=ahead.begin)
        …
        headway = await ahead.join(found.images, report)
    """

    def __init__(self, backend: HostBackend, store: Store, records: Records, settings: Settings) -> None:
        self._backend = backend
        self._store = store
        self._records = records
        # What needs a second attempt gets it from the bind.
        self._settings = replace(settings, pull=replace(settings.pull, attempts=1))
        self._task: asyncio.Task[None] | None = None
        self._relay = _Relay()
        self._uses: frozenset[tuple[Reference, PullOptions]] | None = None
        self._headway = NO_HEADWAY

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    def begin(self, content: Callable[[], Root]) -> None:
        """Start for the host image with this `content`; what begins later is not listened to."""
        if self._task is None:
            self._task = asyncio.create_task(self._work(content), name="fetching ahead")

    async def join(self, wanted: Sequence[BoundImage], report: Report) -> Headway:
        """How far it has come, for a bind that is going to fetch `wanted`; nothing is under way any more after that.

        What is under way is waited for, and told to `report`, unless it is for something else than `wanted`.
        """
        if self._task is not None:
            if self._uses is not None and not self._uses <= _uses(wanted):
                log.info("What was staged binds other images than the host image does; they are fetched from now on")
            else:
                self._relay.connect(report)
                await asyncio.wait([self._task])
                self._headway = replace(self._headway, reported=self._relay.stage is Stage.PULL)
            await self._end()
            # What could not be fetched may mean something else by now, and its registry have nothing else any more.
            self._headway = replace(self._headway, told=self._told())
        return self._headway

    def _told(self) -> Told:
        try:
            index = self._store.index()
        except LashdError:
            # The bind sets aside what is damaged.
            return NOTHING_TOLD
        return {
            (reference, options): manifest
            for (reference, options), manifest in self._headway.told.items()
            if (found := index.image_with_digest(reference.name, manifest.digest)) and self._store.complete(found)
        }

    async def _end(self) -> None:
        if self._task is not None:
            self._relay.connect(ignore)
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self, content: Callable[[], Root]) -> None:
        try:
            await self._fetch(content)
        except Exception:
            # Whatever it is, the bind finds out by itself, and says so.
            log.info("Bound images could not all be fetched while the host image is being staged", exc_info=True)

    async def _fetch(self, content: Callable[[], Root]) -> None:
        self._records.require()
        found = await asyncio.to_thread(lambda: discover_in(content()))
        self._uses = _uses(found.images)
        if not found.images:
            return
        held = await asyncio.to_thread(running_names, self._backend.deployments(), self._records)
        plan = await make_plan(
            found.images, store=self._store, record=None, settings=self._settings, report=self._relay.report
        )
        self._headway = Headway(told_by(plan), None, plan)
        require_space(plan)
        if plan.absent:
            log.info("%d bound images are fetched while the host image is being staged", len(plan.absent))
            self._headway = replace(self._headway, before=frozenset(self._store.index().layers))
            await pulling.pull(
                plan,
                store=self._store,
                settings=self._settings,
                names=lambda image: name_in_store(image, self._store.index(), held),
                report=self._relay.report,
                complain=False,
            )


def _uses(images: Iterable[BoundImage]) -> frozenset[tuple[Reference, PullOptions]]:
    return frozenset((image.reference, image.pull) for image in images)


@dataclass(slots=True)
class _Relay:
    """Keeps what is told until somebody listens, as far as it is news then: the stage, and the last of each item."""

    _stage: StageStarted | None = None
    _items: dict[str, ItemProgress] = field(default_factory=dict)
    _listener: Report | None = None

    @property
    def stage(self) -> Stage | None:
        """The stage that was reached, whether or not anybody listened."""
        return None if self._stage is None else self._stage.stage

    def report(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self._stage, self._items = event, {}
        else:
            self._items[event.item] = event
        if self._listener is not None:
            self._listener(event)

    def connect(self, listener: Report) -> None:
        if self._listener is None and self._stage is not None:
            listener(self._stage)
            for event in self._items.values():
                listener(event)
        self._listener = listener
