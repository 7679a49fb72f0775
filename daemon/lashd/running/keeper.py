# SPDX-License-Identifier: Apache-2.0
"""The keeper: watches what anyone stages, holds it, has it bound and declared ready, and brings back what was lost.

A loop that gathers the facts, does the one step that `reconcile.next_step` names, and looks again; with nothing to do
it sleeps until something happens. What takes long is a job like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from lashd.running.blocked import gate_ignored, ignored
from lashd.running.jobs import Job, Jobs
from lashd.running.lookout import Lookout
from lashd.running.passage import log_released
from lashd.running.reconcile import MEMORY, RESTAGE, Do, Facts, Step, next_step, wanted
from lashd.running.retries import Retries
from lashd.running.view import View
from lashd.steps.shutdowns import Shutdowns
from lashd.things.bootc.announcement import settle
from lashd.things.host import HostBackend
from lashd.things.inotify import Watcher
from lashd.things.logind import inhibited
from lashd.words import events
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId
from lashd.words.model import Deployment, Owed, Role

log = logging.getLogger(__name__)

# After a step that failed for no reason that it knows the keeper waits so long (seconds).
TROUBLE_SECONDS = 1.0
# The store changes with every layer of a pull; so often (seconds) it is looked at most.
PAUSE_SECONDS = 0.05
# Kinds of jobs that leave the staged deployment bound or not.
_BINDS = ("bind", "upgrade", "switch", RESTAGE)


class Hands(Protocol):
    """What starts the keeper's jobs."""

    def keep_bound(self, deployment: Deployment) -> Job: ...
    def bring_back(self, owed: Owed) -> Job: ...


