# SPDX-License-Identifier: Apache-2.0
"""The running daemon without its doors: what can be asked of it, and what it does then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Mapping
from typing import Any, Protocol

from lashd.running.aftercare import Aftercare
from lashd.running.chores import Chores
from lashd.running.jobs import Initiator, Job, Jobs, Outcome, Work
from lashd.running.keeper import Keeper
from lashd.running.orders import Orders, expected_staged
from lashd.running.reading import Options, Reader
from lashd.running.reboot import Rebooter
from lashd.running.reboot_ways import Outlook
from lashd.running.view import View
from lashd.running.walk import Walk, plan_facts
from lashd.steps.adopt import adopt
from lashd.steps.record import Records
from lashd.steps.shutdowns import Shutdowns, boot_id
from lashd.things.host import HostBackend
from lashd.things.primary import PrimaryStore
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, Owed, Role
from lashd.words.progress import Stage, StageStarted

log = logging.getLogger(__name__)

# Who asked for what the daemon does by itself.
ITSELF = Initiator(0, "lashd.service", "lashd")


# The option `reboot` of an upgrade, and what is asked for then.
_WHEN_TO_REBOOT = {"when-ready": "ready", "window": "window"}


_LOOK_SECONDS = 60.0


class Listener(Protocol):
    def state_changed(self) -> None: ...


class Service(Reader):
    """Everything a door can ask for. Mutators return (job, joined) or raise LashdError; readers return plain rows."""

    def __init__(self, settings: Settings, backend: HostBackend) -> None:
        store = Store(settings.store, settings.store_run, settings.host.sysroot, skopeo=settings.tools.skopeo)
        records = Records(settings.paths.state / "records")
        super().__init__(
            settings,
            backend,
            jobs=Jobs(),
            walk=Walk(backend, store, records, settings),
            view=View(backend, store, records, PrimaryStore(settings.paths.root)),
            shutdowns=Shutdowns(settings.paths.state, settings.paths.run),
            boot=boot_id(),
        )
        self._orders = Orders(backend, self._shutdowns)
        self._chores = Chores(backend, store, records, self._shutdowns, settings.paths.root)
        self._rebooter = Rebooter(settings, self._outlook, boot=self._boot, changed=self._tell)
        self._barred_note = settings.paths.run / "activation.json"
        self._listeners: list[Listener] = []
        self._adoption: asyncio.Task[None]
        self._reboots: asyncio.Task[None] | None = None
        self._aftercare: asyncio.Task[None] | None = None
        self.jobs.subscribe(self)

    async def start(self) -> None:
        """What is done once when the daemon comes up: leftovers of a killed one removed, a running host adopted.

        Adoption reads every layer, so it goes on in the background; what changes something waits for it. Whatever is
        staged is held before this returns.
        """
        await asyncio.to_thread(shutil.rmtree, self.settings.paths.state / "pull", ignore_errors=True)
        try:
            await self._backend.recover()
        except (LashdError, OSError) as error:
            log.warning("A hold that a killed daemon left could not be removed: %s", error)
        if self._by_role(Role.BOOTED) is not None:
            self._keeper = Keeper(
                *(self.settings, self._backend, self._view, self.jobs, self._shutdowns, self, self._tell),
                boot=self._boot,
            )
            await self._keeper.start()
            self._reboots = asyncio.create_task(self._rebooter.run(), name="reboots")
            self._aftercare = asyncio.create_task(self._after_boot().run(), name="aftercare")
        self._adoption = asyncio.create_task(self._adopt(), name="adoption")

    async def stop(self) -> None:
        """End the keeper, the jobs and the adoption; what was fetched stays."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.stop()
        for task in (self._aftercare, self._reboots, self._adoption):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self.jobs.stop()

    async def _adopt(self) -> None:
        try:
            await self._adopt_booted()
        finally:
            if self._keeper is not None:
                self._keeper.known()

    async def _adopt_booted(self) -> None:
        booted = self._walk.deployment(Role.BOOTED)
        if booted is None or self._walk.records.get(booted.key) is not None:
            return
        try:
            record = await adopt(booted, self._view.discovery(booted), self._walk.store, now=int(time.time()))
            await asyncio.to_thread(self._walk.records.write, record)
        except (LashdError, OSError) as error:
            log.warning("The booted deployment could not be adopted: %s", error)
        else:
            log.info("The booted deployment %s was adopted with %d bound images", booted.key, len(record.images))
            self._tell()

    # -- what changes something, as a job ---------------------------------------------------------------------------

    def upgrade(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            facts = await self._walk.upgrade(options.get("expected-digest"), job.report)
            when = _WHEN_TO_REBOOT.get(options.get("reboot", "no"))
            if when is not None and self._walk.deployment(Role.STAGED) is not None:
                await self._rebooter.request(when, name=initiator.name, uid=initiator.uid)
            return Outcome(facts is not None, facts or {})

        return self._start("upgrade", work, initiator, options)

    def rollback(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            facts = await self._walk.roll_back(drop_staged=options.get("drop-staged", False), report=job.report)
            # Neither what was dropped nor what a reboot has lost before may come back over it.
            await self._forget_staged()
            return Outcome(facts is not None, facts or {})

        return self._start("rollback", work, initiator, options)

    def bind(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        deployment = self._one(options.get("deployment", Role.STAGED.value))
        return self._bind(deployment, initiator, options)

    def discard(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Drop the staged deployment; the one to roll back to stays."""
        staged = expected_staged(self._by_role(Role.STAGED), options)

        async def work(job: Job) -> Outcome:
            # The boot entries are written as a whole or not at all.
            job.protect()
            job.report(StageStarted(Stage.ROLL_BACK))
            await self._backend.discard(staged)
            await self._forget_staged()
            return Outcome(True, {"deployment": staged.key})

        return self._start("discard", work, initiator, options)

    def plan(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """What a bind of a deployment would do, or with `kind` = `upgrade` also whether there is a newer host image."""

        async def work(job: Job) -> Outcome:
            facts: dict[str, Any] = {}
            if options.get("kind") == "upgrade":
                facts |= await self._walk.newest()
            which = options.get("deployment")
            deployment = self._one(which) if which else self._default()
            plan = await self._walk.plan(deployment, job.report)
            facts |= {"deployment": deployment.key, **plan_facts(plan)}
            facts["fetch"] = [f"{image.reference} {image.bytes_to_fetch}" for image in plan.absent]
            return Outcome(False, facts)

        return self.jobs.start("plan", work, initiator, options, slot=False)

    def verify(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Compare the store with what is recorded for a deployment."""
        deployment = self._one(options.get("deployment", Role.BOOTED.value))

        async def work(job: Job) -> Outcome:
            return await self._chores.verify(deployment, job, deep=options.get("deep", False))

        return self.jobs.start("verify", work, initiator, options, slot=False)

    def collect(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Remove from the store what nobody needs."""

        async def work(job: Job) -> Outcome:
            return await self._chores.collect(job, dry_run=options.get("dry-run", False))

        return self._start("collect", work, initiator, options)

    def reboot(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Start the reboot, or remember that it is wanted. The job ends then."""

        async def work(job: Job) -> Outcome:
            when = options.get("when", "now")
            became = await self._rebooter.request(when, name=initiator.name, uid=initiator.uid)
            return Outcome(True, {"state": became})

        return self.jobs.start("reboot", work, initiator, options, slot=False)

    def blocked_by(self) -> list[tuple[str, str]]:
        found = super().blocked_by() + self._rebooter.blocked()
        if self._barred_note.exists():
            from lashd.running.activate import read_report

            found += [("wrong-name", sentence) for sentence in read_report(self.settings).values()]
        return found

    # -- orders, which take no job ----------------------------------------------------------------------------------

    async def hold(self, options: Options, initiator: Initiator) -> None:
        """Keep the staged deployment back, complete or not. Raises NothingStaged, DigestMismatch."""
        staged = expected_staged(self._by_role(Role.STAGED), options)
        await self._orders.hold(staged, initiator, str(options.get("reason", "")))
        self._ordered()

    async def release(self, options: Options, initiator: Initiator) -> None:
        """Let exactly the staged deployment through, complete or not.

        Raises InvalidArgument without `expected-digest`, NothingStaged, DigestMismatch, Held while somebody else holds
        it, SysrootLocked.
        """
        staged = expected_staged(self._by_role(Role.STAGED), options, needed=True)
        await self._orders.release(staged, initiator, str(options.get("reason", "")))
        self._ordered()

    def _ordered(self) -> None:
        if self._keeper is not None:
            self._keeper.wake()
        self._tell()

    # -- what the keeper asks for -----------------------------------------------------------------------------------

    def keep_bound(self, deployment: Deployment) -> Job:
        known_only = Role.BOOTED in deployment.roles
        return self._bind(deployment, ITSELF, {}, known_only=known_only)[0]

    def bring_back(self, owed: Owed) -> Job:
        async def work(job: Job) -> Outcome:
            job.report(StageStarted(Stage.STAGE))
            staged = await self._backend.restage(owed, job.report)
            return Outcome(True, {"deployment": staged.key, "digest": owed.digest})

        return self._start("restage", work, ITSELF, {})[0]

    def _after_boot(self) -> Aftercare:
        def booted() -> Deployment | None:
            return self._by_role(Role.BOOTED)

        def checksum() -> str:
            deployment = booted()
            return deployment.checksum if deployment is not None and self._adoption.done() else ""

        def complete() -> bool:
            deployment = booted()
            return deployment is not None and self._view.decision(deployment).release

        async def clean_up() -> bool:
            job, _ = self.collect({}, ITSELF)
            while (result := (await job.wait(_LOOK_SECONDS))[0]) == "running":
                pass
            return result in ("success", "unchanged")

        return Aftercare(
            self.settings.paths.state,
            checksum=checksum,
            complete=complete,
            steady=self._rebooter.steady,
            collect=clean_up if self.settings.collect.after_boot else None,
            mend=self._mend_names,
        )

    async def _mend_names(self) -> None:
        """Names that activation could not give at boot, and the services that it barred for that, once all is there."""
        from lashd.running.activate import activate, read_report
        from lashd.running.booted import look

        if read_report(self.settings):
            booted = await asyncio.to_thread(look, self.settings)
            if booted is not None:
                await activate(self.settings, booted)
                self._tell()

    # -- news -------------------------------------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def job_new(self, job: Job) -> None:
        self._tell()

    def job_changed(self, job: Job, names: frozenset[str]) -> None:
        if "stage" in names:
            self._tell()

    def job_done(self, job: Job) -> None:
        if job.slot and job.result != "cancelled":
            self._last_error = (job.error_name, job.error_message)
        if job.slot:
            self._view.failures = {
                item: (job.error_name, progress.error)
                for item, progress in job.items.items()
                if progress.state == "failed" and progress.error
            }
            if self._keeper is not None:
                self._keeper.job_done(job)
        self._tell()

    def job_removed(self, job: Job) -> None:
        pass

    def _tell(self) -> None:
        self._rebooter.poke()
        for listener in self._listeners:
            listener.state_changed()

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _bind(
        self, deployment: Deployment, initiator: Initiator, options: Options, *, known_only: bool = False
    ) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            bound = await self._walk.bind(deployment, job.report, known_only=known_only)
            return Outcome(bound.changed, {"deployment": deployment.key, **plan_facts(bound.plan)})

        # By its key: whoever asks for the same in other words joins the job.
        return self._start("bind", work, initiator, {**options, "deployment": deployment.key})

    def _start(self, kind: str, work: Work, initiator: Initiator, options: Mapping[str, Any]) -> tuple[Job, bool]:
        async def after_adoption(job: Job) -> Outcome:
            await asyncio.wait([self._adoption])
            try:
                return await work(job)
            except BaseException:
                # A staging that did not come to its end leaves a hold on nothing.
                with contextlib.suppress(LashdError, OSError):
                    await self._backend.recover()
                raise

        return self.jobs.start(kind, after_adoption, initiator, options, yields=initiator is ITSELF)

    def _outlook(self) -> Outlook:
        """What a reboot now would bring."""
        deployments = self._view.deployments()
        booted = next((one for one in deployments if Role.BOOTED in one.roles), None)
        first = deployments[0] if deployments else None
        if booted is None or first is None or first is booted:
            return Outlook(booted=_identity(booted))
        staged = Role.STAGED in first.roles
        ready = first.declared if staged else self._view.decision(first).release
        return Outlook(_identity(booted), _identity(first), ready and self.jobs.active is None, not staged)

    async def _forget_staged(self) -> None:
        """The staged deployment was dropped on purpose: neither it nor what was said about it is to come back."""
        await asyncio.to_thread(self._shutdowns.give_order, None)
        if self._keeper is not None:
            await self._keeper.forget()


def _identity(deployment: Deployment | None) -> str:
    """The same for the same content staged twice."""
    return f"{deployment.stateroot}:{deployment.checksum}" if deployment is not None else ""
