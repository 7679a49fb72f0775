# SPDX-License-Identifier: Apache-2.0
"""The running daemon without its doors: what can be asked of it, and what it does then."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from typing import Any, Protocol

import lashd
from lashd.running.jobs import Initiator, Job, Jobs, Outcome, Work
from lashd.running.view import Row, View, deployment_row
from lashd.running.walk import Walk, plan_facts
from lashd.steps.adopt import adopt
from lashd.steps.record import Records
from lashd.things.host import HostBackend
from lashd.things.primary import PrimaryStore
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Role

log = logging.getLogger(__name__)

# Version of the document that Describe() returns; raised when a key changes its meaning or goes away.
DESCRIBE_VERSION = 1

Options = Mapping[str, Any]


class Listener(Protocol):
    def state_changed(self) -> None: ...


class Service:
    """Everything a door can ask for. Mutators return (job, joined) or raise LashdError; readers return plain rows."""

    def __init__(self, settings: Settings, backend: HostBackend) -> None:
        self.settings = settings
        self.jobs = Jobs()
        store = Store(settings.store, settings.store_run, settings.host.sysroot, skopeo=settings.tools.skopeo)
        records = Records(settings.paths.state / "records")
        self._backend = backend
        self._walk = Walk(backend, store, records, settings)
        self._view = View(backend, store, records, PrimaryStore(settings.paths.root))
        self._listeners: list[Listener] = []
        self._last_error = ("", "")
        self._generation = 1
        self._seen: object = None
        self._adoption: asyncio.Task[None]
        self.jobs.subscribe(self)

    async def start(self) -> None:
        """What is done once when the daemon comes up: leftovers of a killed one removed, a running host adopted.

        Adoption reads every layer, so it goes on in the background; what changes something waits for it.
        """
        await asyncio.to_thread(shutil.rmtree, self.settings.paths.state / "pull", ignore_errors=True)
        try:
            await self._backend.recover()
        except (LashdError, OSError) as error:
            log.warning("A hold that a killed daemon left could not be removed: %s", error)
        self._adoption = asyncio.create_task(self._adopt(), name="adoption")

    async def stop(self) -> None:
        """End the jobs and the adoption; what was fetched stays."""
        self._adoption.cancel()
        await asyncio.wait([self._adoption])
        await self.jobs.stop()

    async def _adopt(self) -> None:
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

    # -- what changes something -------------------------------------------------------------------------------------

    def upgrade(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            facts = await self._walk.upgrade(options.get("expected-digest"), job.report)
            return Outcome(facts is not None, facts or {})

        return self._start("upgrade", work, initiator, options)

    def rollback(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            facts = await self._walk.roll_back(drop_staged=options.get("drop-staged", False), report=job.report)
            return Outcome(facts is not None, facts or {})

        return self._start("rollback", work, initiator, options)

    def bind(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        deployment = self._one(options.get("deployment", Role.STAGED.value))

        async def work(job: Job) -> Outcome:
            bound = await self._walk.bind(deployment, job.report)
            return Outcome(bound.changed, {"deployment": deployment.key, **plan_facts(bound.plan)})

        return self._start("bind", work, initiator, options)

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

    # -- what can be read -------------------------------------------------------------------------------------------

    def list_bound(self, options: Options) -> list[Row]:
        return self._view.bound(self._view.selected(options.get("deployment", Role.BOOTED.value)), self._busy())

    def list_deployments(self, options: Options) -> list[Row]:
        everything = self._view.deployments()
        # In boot order; one that is held will not be finalised.
        following = next((one for one in everything if not (Role.STAGED in one.roles and one.locked)), None)
        return [
            deployment_row(one, ready=self._view.decision(one).release, next_boot=one is following)
            for one in everything
        ]

    def list_jobs(self, options: Options) -> list[Row]:
        return [job_row(job) for job in self.jobs.list()]

    def deployments(self) -> list[Row]:
        """Rows for the Deployment objects: ListDeployments' keys and `references`, what each binds."""
        return [
            row
            | {"references": sorted({image["normalised"] for image in self._rows(row["key"]) if image["normalised"]})}
            for row in self.list_deployments({})
        ]

    def images(self) -> list[Row]:
        """Rows for the BoundImage objects: one per normalised reference over all deployments."""
        merged: dict[str, Row] = {}
        for row in self._view.bound(self._view.deployments(), self._busy()):
            if not row["normalised"]:
                continue
            known = merged.setdefault(row["normalised"], row | {"units": [], "used-by": [], "use-problems": []})
            for key, value in (("units", row["unit"]), ("used-by", row["deployment"])):
                if value not in known[key]:
                    known[key].append(value)
            known["use-problems"] += [
                problem for problem in row["use-problems"] if problem not in known["use-problems"]
            ]
            known["usable"] = not known["use-problems"]
        return list(merged.values())

    def properties(self) -> Row:
        """The Manager's properties. `Booted`, `Staged`, `Rollback` are keys of deployments, `ActiveJob` a job's id."""
        staged = self._by_role(Role.STAGED)
        active = self.jobs.active
        blocked = self.blocked_by()
        return {
            "Version": lashd.__version__,
            "HostKind": self._backend.kind,
            "State": self._state(staged, active),
            "Gate": "none" if staged is None else "held" if staged.locked else "released",
            "BlockedBy": blocked,
            "Booted": self._key(Role.BOOTED),
            "Staged": staged.key if staged else "",
            "Rollback": self._key(Role.ROLLBACK),
            "ActiveJob": active.id if active else 0,
            "LastError": self._last_error,
            "Generation": self.generation(),
        }

    def blocked_by(self) -> list[tuple[str, str]]:
        """Why the staged deployment would not be finalised by a reboot now: (code, sentence), most important first."""
        staged = self._by_role(Role.STAGED)
        if staged is None or (not staged.locked and self._view.decision(staged).release):
            return []
        reasons = list(self._view.decision(staged).reasons)
        if self.jobs.active is not None:
            reasons.append(("job-running", f"Job {self.jobs.active.id} ({self.jobs.active.kind}) is running."))
        return reasons or [
            ("not-released", "All bound images are present, but the deployment is still locked; run 'lashctl bind'.")
        ]

    def describe(self) -> str:
        """The whole state as one JSON document; docs/describe.schema.json is its schema."""
        properties = self.properties()
        document = {
            "schema": DESCRIBE_VERSION,
            "generation": properties["Generation"],
            "version": properties["Version"],
            "host": {"kind": properties["HostKind"], "sysroot": str(self.settings.host.sysroot)},
            "state": properties["State"],
            "gate": properties["Gate"],
            "blockedBy": [{"code": code, "message": sentence} for code, sentence in properties["BlockedBy"]],
            "lastError": {"name": self._last_error[0], "message": self._last_error[1]},
            "activeJob": properties["ActiveJob"],
            "deployments": self.list_deployments({}),
            "bound": self.list_bound({"deployment": "all"}),
            "jobs": self.list_jobs({}),
        }
        return json.dumps(document, sort_keys=True)

    async def sync(self) -> int:
        """Read everything from disk anew; returns the generation in which all of it is seen."""
        self._view.forget()
        return self.generation()

    def generation(self) -> int:
        """Rises with every change that a reader could see."""
        seen = (self._view.deployments(), self._walk.store.signature(), self._walk.records.vouched(), self._last_error)
        if self._seen is not None and seen != self._seen:
            self._generation += 1
        self._seen = seen
        return self._generation

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
        self._view.failures = (
            {
                item: (job.error_name, progress.error)
                for item, progress in job.items.items()
                if progress.state == "failed" and progress.error
            }
            if job.slot
            else self._view.failures
        )
        self._tell()

    def job_removed(self, job: Job) -> None:
        pass

    def _tell(self) -> None:
        for listener in self._listeners:
            listener.state_changed()

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _start(self, kind: str, work: Work, initiator: Initiator, options: Options) -> tuple[Job, bool]:
        async def after_adoption(job: Job) -> Outcome:
            await asyncio.wait([self._adoption])
            try:
                return await work(job)
            except BaseException:
                # A staging that did not come to its end leaves a hold on nothing.
                with contextlib.suppress(LashdError, OSError):
                    await self._backend.recover()
                raise

        return self.jobs.start(kind, after_adoption, initiator, options)

    def _one(self, which: str) -> Deployment:
        chosen = self._view.selected(which)
        if not chosen and which == Role.STAGED:
            raise LashdError(ErrorName.NOTHING_STAGED)
        if len(chosen) != 1:
            raise LashdError(
                ErrorName.INVALID_ARGUMENT,
                f"'{which[:100]}' names {len(chosen)} deployments, but this needs exactly one.",
            )
        return chosen[0]

    def _default(self) -> Deployment:
        return self._by_role(Role.STAGED) or self._one(Role.BOOTED.value)

    def _by_role(self, role: Role) -> Deployment | None:
        return next((deployment for deployment in self._view.deployments() if role in deployment.roles), None)

    def _key(self, role: Role) -> str:
        deployment = self._by_role(role)
        return deployment.key if deployment else ""

    def _rows(self, key: str) -> list[Row]:
        with contextlib.suppress(LashdError):
            return self._view.bound(self._view.selected(key), {})
        return []

    def _busy(self) -> dict[str, str]:
        job = self.jobs.active
        shown = {"fetching": "pulling", "unpacking": "pulling", "retrying": "pulling", "failed": "failed"}
        return {item: shown[at.state] for item, at in job.items.items() if at.state in shown} if job else {}

    def _state(self, staged: Deployment | None, active: Job | None) -> str:
        if active is not None:
            return "working"
        if staged is None:
            return "idle"
        if staged.locked:
            return "held"
        return "ready" if self._view.decision(staged).release else "incomplete"


def job_row(job: Job) -> Row:
    """One job as ListJobs shows it."""
    return {
        "id": job.id,
        "uuid": job.uuid,
        "kind": job.kind,
        "state": job.state,
        "stage": job.stage,
        "item": job.item,
        "fraction": job.fraction,
        "bytes-done": job.bytes_done,
        "bytes-total": job.bytes_total,
        "items-done": job.items_done,
        "items-total": job.items_total,
        "attempt": job.attempt,
        "created": job.created,
        "uid": job.initiator.uid,
        "initiator": job.initiator.name,
        "result": job.result,
        "error-name": job.error_name,
        "error-message": job.error_message,
    }
