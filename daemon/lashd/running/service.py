# SPDX-License-Identifier: Apache-2.0
"""The running daemon without its doors: what can be asked of it, and what it does then."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from typing import Protocol

from lashd.running.adoption import Adoption
from lashd.running.asking import Asking, how_it_stands
from lashd.running.chores import Chores
from lashd.running.delay import Delay
from lashd.running.history import History, Past
from lashd.running.interrupted import Found, carries_on, recalled, told
from lashd.running.jobs import Job, Jobs
from lashd.running.jobs import Listener as JobListener
from lashd.running.keeper import Keeper
from lashd.running.numbers import Numbers
from lashd.running.orders import Orders
from lashd.running.outlook import look_ahead
from lashd.running.ownwork import OwnWork
from lashd.running.reading import Parts
from lashd.running.reboot import Rebooter
from lashd.running.reboot_ways import Outlook
from lashd.running.requests import Requests
from lashd.running.sets import Sets
from lashd.running.starting import ITSELF, Starter
from lashd.running.view import View
from lashd.running.walk import Walk
from lashd.steps.protect import protection_of
from lashd.steps.record import Records
from lashd.steps.shutdowns import Shutdowns, boot_id
from lashd.things.host import HostBackend
from lashd.things.primary import PrimaryStore
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.memory import give_back
from lashd.words.model import Role

log = logging.getLogger(__name__)

# After the last work of the start (seconds).
REST_SECONDS = 0.5


class Listener(Protocol):
    def state_changed(self) -> None: ...


class Service(Requests, JobListener):
    """Everything a door can ask for. Mutators return (job, joined) or raise LashdError; readers return plain rows."""

    def __init__(self, settings: Settings, backend: HostBackend) -> None:
        store = Store(settings.store, settings.store_run, settings.host.sysroot, skopeo=settings.tools.skopeo)
        records = Records(settings.paths.state / "records")
        shutdowns = Shutdowns(settings.paths.state, settings.paths.run)
        boot = boot_id()
        self._numbers = Numbers(settings.paths.state / "job-numbers.json")
        jobs = Jobs(self._numbers.take)
        self._history = History(settings.paths.state, settings.paths.run, boot)
        walk = Walk(backend, store, records, settings)
        view = View(backend, store, records, PrimaryStore(settings.paths.root))
        self._adoption = Adoption(view, store, records, self._tell)
        rebooter = Rebooter(settings, self._look_ahead, boot=boot, changed=self._tell)
        super().__init__(
            Parts(settings, backend, jobs, walk, view, shutdowns, rebooter, boot, self._history),
            orders=Orders(backend, shutdowns),
            chores=Chores(backend, store, records, shutdowns, settings.paths.root),
            starter=Starter(jobs, backend, walk, self._adoption),
            asking=Asking(jobs, lambda: how_it_stands(view, jobs)),
            changed=self._tell,
        )
        self._own = OwnWork(
            *(settings, backend, view, self._adoption, self._starter),
            collect=lambda: self.collect({}, ITSELF)[0],
            changed=self._tell,
        )
        self._delay = Delay()
        self.stopping = False  # from then on less is known than before
        self.last_asked = 0.0  # when, beside the bus, on the clock that never jumps
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._sets = Sets(view, records, self._adoption, self._history, boot)
        for listener in (self._history, self._sets, self):
            self.jobs.subscribe(listener)

    async def start(self) -> None:
        """What is done once when the daemon comes up: leftovers of a killed one removed, a running host adopted.

        Adoption reads every layer, so it goes on in the background; what changes something waits for it. Whatever is
        staged is held before this returns.
        """
        opening = asyncio.create_task(self._history.start(self._recall), name="the past")
        await asyncio.to_thread(shutil.rmtree, self.settings.paths.state / "pull", ignore_errors=True)
        try:
            await self._backend.recover()
        except Exception as error:  # whatever it is, the host is looked after
            log.warning("A hold that a killed daemon left could not be removed: %s", error)
        await self._let_go()
        past = await opening
        await self._numbers.start(past.last_number if past is not None else None)
        if past is not None:
            self._recall(past)
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
        self._tasks.append(asyncio.create_task(self._sets.run(), name="sets"))
        self._tasks.append(asyncio.create_task(self._come_to_rest(), name="coming to rest"))

    async def _come_to_rest(self) -> None:
        """What it took to come up is a megabyte more than what it takes to stay."""
        await self._adoption.ended()
        await asyncio.sleep(REST_SECONDS)
        give_back()

    def _recall(self, past: Past) -> None:
        """Show the jobs that clients may still ask for, and say of those that were interrupted what happens now."""
        owed, gate = self._shutdowns.owed(), self.settings.gate
        staged = self._by_role(Role.STAGED)
        found = Found(
            boot=self._boot,
            staged=staged.key if staged is not None else "",
            comes_back=owed is not None and owed.boot != self._boot and gate.restage and gate.policy != "off",
            bootc=self._backend.kind != "ostree",
        )
        interrupted = [told(entry, found, int(time.time())) for entry in past.interrupted]
        for entry in sorted([*past.ended, *interrupted], key=lambda entry: entry.id):
            self.jobs.recall(recalled(entry, self.jobs))
        for entry in interrupted:
            log.warning("%s", entry.error_message, extra={"LASHD_JOB": entry.uuid, "LASHD_KIND": entry.kind})
            self._history.put(entry)
            if entry.slot:
                self._last_error = (entry.error_name, entry.error_message)
            if carries_on(entry):
                self._own.carry_on(entry)
        self._tell()

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
                # The age of the file says whether lashd lives.
                and not self.settings.metrics.textfile
                and self._adoption.done
                and self._history.written
                and all(task.done() for task in self._tasks if task.get_name() not in ("reboots", "sets"))
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
        self._sets.look(again=True)
        await self._history.stop()
        await self._numbers.stop()

    def _known(self) -> None:
        if self._keeper is not None:
            self._keeper.known()

    def _look_ahead(self) -> Outlook:
        if self.settings.gate.policy != "off":
            return look_ahead(self._view, self.jobs)
        # Nobody declares anything ready then, and the hold that every staging begins with is of no weight.
        return look_ahead(self._view, self.jobs, self._passes)

    # -- news -------------------------------------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def job_new(self, job: Job) -> None:
        self._own.overtaken(job)
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

    def _tell(self) -> None:
        self._rebooter.poke()
        for listener in self._listeners:
            listener.state_changed()