class Keeper:
    """See above. `changed` is called after every change that a reader could see."""

    def __init__(
        self,
        settings: Settings,
        backend: HostBackend,
        view: View,
        jobs: Jobs,
        shutdowns: Shutdowns,
        hands: Hands,
        changed: Callable[[], None],
        *,
        boot: str,
    ) -> None:
        self._settings = settings
        self._gate = settings.gate
        self._backend = backend
        self._jobs = jobs
        self._shutdowns = shutdowns
        self._hands = hands
        self._tell = changed
        self._boot = boot
        self._retries = Retries(settings.gate.retry_seconds, settings.gate.retry_limit_seconds)
        self._wake = asyncio.Event()
        self._remembering = asyncio.Lock()
        stored = (settings.store / "overlay-images", settings.store / "overlay-layers")
        self._lookout = Lookout(backend, view, jobs, shutdowns, settings.gate, boot, self._retries.at)
        self._watcher = Watcher((*backend.watched(), *stored), self._noticed)
        self._task: asyncio.Task[None] | None = None
        self._inhibitor: asyncio.Task[None] | None = None
        self._complaint = ""
        self._waits = False  # for something to happen, and for nothing else
        self.verdict = shutdowns.verdict()
        self.following: Deployment | None = None  # boots next, without having been staged, and lacks images

    # -- its life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to keep: what is staged is held when this returns. With the policy `off` only what happened is told."""
        booted, verdict = self._role(Role.BOOTED), self.verdict
        if gate_ignored(verdict, booted, self._boot) and verdict is not None and booted is not None:
            told = events.fields(
                MessageId.GATE_IGNORED, error="GateIgnored", deployment=booted.key, digest=booted.digest
            )
            log.error("%s %s", booted.key, ignored(verdict, booted), extra=told)
        if self._gate.policy != "off":
            self._watcher.start()
            self._lookout.watch(self._noticed)
            with contextlib.suppress(Exception):  # the loop tries it again, and says why it cannot
                if (step := next_step(self._lookout.gather())).do is Do.HOLD:
                    await self._do(step)
            self._task = asyncio.create_task(self._run(), name="keeper")

    async def stop(self) -> None:
        self._watcher.close()
        self._lookout.close()
        for task in (self._task, self._inhibitor):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._task is not None:
            # What was dropped a moment ago must not come back after a reboot.
            facts = self._lookout.gather()
            if facts.staged is None and facts.owed is not None and facts.owed.boot == self._boot:
                with contextlib.suppress(LashdError, OSError):
                    self._shutdowns.owe(None)
        self._task = self._inhibitor = None

    @property
    def owed(self) -> Owed | None:
        """What was staged and has not been booted yet."""
        return self._lookout.owed

    def known(self) -> None:
        """What runs already was looked at: from now on things are bound."""
        self._lookout.ready = True
        self.wake()

    def wake(self) -> None:
        """Look at once."""
        self._wake.set()

    def job_done(self, job: Job) -> None:
        """A job that changed the host has ended: look at once, and wait before the same is tried again."""
        self.wake()
        if job.kind not in _BINDS:
            return
        staged = self._role(Role.STAGED)
        name = RESTAGE if job.kind == RESTAGE else str(job.options.get("deployment", staged.key if staged else ""))
        if name:
            # Counted whatever came of it: what needs no more work is forgotten at the next look, and what does is not
            # done over and over.
            self._retries.failed(name, time.monotonic())

    @property
    def next_try(self) -> int:
        """When what failed is tried again, in seconds since the epoch; 0 when nothing waits."""
        now = time.monotonic()
        waits = [at for at in self._retries.at.values() if at > now]
        return int(time.time() + min(waits) - now) if waits and self._jobs.active is None else 0

    def at_rest(self) -> bool:
        """Whether nothing is staged, owed or ordered, and nothing is to be done until something changes on the disk.

        Raises LashdError, OSError."""
        if self._task is None:
            return True
        facts = self._lookout.gather()
        given = (facts.staged, facts.owed, facts.following, facts.nextroot)
        inhibits = self._inhibitor is not None and not self._inhibitor.done()
        return self._waits and not self._wake.is_set() and not inhibits and all(one is None for one in given)

    async def forget(self) -> None:
        """Nothing is owed any more: the staged deployment was dropped on purpose."""
        await self._remember(lambda: None)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _noticed(self) -> None:
        self._tell()
        self.wake()

    async def _run(self) -> None:
        before, step = Do.WAIT, Step(Do.WAIT)
        while True:
            self._wake.clear()
            try:
                step = await self._next()
                # Twice the same: somebody undoes it, and we do not race him.
                if step.do is before is not Do.WAIT:
                    await asyncio.sleep(PAUSE_SECONDS)
                before = step.do
                if step.do is not Do.WAIT:
                    await self._do(step)
                    self._complaint = ""
                    self._tell()
                    continue
            except (LashdError, OSError) as error:
                self._complain(error)
                if step.do in MEMORY:
                    # A host whose state cannot be written is looked after all the same.
                    self._lookout.memory_fails_until = time.monotonic() + 10 * TROUBLE_SECONDS
                    continue
                step = Step(Do.WAIT, until=time.monotonic() + TROUBLE_SECONDS)
            except Exception:
                log.exception("The keeper made a mistake")
                step = Step(Do.WAIT, until=time.monotonic() + 10 * TROUBLE_SECONDS)
            await self._sleep(step.until)

    async def _sleep(self, until: float | None) -> None:
        await asyncio.sleep(PAUSE_SECONDS)
        seconds = self._gate.poll_seconds
        if until is not None:
            seconds = min(seconds, max(until - time.monotonic(), PAUSE_SECONDS))
        self._waits = until is None
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            self._watcher.renew()
            self._lookout.watch(self._noticed)
        self._waits = False

    async def _next(self) -> Step:
        facts = self._lookout.gather()
        step = next_step(facts)
        if step.do is Do.LOOK:
            look = await self._lookout.look(facts)
            # That took a moment.
            facts = replace(self._lookout.gather(), look=look)
            self._retries.keep(name for name, _ in wanted(facts, look))
            self.following = facts.following if facts.following and facts.following.name in look.lacking else None
            step = next_step(facts)
        self._inhibit(facts)
        with contextlib.suppress(OSError):  # others may then reboot early, which loses nothing for good
            settle(
                self._settings, staged=facts.staged is not None, held=facts.staged is not None and facts.staged.locked
            )
        return step

    # -- steps ------------------------------------------------------------------------------------------------------

    async def _do(self, step: Step) -> None:
        staged = self._role(Role.STAGED)
        match step.do:
            case Do.HOLD if staged is not None:
                await self._backend.hold(staged)
                log.info("%s is held: not all of its bound images were verified", staged.key)
            case Do.TAKE_DOWN:
                await asyncio.to_thread(self._backend.take_down)
                log.warning("A soft reboot was prepared to a deployment that is not verified, and was taken back")
            case Do.OWE:
                await self._remember(self._seen)
            case Do.SETTLE:
                given_up = self.owed.deployment if self.owed is not None else ""
                await self._remember(lambda: None)
                log.info("The staged deployment %s is not waited for any more: %s", given_up, step.why)
            case Do.COUNT if self.owed is not None:
                told = events.fields(MessageId.REBOOT_WASTED, deployment=self.owed.deployment, digest=self.owed.digest)
                log.warning(
                    "A reboot has not brought up %s, which was staged before it", self.owed.deployment, extra=told
                )
                await self._remember(self._counted)
            case Do.FORGET_ORDER:
                await asyncio.to_thread(self._shutdowns.give_order, None)
            case Do.DECLARE if staged is not None:
                await self._backend.release(staged)
                log_released(staged)
            case Do.BIND if step.deployment is not None:
                self._hands.keep_bound(step.deployment)
            case Do.GIVE_UP if (job := self._jobs.active) is not None:
                log.info("%s is gone, so it is not bound any further", job.options.get("deployment"))
                job.cancel()
            case Do.RESTAGE if self.owed is not None:
                self._hands.bring_back(self.owed)

    async def _remember(self, what: Callable[[], Owed | None]) -> None:
        # One after the other, and each by what is true then: what is just being given up must not come back.
        async with self._remembering:
            owed = what()
            await asyncio.to_thread(self._shutdowns.owe, owed)
            self._lookout.owed = owed

    def _seen(self) -> Owed | None:
        staged = self._role(Role.STAGED)
        return self._lookout.owing(staged) if staged is not None else self.owed

    def _counted(self) -> Owed | None:
        owed = self.owed
        return replace(owed, wasted=owed.wasted + 1, counted=self._boot) if owed is not None else None

    def _inhibit(self, facts: Facts) -> None:
        """By policy, forbid reboots while something is held that reboots were wasted on already."""
        staged, owed = facts.staged, facts.owed
        held = staged is not None and staged.locked and not staged.foreign_lock
        forbid = self._gate.inhibit == "wasted" and held and owed is not None and owed.wasted > 0
        task = self._inhibitor
        if forbid and (task is None or task.done()):
            self._inhibitor = asyncio.create_task(self._inhibited(), name="inhibitor")
        elif not forbid and task is not None and not task.cancelling():
            task.cancel()

    async def _inhibited(self) -> None:
        why = "The staged system waits for its container images; a reboot now would bring up the old one again"
        async with inhibited(why, what="shutdown", mode="block") as works:
            if works:
                await asyncio.Event().wait()
        # Without it nothing is lost but the reboot; it is tried again with the next look.
        await asyncio.sleep(TROUBLE_SECONDS)

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _complain(self, error: LashdError | OSError) -> None:
        text = error.message if isinstance(error, LashdError) else str(error)
        busy = isinstance(error, LashdError) and error.name is ErrorName.BUSY
        if text != self._complaint and not busy:
            log.warning("%s", text)
        self._complaint = text

    def _role(self, role: Role) -> Deployment | None:
        return next((one for one in self._backend.deployments() if role in one.roles), None)
