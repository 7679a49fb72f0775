# SPDX-License-Identifier: Apache-2.0
"""The running daemon without its doors: what can be asked of it, and what it does then."""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import Any, Protocol

from lashd.running.adoption import Adoption
from lashd.running.asking import Asking, how_it_stands
from lashd.running.chores import Chores
from lashd.running.delay import Delay
from lashd.running.jobs import Initiator, Job, Jobs, Outcome
from lashd.running.keeper import Keeper
from lashd.running.orders import Orders, came_back, expected_owed, expected_staged
from lashd.running.outlook import look_ahead
from lashd.running.ownwork import OwnWork
from lashd.running.reading import Options, Reader
from lashd.running.reboot import Rebooter
from lashd.running.reboot_ways import Outlook
from lashd.running.starting import ITSELF, Starter
from lashd.running.view import View
from lashd.running.walk import Walk, plan_facts
from lashd.steps.protect import protection_of
from lashd.steps.record import Records
from lashd.steps.shutdowns import Shutdowns, boot_id
from lashd.things.bootc.others import others
from lashd.things.host import HostBackend
from lashd.things.primary import PrimaryStore
from lashd.things.store import Store
from lashd.words import events
from lashd.words.config import Settings
from lashd.words.errors import TOLD, ErrorName, LashdError
from lashd.words.model import Owed, Role
from lashd.words.progress import Stage, StageStarted

log = logging.getLogger(__name__)

# The option `reboot` of an upgrade, and what is asked for then.
_WHEN_TO_REBOOT = {"when-ready": "ready", "window": "window"}

# What BlockedBy tells as well, and what keeps nothing from a reboot.
_NO_HINDRANCE = frozenset(
    {"running-lacks", "next-try", "waiting", "wasted-reboots", "gate-ignored", "wrong-name", "outside-window"}
    | {"restart-needed", "other-updater", "settings"}
)


class Listener(Protocol):
    def state_changed(self) -> None: ...


