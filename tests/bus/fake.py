# SPDX-License-Identifier: Apache-2.0
"""A double of the running service for the tests of the door: real jobs, invented host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from lashd.running.jobs import Initiator, Job, Jobs, Outcome
from lashd.words.errors import ErrorName, LashdError

CHECKSUM = "ab" * 32
BOOTED = f"{CHECKSUM}.0"
STAGED = f"{'cd' * 32}.1"
AGENT = "quay.io/edge/agent:latest"


def deployment(key: str = BOOTED, *roles: str, references: tuple[str, ...] = (AGENT,)) -> dict[str, Any]:
    return {
        "key": key,
        "stateroot": "default",
        "checksum": key.partition(".")[0],
        "serial": int(key.partition(".")[2]),
        "roles": sorted(roles or ("booted",)),
        "image": "quay.io/edge/os:stable",
        "digest": "sha256:" + "1" * 64,
        "version": "42.1",
        "timestamp": 1700000000,
        "locked": "staged" in roles,
        "ready": True,
        "references": list(references),
    }


def image(reference: str = AGENT, *, state: str = "present", used_by: tuple[str, ...] = (BOOTED,)) -> dict[str, Any]:
    return {
        "deployment": used_by[0],
        "unit": "agent.container",
        "reference": reference,
        "normalised": reference,
        "wanted-digest": "sha256:" + "2" * 64,
        "present-digest": "sha256:" + "2" * 64,
        "state": state,
        "bytes": 12345,
        "usable": False,
        "use-problems": ["auto-update"],
        "error-name": "",
        "error-message": "",
        "units": ["agent.container"],
        "used-by": list(used_by),
    }


class FakeService:
    """`go_on` lets the running job's work go on; `outcome` is what it then comes to (an Outcome or an exception)."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.listeners: list[Any] = []
        self.deployment_rows = [deployment()]
        self.image_rows = [image()]
        self.values: dict[str, Any] = {"State": "idle", "Gate": "none", "LastError": ("", ""), "Generation": 1}
        self.values |= {"NextTry": 0, "LastShutdown": {}}
        self.history: list[dict[str, Any]] = []
        self.go_on = asyncio.Event()
        self.outcome: Outcome | Exception = Outcome(True, {"deployment": STAGED, "bytes-to-fetch": 5})
        self.started: list[tuple[str, dict[str, Any], Initiator]] = []
        self.broken: Exception | None = None
        self.settings_problem = ""
        self.rests = False
        self.last_asked = 0.0
        self.jobs.subscribe(self)

    def tell_settings(self, problem: str) -> None:
        self.settings_problem = problem
        self.tell()

    def working(self) -> bool:
        return self.jobs.active is not None

    def at_rest(self) -> bool:
        return self.rests and not self.working()

    def start(self, kind: str, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        self.started.append((kind, dict(options), initiator))
        if options.get("deployment") == "nowhere":
            raise LashdError(ErrorName.INVALID_ARGUMENT, "There is no deployment 'nowhere'.")

        async def work(job: Job) -> Outcome:
            await self.go_on.wait()
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

        return self.jobs.start(kind, work, initiator, options, slot=kind != "plan")

    def upgrade(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("upgrade", options, initiator)

    def switch(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("switch", options, initiator)

    def rollback(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("rollback", options, initiator)

    def bind(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("bind", options, initiator)

    def check(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("check", options, initiator)

    def plan(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("plan", options, initiator)

    def verify(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("verify", options, initiator)

    def collect(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("collect", options, initiator)

    def discard(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("discard", options, initiator)

    def reboot(self, options: Mapping[str, Any], initiator: Initiator) -> tuple[Job, bool]:
        return self.start("reboot", options, initiator)

    async def hold(self, options: Mapping[str, Any], initiator: Initiator) -> None:
        self.order("hold", options, initiator)

    async def release(self, options: Mapping[str, Any], initiator: Initiator) -> None:
        self.order("release", options, initiator)

    def order(self, kind: str, options: Mapping[str, Any], initiator: Initiator) -> None:
        if self.broken:
            raise self.broken
        self.started.append((kind, dict(options), initiator))
        self.values["Gate"] = "held" if kind == "hold" else "released"

    def list_bound(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.broken:
            raise self.broken
        return [{key: value for key, value in row.items() if key not in ("units", "used-by")} for row in self.images()]

    def list_deployments(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "references"} for row in self.deployments()]

    def list_jobs(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {"id": job.id, "kind": job.kind, "state": job.state, "fraction": job.fraction} for job in self.jobs.list()
        ]

    async def get_history(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.started.append(("history", dict(options), Initiator(-1)))
        return self.history

    def describe(self) -> str:
        return '{"schema": 1}'

    async def sync(self) -> int:
        return int(self.values["Generation"])

    def properties(self) -> dict[str, Any]:
        active = self.jobs.active
        return {
            "Version": "0.1.0",
            "HostKind": "ostree",
            "BlockedBy": [("image-missing", "One is missing.")],
            "Booted": BOOTED,
            "Staged": next((row["key"] for row in self.deployment_rows if "staged" in row["roles"]), ""),
            "Rollback": "",
            "ActiveJob": active.id if active else 0,
            **self.values,
            "State": "working" if active else self.values["State"],
        }

    def deployments(self) -> list[dict[str, Any]]:
        return self.deployment_rows

    def images(self) -> list[dict[str, Any]]:
        return self.image_rows

    def subscribe(self, listener: Any) -> None:
        self.listeners.append(listener)

    async def stop(self) -> None:
        await self.jobs.stop()

    def tell(self) -> None:
        self.values["Generation"] += 1
        for listener in self.listeners:
            listener.state_changed()

    def job_new(self, job: Job) -> None:
        self.tell()

    def job_changed(self, job: Job, names: frozenset[str]) -> None:
        pass

    def job_done(self, job: Job) -> None:
        self.values["LastError"] = (job.error_name, job.error_message)
        self.tell()

    def job_removed(self, job: Job) -> None:
        pass
