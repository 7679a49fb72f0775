# SPDX-License-Identifier: Apache-2.0
"""One running or finished operation: who asked for it, how far it is, and what came of it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lashd.running.tally import Tally
from lashd.words import events
from lashd.words.errors import ErrorName, LashdError
from lashd.words.progress import Event, ItemProgress, Stage, StageStarted

log = logging.getLogger(__name__)

# Progress reaches listeners at most so often (seconds between two changes); stage boundaries are told at once.
CHANGE_INTERVAL = 0.2


@dataclass(frozen=True, slots=True)
class Initiator:
    """Who asked: numeric user, systemd unit if any, and the name that the client gave itself."""

    uid: int
    unit: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the work of a job came to. `details` holds plain values: str, bool, int, float, list of str."""

    changed: bool
    details: Mapping[str, Any] = field(default_factory=dict)


class Table(Protocol):
    """Where a job tells its news, and that it has ended."""

    def tell(self, event: str, *arguments: Any) -> None: ...
    def finished(self, job: Job) -> None: ...


Work = Callable[["Job"], Awaitable[Outcome]]


class Job:
    """One operation. Attributes carry the names of the bus's Job interface, in snake case."""

    def __init__(
        self, number: int, kind: str, initiator: Initiator, options: Mapping[str, Any], table: Table, *, slot: bool
    ) -> None:
        self.id = number
        self.uuid = str(uuid.uuid4())
        self.kind = kind
        self.initiator = initiator
        self.options = dict(options)
        self.created = int(time.time())
        self.slot = slot
        self.yields = False  # it is cancelled when another job needs the slot
        self.state = "waiting"
        self.cancellable = True
        self.result = ""
        self.error_name = ""
        self.error_message = ""
        self.details: dict[str, Any] = {}
        self.items: dict[str, ItemProgress] = {}
        self._tally = Tally()
        self._table = table
        self._task: asyncio.Task[None] | None = None
        self._stopped = False  # by the daemon's end, and not by somebody who cancelled it
        self._done = asyncio.Event()
        self._pending: set[str] = set()
        self._flush_at: asyncio.TimerHandle | None = None
        self._flushed = 0.0

    stage = property(lambda self: self._tally.stage)
    item = property(lambda self: self._tally.item)
    fraction = property(lambda self: self._tally.fraction)
    bytes_done = property(lambda self: self._tally.bytes_done)
    bytes_total = property(lambda self: self._tally.bytes_total)
    items_done = property(lambda self: self._tally.items_done)
    items_total = property(lambda self: self._tally.items_total)
    attempt = property(lambda self: self._tally.attempt)
    retries = property(lambda self: self._tally.retries)
    next_attempt = property(lambda self: int(self._tally.next_attempt))

    @property
    def active(self) -> bool:
        return self.state != "done"

    @property
    def ending(self) -> bool:
        return self.state == "cancelling"

    def report(self, event: Event) -> None:
        """The progress callback that the steps get."""
        if isinstance(event, StageStarted) and event.stage is Stage.ROLL_BACK:
            # The order of the boot entries is changed as a whole or not at all.
            self.protect()
        before = self._tally.visible()
        self._tally.count(event)
        if isinstance(event, StageStarted):
            self.items = {}
        elif isinstance(event, ItemProgress):
            self.items[event.item] = event
        after = self._tally.visible()
        changed = {name for name in after if after[name] != before[name]} | {"items"}
        self._changed(changed, at_once=isinstance(event, StageStarted))

    def protect(self) -> None:
        """From here on the job cannot be cancelled: what it does next must not be left half done."""
        if self.cancellable:
            self.cancellable = False
            self._changed({"cancellable"}, at_once=True)

    def cancel(self) -> None:
        """Ask the job to end. Raises NotCancellable when it is past that point; a finished job is left alone."""
        if not self.active or self.state == "cancelling":
            return
        if not self.cancellable or self._task is None:
            raise LashdError(ErrorName.NOT_CANCELLABLE, f"Job {self.id} ({self.kind}) can no longer be cancelled.")
        self.state = "cancelling"
        self._changed({"state"}, at_once=True)
        self._task.cancel()

    async def wait(self, timeout: float) -> tuple[str, str, str]:
        """(result, error name, error message), or ('running', '', '') after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._done.wait()
        except TimeoutError:
            return ("running", "", "")
        return (self.result, self.error_name, self.error_message)

    def start(self, work: Work) -> None:
        self._task = asyncio.create_task(self._run(work), name=f"job {self.id} {self.kind}")
        self._task.add_done_callback(self._ended)

    def recall(self, stage: str, result: str, name: str, message: str, details: Mapping[str, Any]) -> None:
        """It has ended in an earlier life of the daemon, like this: `name` and `message` are those of the error."""
        self._tally.stage = stage
        if result in ("success", "unchanged"):
            self._tally.complete()
        self.result, self.error_name, self.error_message, self.details = result, name, message, dict(details)
        self.state, self.cancellable = "done", False
        self._done.set()

    async def ended(self) -> None:
        """Wait for its end, however it comes."""
        await self._done.wait()

    async def stop(self) -> None:
        """End the job because the daemon ends, whatever it is doing."""
        if self._task is not None:
            self._stopped = self.state != "cancelling"
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, work: Work) -> None:
        events.enter_job(self.uuid, self.kind)
        self.state = "running"
        self._changed({"state"}, at_once=True)
        try:
            outcome = await work(self)
        except asyncio.CancelledError:
            self._finish("cancelled", self._cancelled())
        except LashdError as error:
            self._finish("failed", error)
        except Exception:
            # A mistake of ours: the journal gets the traceback, the bus never does.
            log.exception("Job %d (%s) ended by a mistake", self.id, self.kind)
            self._finish("failed", LashdError(ErrorName.INTERNAL))
        else:
            self.details |= {"changed": outcome.changed, **outcome.details}
            self._finish("success" if outcome.changed else "unchanged", None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step never runs at all.
        if self.active:
            self._finish("cancelled", self._cancelled())

    def _cancelled(self) -> LashdError:
        said = f"Job {self.id} ({self.kind}) was ended because lashd was stopped; what was fetched is kept."
        return LashdError(ErrorName.CANCELLED, said if self._stopped else "")

    def _finish(self, result: str, error: LashdError | None) -> None:
        # Whoever sees the state `done` must find the error and the result there already.
        if error is not None:
            self.details.setdefault("changed", False)
            self.details["retryable"] = error.retryable
            self.error_name, self.error_message = error.name.value, error.message
        self.result = result
        if result in ("success", "unchanged"):
            self._tally.complete()
        self.cancellable = False
        self._changed(
            {"error_name", "error_message", "result", "details", "cancellable", "items", *self._tally.visible()},
            at_once=True,
        )
        self.state = "done"
        self._changed({"state"}, at_once=True)
        self._done.set()
        log.info(
            "Job %d (%s) %s%s",
            *(self.id, self.kind, result, f": {error.message}" if error else ""),
            extra=events.fields(
                events.MessageId.JOB_ENDED,
                job=self.uuid,
                kind=self.kind,
                result=self.result,
                error=self.error_name,
                retryable=None if error is None else error.retryable,
            ),
        )
        self._table.finished(self)

    def _changed(self, names: set[str], *, at_once: bool = False) -> None:
        self._pending |= names
        loop = asyncio.get_running_loop()
        wait = self._flushed + CHANGE_INTERVAL - loop.time()
        if at_once or wait <= 0:
            self._flush()
        elif self._flush_at is None:
            self._flush_at = loop.call_later(wait, self._flush)

    def _flush(self) -> None:
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
        self._flushed = asyncio.get_running_loop().time()
        names, self._pending = frozenset(self._pending), set()
        if names:
            self._table.tell("job_changed", self, names)