class Service(Reader):
    """Everything a door can ask for. Mutators return (job, joined) or raise LashdError; readers return plain rows."""

    def __init__(self, settings: Settings, backend: HostBackend) -> None:
        store = Store(settings.store, settings.store_run, settings.host.sysroot, skopeo=settings.tools.skopeo)
        records = Records(settings.paths.state / "records")
        jobs, boot = Jobs(), boot_id()
        walk = Walk(backend, store, records, settings)
        view = View(backend, store, records, PrimaryStore(settings.paths.root))
        super().__init__(
            settings,
            backend,
            jobs=jobs,
            walk=walk,
            view=view,
            shutdowns=Shutdowns(settings.paths.state, settings.paths.run),
            rebooter=Rebooter(settings, self._look_ahead, boot=boot, changed=self._tell),
            boot=boot,
        )
        self._orders = Orders(backend, self._shutdowns)
        self._chores = Chores(backend, store, records, self._shutdowns, settings.paths.root)
        self._adoption = Adoption(view, store, records, self._tell)
        self._asking = Asking(jobs, lambda: how_it_stands(view, jobs))
        self._starter = Starter(jobs, backend, walk, self._adoption)
        self._own = OwnWork(
            *(settings, backend, view, self._adoption, self._starter),
            collect=lambda: self.collect({}, ITSELF)[0],
            changed=self._tell,
        )
        self._delay = Delay()
        self._barred_note = settings.paths.run / "activation.json"
        self._restarts_note = settings.paths.run / "restarts.json"
        self.stopping = False  # from then on less is known than before
        self.settings_problem = ""  # a sentence, when the settings' files could not be read
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.jobs.subscribe(self)

    async def start(self) -> None:
        """What is done once when the daemon comes up: leftovers of a killed one removed, a running host adopted.

        Adoption reads every layer, so it goes on in the background; what changes something waits for it. Whatever is
        staged is held before this returns.
        """
        await asyncio.to_thread(shutil.rmtree, self.settings.paths.state / "pull", ignore_errors=True)
        try:
            await self._backend.recover()
        except Exception as error:  # whatever it is, the host is looked after
            log.warning("A hold that a killed daemon left could not be removed: %s", error)
        await self._let_go()
        if self._by_role(Role.BOOTED) is not None:
            self.jobs.subscribe(self._delay)
            self._keeper = Keeper(
                *(self.settings, self._backend, self._view, self.jobs, self._shutdowns, self._own, self._tell),
                boot=self._boot,
            )
            await self._keeper.start()
            aftercare = self._own.aftercare(self._rebooter)
            self._tasks = [
                asyncio.create_task(aftercare.run(), name="aftercare"),
                asyncio.create_task(self._rebooter.run(), name="reboots"),
            ]
            if self._backend.pruned:
                self._tasks.append(asyncio.create_task(self._guard(), name="guard"))
        # It may be much, and nothing waits for it.
        self._tasks.append(asyncio.create_task(self._drop_set_aside(), name="layers set aside"))
        self._adoption.start(then=self._known)

    async def _guard(self) -> None:
        from lashd.running.guard import Guard  # on most hosts there is nothing to guard against

        walk, directory = self._walk, self.settings.paths.state / "records"
        protection = protection_of(self.settings, walk.store)
        await Guard(protection, walk.records, directory, lambda: self.jobs.active is not None).run()

    async def _let_go(self) -> None:
        """Where nothing is to be held, a lock that a killed worker left on what it staged holds it for nobody."""
        staged = self._by_role(Role.STAGED)
        if self.settings.gate.policy != "off" or staged is None or not staged.key_locked or staged.foreign_lock:
            return
        try:
            await self._backend.release(staged)
        except (LashdError, OSError) as error:
            log.warning("A lock that a killed worker left could not be removed: %s", error)

    async def _drop_set_aside(self) -> None:
        try:
            await self._walk.store.drop_set_aside()
        except (LashdError, OSError) as error:
            log.warning("Layers that were replaced before the last boot could not be removed: %s", error)

    def tell_settings(self, problem: str) -> None:
        """`problem` is why the settings' files are not what is in force, empty when they are."""
        self.settings_problem = problem
        self._tell()

    def working(self) -> bool:
        """Whether a job is running, whoever asked for it."""
        return any(job.active for job in self.jobs.list())

    def at_rest(self) -> bool:
        """Whether there is nothing to do, nothing to tell, and nothing to watch but what lashd-wake.path does as well.

        Where another program cleans up the store it is guarded, and the daemon stays.
        """
        try:
            return (
                not self.jobs.list()
                and not any(self._last_error)
                and not self.settings_problem
                and not self._backend.pruned
                and self._adoption.done
                and all(task.done() for task in self._tasks if task.get_name() != "reboots")
                and self._rebooter.at_rest()
                and (self._keeper is None or self._keeper.at_rest())
            )
        except (LashdError, OSError):
            return False

    async def stop(self) -> None:
        """End the keeper, the jobs and the adoption; what was fetched stays."""
        self.stopping = True
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.stop()
        for task in self._tasks:
            task.cancel()
            await asyncio.wait([task])
        await self._adoption.stop()
        await self.jobs.stop()
        await self._delay.stop()

    def _known(self) -> None:
        if self._keeper is not None:
            self._keeper.known()

    # -- what changes something, as a job ---------------------------------------------------------------------------

    def upgrade(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """The whole walk. Details: `held`, why it stays held; `staged`, when the newest one was staged already."""
        return self._upgrade("upgrade", options, initiator)

    def switch(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """As `upgrade`, to the host image `image` of the options, which the host follows then."""
        return self._upgrade("switch", options, initiator)

    def _upgrade(self, kind: str, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        when = _WHEN_TO_REBOOT.get(options.get("reboot", "no"))

        async def work(job: Job) -> Outcome:
            if when is not None:
                # Before hours of fetching, and not after them.
                self._rebooter.require(when)
            facts = await self._walk.upgrade(options.get("expected-digest"), job.report, to=options.get("image", ""))
            if when is not None and self._walk.deployment(Role.STAGED) is not None:
                await self._rebooter.request(when, name=initiator.name, uid=initiator.uid)
            more: dict[str, Any] = {"held": held} if (held := self._walk.held_back()) else {}
            if facts is None and self._walk.deployment(Role.STAGED) is not None:
                more["staged"] = True
            return Outcome(facts is not None, {**(facts or {}), **more})

        return self._starter.start(kind, work, initiator, options)

    def rollback(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            facts = await self._walk.roll_back(drop_staged=options.get("drop-staged", False), report=job.report)
            # Neither what was dropped nor what a reboot has lost before may come back over it.
            await self._forget_staged()
            if facts is not None:
                told = events.fields(
                    events.MessageId.ROLLBACK_QUEUED, deployment=facts["deployment"], uid=initiator.uid
                )
                log.warning("The next boot is the way back, to %s", facts["version"] or facts["deployment"], extra=told)
            return Outcome(facts is not None, facts or {})

        return self._starter.start("rollback", work, initiator, options)

    def bind(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        deployment = self._one(options.get("deployment", Role.STAGED.value))
        return self._starter.bind(deployment, initiator, options)

    def discard(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Drop the staged deployment, or give up what a reboot has lost; the one to roll back to stays.

        Details `deployment`, and `given-up` when it was only about to be staged again.
        """
        lost = self.lost()
        if lost is not None:
            return self._give_up(expected_owed(lost, options), options, initiator)
        staged = expected_staged(self._by_role(Role.STAGED), options)

        async def work(job: Job) -> Outcome:
            # The boot entries are written as a whole or not at all.
            job.protect()
            job.report(StageStarted(Stage.DISCARD))
            await self._backend.discard(staged)
            await self._forget_staged()
            return Outcome(True, {"deployment": staged.key})

        return self._starter.start("discard", work, initiator, options)

    def _give_up(self, lost: Owed, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            job.protect()
            job.report(StageStarted(Stage.DISCARD))
            staged = came_back(self._by_role(Role.STAGED), lost)
            if staged is not None:
                await self._backend.discard(staged)
            await self._forget_staged()
            return Outcome(True, {"deployment": lost.deployment} | ({} if staged else {"given-up": True}))

        return self._starter.start("discard", work, initiator, options)

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

        return self._asking.start("plan", work, initiator, options)

    def check(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Is there a newer host image, and have floating bound images moved on? Changes nothing."""

        async def work(job: Job) -> Outcome:
            job.report(StageStarted(Stage.PLAN))
            facts = await self._walk.newest()
            return Outcome(False, {**facts, **await self._walk.moved(self._default())})

        return self._asking.start("check", work, initiator, options)

    def verify(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Compare the store with what is recorded for a deployment."""
        deployment = self._one(options.get("deployment", Role.BOOTED.value))

        async def work(job: Job) -> Outcome:
            try:
                return await self._chores.verify(deployment, job, deep=options.get("deep", False))
            finally:
                # What was found damaged is not vouched for any more.
                self._ordered()

        return self.jobs.start("verify", work, initiator, options, slot=False)

    def collect(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Remove from the store what nobody needs."""

        async def work(job: Job) -> Outcome:
            return await self._chores.collect(job, dry_run=options.get("dry-run", False))

        return self._starter.start("collect", work, initiator, options)

    def reboot(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Start the reboot, remember that it is wanted, or (`when` = `never`) forget that. The job ends then.

        Details: `state` (`started`, `waiting`, `withdrawn`, or `nothing` when there was nothing to forget), and what is
        wanted now as `when`; and `missing`, sentences on what the next system lacks and is started without.
        """

        async def work(job: Job) -> Outcome:
            when, lacks = options.get("when", "now"), self._lacks()
            if when == "never":
                changed = await self._rebooter.withdraw(name=initiator.name, uid=initiator.uid)
                state = "withdrawn" if changed else "nothing"
            else:
                try:
                    changed, state = True, await self._rebooter.request(when, name=initiator.name, uid=initiator.uid)
                except LashdError as error:
                    raise self._held() if error.name is ErrorName.HELD else error from error
            details = {"state": state, "when": self._rebooter.row()["when"]}
            return Outcome(changed, details | ({"missing": lacks} if state == "started" and lacks else {}))

        return self.jobs.start("reboot", work, initiator, options, slot=False)

    def blocked_by(self) -> list[tuple[str, str]]:
        found = super().blocked_by() + self._rebooter.blocked()
        if self._barred_note.exists():
            from lashd.running.activate import read_report

            found += [("wrong-name", sentence) for sentence in read_report(self.settings).values()]
        if self._restarts_note.exists():
            from lashd.running.restarts import pending

            found += [("restart-needed", sentence) for sentence in pending(self.settings)]
        found += [("other-updater", sentence) for sentence in others(self.settings.paths.root)]
        return found + ([("settings", self.settings_problem)] if self.settings_problem else [])

    # -- orders, which take no job ----------------------------------------------------------------------------------

    async def hold(self, options: Options, initiator: Initiator) -> None:
        """Keep the staged deployment back, complete or not. Raises NothingStaged, DigestMismatch."""
        staged = expected_staged(self._by_role(Role.STAGED), options)
        await self._orders.hold(staged, initiator, str(options.get("reason", "")))
        self._ordered()

    async def release(self, options: Options, initiator: Initiator) -> None:
        """Take back that the staged deployment is held; exactly this one is let through although images are missing.

        Raises InvalidArgument without `expected-digest`, NothingStaged, DigestMismatch, Held while somebody else holds
        it, SysrootLocked.
        """
        staged = expected_staged(self._by_role(Role.STAGED), options, needed=True)
        complete = self._view.decision(staged).release
        await self._orders.release(staged, initiator, str(options.get("reason", "")), complete=complete)
        self._ordered()

    def _look_ahead(self) -> Outlook:
        if self.settings.gate.policy != "off":
            return look_ahead(self._view, self.jobs)
        # Nobody declares anything ready then, and the hold that every staging begins with is of no weight.
        return look_ahead(self._view, self.jobs, self._passes)

    def _ordered(self) -> None:
        if self._keeper is not None:
            self._keeper.wake()
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

    def _lacks(self) -> list[str]:
        """What the gate would only warn of: sentences."""
        staged = self._by_role(Role.STAGED)
        if staged is None or self.settings.gate.policy == "off" or not self._passes(staged):
            return []
        return [sentence for _, sentence in self._view.decision(staged).reasons]

    def _held(self) -> LashdError:
        """Why there is no reboot into the next system now, by all that stands in its way."""
        job = self.jobs.active
        why = [sentence for code, sentence in self.blocked_by() if code not in _NO_HINDRANCE]
        if not why and job is not None:
            why = [f"Job {job.id} ({job.kind}) is running."]
        more = [f"And {len(why) - TOLD} more."] if len(why) > TOLD else []
        return LashdError(ErrorName.HELD, " ".join(["There is no reboot now.", *why[:TOLD], *more]) if why else "")

    async def _forget_staged(self) -> None:
        """The staged deployment was dropped on purpose: neither it nor what was said about it is to come back."""
        await asyncio.to_thread(self._shutdowns.give_order, None)
        if self._keeper is not None:
            await self._keeper.forget()
