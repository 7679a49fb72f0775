# SPDX-License-Identifier: Apache-2.0
"""The running service as objects on the bus: arguments in, authorise, start or read, results out. Nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

from lashd.bus.authorise import Authority
from lashd.bus.contract import BOUND_IMAGE, DEPLOYMENT, JOB, MANAGER, ROOT, contract
from lashd.bus.journal import notify
from lashd.bus.message import Settled
from lashd.bus.options import DEFAULT_WAIT, Options, decode, decode_image
from lashd.bus.paths import deployment_path, image_path, job_path
from lashd.bus.rows import to_row
from lashd.bus.tree import Call, Export, Handler, Tree
from lashd.running.jobs import Initiator, Job, Jobs
from lashd.words.errors import LashdError

log = logging.getLogger(__name__)

# Values of an option that imply no further action.
NOT_IMPLIED = (None, False, "no")

Row = dict[str, Any]
Start = Callable[[Options, Initiator], tuple[Job, bool]]


class ServiceListener(Protocol):
    def state_changed(self) -> None: ...


class Service(Protocol):
    """What the door needs of `lashd.running.service.Service`."""

    jobs: Jobs

    def upgrade(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    def switch(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    def rollback(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    def bind(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    def check(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    def plan(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    def verify(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    def collect(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    def discard(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    def reboot(self, options: Options, initiator: Initiator) -> tuple[Job, bool]: ...
    async def hold(self, options: Options, initiator: Initiator) -> None: ...
    async def release(self, options: Options, initiator: Initiator) -> None: ...
    def list_bound(self, options: Options) -> list[Row]: ...
    def list_deployments(self, options: Options) -> list[Row]: ...
    def list_jobs(self, options: Options) -> list[Row]: ...
    async def get_history(self, options: Options) -> list[Row]: ...
    def describe(self) -> str: ...
    async def sync(self) -> int: ...
    def properties(self) -> Row: ...
    def deployments(self) -> list[Row]: ...
    def images(self) -> list[Row]: ...
    def subscribe(self, listener: ServiceListener) -> None: ...
    def tell_settings(self, problem: str) -> None: ...
    def working(self) -> bool: ...
    def at_rest(self) -> bool: ...
    @property
    def last_asked(self) -> float: ...
    async def stop(self) -> None: ...


class Door:
    """Fills `tree` with the objects of `service` and keeps them up to date."""

    def __init__(self, tree: Tree, service: Service, authority: Authority) -> None:
        self._tree = tree
        self._service = service
        self._authority = authority
        # Rows of the Deployment and BoundImage objects by path, as they were last seen.
        self._rows: dict[str, Row] = {}
        self._looking = False
        self._status = ""
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    def open(self) -> None:
        """Export everything there is, and follow what happens from now on."""
        self._tree.add(ROOT, Export(contract()[MANAGER], self.manager_methods(), self._manager_row))
        self._tree.look = self.state_changed
        self._service.subscribe(self)
        self._service.jobs.subscribe(self)
        self.state_changed()

    # -- methods ----------------------------------------------------------------------------------------------------

    def manager_methods(self) -> dict[str, Handler]:
        service = self._service
        return {
            "Upgrade": self._mutator("Upgrade", service.upgrade, "upgrade", {"reboot": "reboot"}),
            "Switch": self._mutator("Switch", service.switch, "switch", {"reboot": "reboot"}),
            "Rollback": self._mutator("Rollback", service.rollback, "rollback", {"drop-staged": "discard"}),
            "Bind": self._mutator("Bind", service.bind, "bind"),
            "Check": self._mutator("Check", service.check, "check"),
            "Plan": self._mutator("Plan", service.plan, "plan"),
            "Verify": self._mutator("Verify", service.verify, "verify"),
            "Collect": self._mutator("Collect", service.collect, "collect"),
            "Discard": self._mutator("Discard", service.discard, "discard"),
            "Reboot": self._mutator("Reboot", service.reboot, "reboot"),
            "Hold": self._order("Hold", service.hold, "hold"),
            "Release": self._order("Release", service.release, "release"),
            "ListBound": self._lister("ListBound", service.list_bound, lambda row: image_path(row["normalised"])),
            "ListDeployments": self._lister(
                "ListDeployments", service.list_deployments, lambda row: deployment_path(row["key"])
            ),
            "ListJobs": self._lister("ListJobs", service.list_jobs, lambda row: job_path(row["id"])),
            "GetHistory": self._history,
            "Describe": lambda call: [service.describe()],
            "Sync": self._sync,
        }

    def job_methods(self, job: Job) -> dict[str, Handler]:
        return {"Cancel": partial(self._cancel, job), "Wait": partial(self._wait, job)}

    def _mutator(
        self, method: str, start: Start, action: str, implied: Mapping[str, str] | None = None
    ) -> Callable[[Call], Awaitable[list[Any]]]:
        """A method that starts a job. `implied`: an option that, when set, needs a further action.

        An image in front of the options is one of them to the service.
        """

        async def handle(call: Call) -> list[Any]:
            *image, given = call.body
            options = decode(method, given)
            if image:
                options["image"] = decode_image(method, *image)
            actions = [action] + [more for key, more in (implied or {}).items() if options.get(key) not in NOT_IMPLIED]
            # Authorised first, and only then does the service look at the state and take the slot.
            initiator = await self._authority.authorise(call, *actions, verb=method.lower(), options=options)
            job, joined = start(options, initiator)
            if joined:
                job.details["joined"] = True
                self.job_changed(job, frozenset({"details"}))
            return [job_path(job.id)]

        return handle

    def _order(
        self, method: str, give: Callable[[Options, Initiator], Awaitable[None]], action: str
    ) -> Callable[[Call], Awaitable[list[Any]]]:
        """A method that changes something at once, without a job."""

        async def handle(call: Call) -> list[Any]:
            options = decode(method, call.body[0])
            initiator = await self._authority.authorise(call, action, options=options)
            await give(options, initiator)
            self.state_changed()
            return []

        return handle

    def _lister(self, method: str, read: Callable[[Options], list[Row]], path: Callable[[Row], str]) -> Handler:
        # A thousand values to wrap for a hundred images, and mostly they are those of the last time.
        told: list[Row] = []
        answer = Settled([[]])

        def handle(call: Call) -> list[Any]:
            nonlocal told, answer
            rows = read(decode(method, call.body[0]))
            if rows != told:
                told, answer = list(rows), Settled([[to_row(row | {"object": path(row)}) for row in rows]])
            return answer

        return handle

    async def _history(self, call: Call) -> list[Any]:
        options = decode("GetHistory", call.body[0])
        # Every user gets one answer after the other: 500 long jobs are some tenths of a second and eight megabytes, and
        # in between all others have their turn.
        async with self._turns.setdefault(call.uid, asyncio.Lock()):
            return [[to_row(row) for row in await self._service.get_history(options)]]

    async def _sync(self, call: Call) -> list[Any]:
        generation = await self._service.sync()
        self.state_changed()
        return [generation]

    async def _cancel(self, job: Job, call: Call) -> list[Any]:
        options = decode("Cancel", call.body[0])
        if call.uid != job.initiator.uid:
            verb = f"cancel job {job.id}, {job.kind} of user {job.initiator.uid}"
            await self._authority.authorise(call, "cancel-other", verb=verb, options=options)
        job.cancel()
        return []

    async def _wait(self, job: Job, call: Call) -> list[Any]:
        options = decode("Wait", call.body[0])
        result, name, message = await job.wait(options.get("timeout-ms", DEFAULT_WAIT) / 1000)
        return [result, name, message]

    # -- properties -------------------------------------------------------------------------------------------------

    def _manager_row(self) -> Row:
        self.state_changed()  # what the properties name must be there before they are answered
        return manager_row(self._service.properties())

    # -- news: called by the service and its jobs, which a mistake of ours must not harm -----------------------------

    def state_changed(self) -> None:
        if self._looking:
            return
        self._looking = True
        try:
            self._show()
        except LashdError as error:
            log.warning("The objects on the bus could not be brought up to date: %s", error)
        except Exception:
            log.exception("The objects on the bus could not be brought up to date")
        finally:
            self._looking = False

    def job_new(self, job: Job) -> None:
        # Shown already when the service heard of it before us; this does not rely on that order.
        self._safely(self._know, job)
        self._safely(self._tree.signal, ROOT, MANAGER, "JobNew", [job.id, job_path(job.id), job.kind])

    def job_changed(self, job: Job, names: frozenset[str]) -> None:
        self._safely(self._tree.refresh, job_path(job.id), {camel(name) for name in names})

    def job_done(self, job: Job) -> None:
        # Whoever hears that it is done must find all of it there.
        self._safely(self._tree.refresh, job_path(job.id))
        news = [job.id, job_path(job.id), job.kind, job.result, job.error_name, job.error_message]
        self._safely(self._tree.signal, ROOT, MANAGER, "JobDone", news)

    def job_removed(self, job: Job) -> None:
        if job_path(job.id) in self._tree:
            self._safely(self._tree.remove, job_path(job.id))

    def _safely(self, tell: Callable[..., None], *arguments: Any) -> None:
        try:
            tell(*arguments)
        except Exception:
            log.exception("News could not be told on the bus")

    def _know(self, job: Job) -> None:
        path = job_path(job.id)
        if path not in self._tree:
            self._tree.add(path, Export(contract()[JOB], self.job_methods(job), partial(job_row, job)))

    def _show(self) -> None:
        """Bring objects up to date: what others name comes first, what nobody names any more goes last."""
        for job in self._service.jobs.list():
            self._know(job)
        images = {image_path(row["normalised"]): image_row(row) for row in self._service.images()}
        deployments = {deployment_path(row["key"]): deployment_row(row) for row in self._service.deployments()}
        gone = [path for path in self._rows if path not in images and path not in deployments]
        self._rows |= images | deployments
        self._show_rows(images, BOUND_IMAGE)
        self._show_rows(deployments, DEPLOYMENT)
        self._tree.refresh(ROOT)
        self._tell_systemd()
        for path in gone:
            self._tree.remove(path)
            del self._rows[path]

    def _tell_systemd(self) -> None:
        """What `systemctl status` shows: the job that runs, else how the staged deployment stands."""
        properties = self._service.properties()
        running = next((job for job in self._service.jobs.list() if job.id == properties.get("ActiveJob")), None)
        line = status_line(running, str(properties.get("State")), properties.get("BlockedBy") or ())
        if line != self._status:
            self._status = line
            notify(f"STATUS={line}")

    def _show_rows(self, paths: Iterable[str], interface: str) -> None:
        for path in paths:
            if path in self._tree:
                self._tree.refresh(path)
            else:
                self._tree.add(path, Export(contract()[interface], {}, partial(self._rows.__getitem__, path)))


def status_line(running: Job | None, state: str, blocked: Sequence[tuple[str, str]]) -> str:
    """One line, whatever names it is made of."""
    if running is not None:
        line = f"Job {running.id} ({running.kind}): {running.stage or 'starting'}"
    elif blocked and state != "idle":
        line = f"The staged deployment is {state}: {blocked[0][1]}"
    elif blocked:
        line = blocked[0][1]
    else:
        line = "The staged deployment is ready." if state == "ready" else "Nothing is staged."
    return " ".join(line.split())[:200]


def camel(name: str) -> str:
    """`error_name` → `ErrorName`, `bytes-done` → `BytesDone`."""
    return "".join(part[:1].upper() + part[1:] for part in name.replace("-", "_").split("_"))


def manager_row(properties: Row) -> Row:
    """The service's properties with keys and ids made into paths."""
    return properties | {
        **{role: deployment_path(properties.get(role) or "") for role in ("Booted", "Staged", "Rollback")},
        "ActiveJob": job_path(properties.get("ActiveJob") or 0),
    }


def deployment_row(row: Row) -> Row:
    """The properties of a Deployment object."""
    return {camel(key): value for key, value in row.items()} | {
        "BoundImages": [image_path(reference) for reference in row["references"]]
    }


def image_row(row: Row) -> Row:
    """The properties of a BoundImage object."""
    return {camel(key): value for key, value in row.items()} | {
        "Size": row["bytes"],
        "UsedBy": [deployment_path(key) for key in row["used-by"]],
        "LastError": (row["error-name"], row["error-message"]),
    }


def job_row(job: Job) -> Row:
    """The properties of a Job object."""
    asked_by = job.initiator
    return {camel(name): getattr(job, name) for name in _JOB_ATTRIBUTES} | {
        "Initiator": {"uid": asked_by.uid, "unit": asked_by.unit, "name": asked_by.name},
        "Items": [(at.item, at.state, at.bytes_done, at.bytes_total) for at in job.items.values()],
    }


_JOB_ATTRIBUTES = (
    *("id", "uuid", "kind", "created", "options", "state", "stage", "item", "fraction", "bytes_done", "bytes_total"),
    *("items_done", "items_total", "attempt", "next_attempt", "cancellable", "result", "error_name", "error_message"),
    "details",
)
