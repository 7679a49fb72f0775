# SPDX-License-Identifier: Apache-2.0
"""Fetch what a plan says is absent: several images at once, each layer once, again when it may help.

What was fetched stays: an image that failed leaves its finished layers in the store, and the next run carries on there.
An exit status is not trusted here either: `verify` reads the store afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lashd.steps.failed import log_failed
from lashd.steps.line import Line, Load
from lashd.steps.names import name_in_store, source_of
from lashd.steps.schedule import Schedule, delay, most_at_once, unpacking_at_once
from lashd.steps.transfer import State, Transfer
from lashd.things.registry import copy_argv
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import LashdError, all_in_one
from lashd.words.model import Plan, PlannedImage, PullOptions
from lashd.words.progress import ItemProgress, Report, Stage, StageStarted, ignore
from lashd.words.reference import Reference
from lashd.words.run import writable

# How often, in seconds, the store's index is looked at while an image waits for a layer of another one ...
WATCH_SECONDS = 0.03
# ... and the line, while one waits for its turn.
TURN_SECONDS = 0.1
# A registry that asks for more than this is not waited for inside one job.
LONGEST_WAIT = 3600.0

# The name under which a planned image is kept in the store.
Names = Callable[[PlannedImage], Reference]


async def pull(
    plan: Plan,
    *,
    store: Store,
    settings: Settings,
    names: Names | None = None,
    report: Report = ignore,
    complain: bool = True,
) -> None:
    """Copy every absent image of `plan` into the store, by digest. Nothing is synced or verified here.

    One image's failure does not stop the others. Raises, after all have been tried, one LashdError that names every
    image that failed: with the name of the first permanent failure, or a retryable one when all may pass. Cancelling
    ends every process and removes partial downloads; finished layers stay. The journal hears of what failed if it is
    to `complain`.
    """
    report(StageStarted(Stage.PULL, plan.bytes_to_fetch, len(plan.absent)))
    if not plan.absent:
        return
    await store.ensure()
    folder = settings.paths.state / "pull"
    # A run that was killed could not remove its downloads.
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    await _Pull(
        plan, store, settings, names or (lambda image: name_in_store(image, store.index())), folder, report, complain
    ).run()


@dataclass
class _Item:
    """How far one image is. `landed`: bytes of the layers it brought into the store in attempts that failed later."""

    image: PlannedImage
    state: str = "waiting"
    attempt: int = 0
    landed: int = 0
    done: int = 0
    total: int = 0
    claim: frozenset[str] = frozenset()
    transfer: Transfer | None = None
    error: LashdError | None = None
    sizes: dict[str, int] = field(default_factory=dict)


class _Pull:
    def __init__(
        self,
        plan: Plan,
        store: Store,
        settings: Settings,
        names: Names,
        folder: Path,
        report: Report,
        complains: bool,
    ) -> None:
        self._store = store
        self._settings = settings
        self._names = names
        self._folder = folder
        self._report = report
        self._complains = complains
        self._items = [
            _Item(image, sizes={layer.digest: layer.size for layer in image.missing}) for image in plan.absent
        ]
        self._schedule: Schedule[int] = Schedule()
        self._line = Line(most_at_once(settings.pull), unpacking_at_once())
        self._at_work = 0  # attempts that run, and images that wait to be tried again
        self._news = asyncio.Event()

    async def run(self) -> None:
        for key, item in enumerate(self._items):
            self._schedule.add(key, item.sizes)
            self._tell(item, "waiting")
        async with asyncio.TaskGroup() as group:
            while self._schedule.waiting or self._at_work:
                self._news.clear()
                self._start_what_may(group)
                self._line.look(time.monotonic(), sum(item.done for item in self._items), self._loads())
                await self._something_new()
        errors = [item.error for item in self._items if item.error]
        if errors:
            raise all_in_one(errors, f"{len(errors)} of {len(self._items)} bound images could not be fetched.")

    def _start_what_may(self, group: asyncio.TaskGroup) -> None:
        while (key := self._schedule.next()) is not None and self._has_room():
            item = self._items[key]
            item.claim = self._schedule.start(key)
            item.attempt += 1
            item.total = max(item.done, item.landed + sum(item.sizes[digest] for digest in item.claim))
            # Already at work before its task first runs, so that the line is not given away twice.
            item.transfer = self._transfer(key)
            self._at_work += 1
            self._tell(item, "fetching")
            group.create_task(self._attempt(key))

    async def _something_new(self) -> None:
        """Return when an attempt changed its state or ended, or when it is time to look whether more may start."""
        blocking = self._schedule.blocking
        if not self._schedule.waiting:
            await self._news.wait()
            return
        try:
            async with asyncio.timeout(WATCH_SECONDS if blocking else TURN_SECONDS):
                await self._news.wait()
        except TimeoutError:
            if blocking:
                self._look_into_store()

    def _look_into_store(self) -> None:
        self._schedule.arrived(self._in_store(self._schedule.blocking))

    def _in_store(self, digests: Iterable[str]) -> frozenset[str]:
        try:
            index = self._store.index()
        except LashdError:
            # Whoever uses the store next says what is wrong with it.
            return frozenset()
        return frozenset(digest for digest in digests if index.layer_with_blob(digest))

    def _transfers(self, state: State) -> list[Transfer]:
        return [item.transfer for item in self._items if item.transfer and item.transfer.state is state]

    def _loads(self) -> list[Load]:
        return [transfer.load for transfer in self._transfers(State.FETCHING)]

    def _has_room(self) -> bool:
        return self._line.has_room(self._loads(), len(self._transfers(State.UNPACKING)))

    # One image

    def _transfer(self, key: int) -> Transfer:
        item = self._items[key]
        image, settings = item.image, self._settings
        directory = self._folder / hashlib.sha256(f"{image.reference} {image.digest}".encode()).hexdigest()[:24]
        options = image.bound[0].pull if image.bound else PullOptions()

        def argv() -> list[str]:
            destination = self._store.spec(str(self._names(image)))
            copy = copy_argv(source_of(image), destination, options, settings, tmpdir=directory)
            return writable(self._store.sysroot, copy)

        return Transfer(
            argv,
            directory,
            sum(item.sizes[digest] for digest in item.claim),
            subject=str(image.reference),
            stall_seconds=settings.pull.stall_seconds,
            look=lambda: self._looked(item),
            others_unpack=lambda: self._others_unpack(item),
        )

    def _others_unpack(self, item: _Item) -> bool:
        return any(each.unpacking for each in self._transfers(State.UNPACKING) if each is not item.transfer)

    async def _attempt(self, key: int) -> None:
        item = self._items[key]
        assert item.transfer is not None
        failure: LashdError | None = None
        try:
            await item.transfer.run()
        except LashdError as error:
            failure = error
        finally:
            item.transfer = None
        # A failed attempt, too, leaves what it has finished.
        arrived = item.claim if failure is None else self._in_store(item.claim)
        self._schedule.arrived(arrived)
        self._schedule.leave(key)
        item.landed += sum(item.sizes[digest] for digest in arrived)
        self._news.set()
        try:
            if failure is None:
                item.done = item.total
                self._tell(item, "done")
            elif await self._wait_to_try_again(item, failure):
                self._schedule.add(key, item.sizes)
        finally:
            self._at_work -= 1
            self._news.set()

    async def _wait_to_try_again(self, item: _Item, failure: LashdError) -> bool:
        seconds = delay(self._settings.pull, item.attempt, failure)
        if not failure.retryable or item.attempt >= self._settings.pull.attempts or seconds > LONGEST_WAIT:
            item.error = failure
            if self._complains:
                log_failed(item.image.reference, failure, digest=item.image.digest, attempts=item.attempt)
            self._tell(item, "failed", error=failure.message)
            return False
        self._tell(item, "retrying", next_attempt=time.time() + seconds, error=failure.message)
        await asyncio.sleep(seconds)
        self._tell(item, "waiting")
        return True

    def _looked(self, item: _Item) -> None:
        assert item.transfer is not None
        before = item.done, item.state
        item.done = max(item.done, min(item.landed + item.transfer.received, item.total))
        state = item.transfer.state.value
        if state != item.state:
            # It needs the line no more: somebody else may have it.
            self._news.set()
        if before != (item.done, state):
            self._tell(item, state)

    def _tell(self, item: _Item, state: str, *, next_attempt: float = 0.0, error: str = "") -> None:
        item.state = state
        self._report(
            ItemProgress(
                str(item.image.reference), state, item.done, item.total, max(item.attempt, 1), next_attempt, error
            )
        )
