# SPDX-License-Identifier: Apache-2.0
"""What can be asked of the running daemon: rows, properties and documents, from files and memory.

Reading is free of locks, processes and the network, and needs no right.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import lashd
from lashd.running.blocked import Situation, reasons
from lashd.running.history import History
from lashd.running.jobs import Job, Jobs
from lashd.running.keeper import Keeper
from lashd.running.reboot import Rebooter
from lashd.running.rows import Row, entry_row, gate_word, job_row, order_row, owed_row, set_row, shutdown_row, told
from lashd.running.view import View, deployment_row
from lashd.running.walk import Walk
from lashd.steps.shutdowns import Shutdowns, still_owed
from lashd.things.host import HostBackend
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Order, Owed, Role
from lashd.words.progress import Stage

# Version of the document that Describe() returns; raised when a key changes its meaning or goes away.
DESCRIBE_VERSION = 1
# So many rows of the history are given when nobody says how many.
HISTORY_ROWS = 50

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the service is made of, as far as it is read; `boot` is the id of this boot."""

    settings: Settings
    backend: HostBackend
    jobs: Jobs
    walk: Walk
    view: View
    shutdowns: Shutdowns
    rebooter: Rebooter
    boot: str
    history: History


class Reader:
    """The readers of the service; whoever changes something derives from it."""

    def __init__(self, parts: Parts) -> None:
        self.settings = parts.settings
        self.jobs = parts.jobs
        self._backend = parts.backend
        self._walk = parts.walk
        self._view = parts.view
        self._shutdowns = parts.shutdowns
        self._rebooter = parts.rebooter
        self._boot = parts.boot
        self._history = parts.history
        self._verdict = parts.shutdowns.verdict()
        self._keeper: Keeper | None = None  # there is none where nothing is booted
        self._last_error = ("", "")
        self._generation = 1
        self._seen: object = None

    def list_bound(self, options: Options) -> list[Row]:
        return self._view.bound(self._view.selected(options.get("deployment", Role.BOOTED.value)), self._busy())

    def list_deployments(self, options: Options) -> list[Row]:
        everything = self._view.deployments()
        # In boot order; one that is held will not be finalised.
        following = next((one for one in everything if Role.STAGED not in one.roles or self._passes(one)), None)
        return [
            deployment_row(one, ready=self._view.decision(one).release, next_boot=one is following)
            for one in everything
        ]

    def list_jobs(self, options: Options) -> list[Row]:
        return [job_row(job) for job in self.jobs.list()]

    async def get_history(self, options: Options) -> list[Row]:
        """The newest first: jobs, also those that run, or with `kind` = `sets` what ran. Raises what History does."""
        how = {"limit": options.get("limit", HISTORY_ROWS), "since": options.get("since", 0)}
        if options.get("kind") == "sets":
            if "job" in options:
                raise LashdError(ErrorName.INVALID_ARGUMENT, "The option 'job' does not go with the kind 'sets'.")
            return [set_row(entry, self._boot) for entry in await self._history.sets(**how)]
        return [entry_row(entry) for entry in await self._history.jobs(**how, number=options.get("job", 0))]

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
        return {
            "Version": lashd.__version__,
            "HostKind": self._backend.kind,
            "State": self._state(staged, active),
            "Gate": gate_word(staged, passes=staged is not None and self._passes(staged)),
            "BlockedBy": self.blocked_by(),
            "Booted": self._key(Role.BOOTED),
            "Staged": staged.key if staged else "",
            "Rollback": self._key(Role.ROLLBACK),
            "ActiveJob": active.id if active else 0,
            "LastError": self._last_error,
            "LastShutdown": shutdown_row(self._verdict),
            "NextTry": self._next_try(),
            "Generation": self.generation(),
        }

    def blocked_by(self) -> list[tuple[str, str]]:
        """Why a reboot now would not bring up the staged system, or what lacks otherwise: (code, sentence) pairs."""
        staged, booted, keeper = self._by_role(Role.STAGED), self._by_role(Role.BOOTED), self._keeper
        now = Situation(
            staged=staged,
            booted=booted,
            lacking=tuple(self._view.lacking(booted)) if booted else (),
            order=self._order(staged),
            owed=self._owed(staged),
            verdict=self._verdict,
            boot=self._boot,
            job=self.jobs.active,
            next_try=self._next_try(),
            restages=self.settings.gate.restage and self.settings.gate.policy != "off",
            holds=self.settings.gate.policy == "hold",
            unreadable=tuple(self._view.troubles()),
        )
        if staged is not None:
            now = replace(now, decision=self._view.decision(staged))
        following = keeper.following if keeper else None
        if following is not None:
            now = replace(now, following=following, missing=self._view.decision(following).reasons)
        return reasons(now)

    def lost(self) -> Owed | None:
        """What was staged, is staged no more and is still to come back."""
        staged = self._by_role(Role.STAGED)
        return self._owed(staged) if staged is None else None

    def waiting(self) -> Owed | None:
        """What was staged and is not booted yet, whether it still is staged or was lost at a reboot."""
        return self._owed(self._by_role(Role.STAGED))

    def reboot_row(self) -> Row:
        """When a reboot is wanted, who asked, and whether it has begun."""
        return self._rebooter.row()

    def stored(self) -> tuple[int, int, int] | None:
        """Images and layers in the store, and the unpacked bytes of these; None when it cannot be read."""
        try:
            index = self._walk.store.index()
        except LashdError:
            return None
        return len(index.images), len(index.layers), sum(layer.uncompressed_size for layer in index.layers.values())

    def describe(self) -> str:
        """The whole state as one JSON document; docs/describe.schema.json is its schema."""
        properties = self.properties()
        shutdown = properties["LastShutdown"]
        document = {
            "schema": DESCRIBE_VERSION,
            "generation": properties["Generation"],
            "version": properties["Version"],
            "host": {"kind": properties["HostKind"], "sysroot": str(self.settings.host.sysroot)},
            "state": properties["State"],
            "gate": properties["Gate"],
            "policy": self.settings.gate.policy,
            "order": order_row(self._order(self._by_role(Role.STAGED))),
            "blockedBy": told(properties["BlockedBy"]),
            "lastError": {"name": self._last_error[0], "message": self._last_error[1]},
            "lastShutdown": shutdown | {"reasons": told(shutdown["reasons"])} if shutdown else {},
            "nextTry": properties["NextTry"],
            "owed": owed_row(self.lost()),
            "reboot": self.reboot_row(),
            "activeJob": properties["ActiveJob"],
            "deployments": self.list_deployments({}),
            "bound": self.list_bound({"deployment": "all"}),
            "jobs": self.list_jobs({}),
        }
        return json.dumps(document, sort_keys=True)

    async def sync(self) -> int:
        """Read everything from disk anew; returns the generation in which all of it is seen."""
        self._view.forget()
        self._verdict = self._shutdowns.verdict()
        if self._keeper is not None:
            self._keeper.wake()
        return self.generation()

    def generation(self) -> int:
        """Rises with every change that a reader could see."""
        keeper = self._keeper
        seen = (
            self._view.deployments(),
            self._walk.store.signature(),
            self._view.vouched(),
            self._last_error,
            self._verdict,
            self._rebooter.asked,
            (keeper.owed, keeper.following) if keeper else None,
            self._order(self._by_role(Role.STAGED)),
        )
        if self._seen is not None and seen != self._seen:
            self._generation += 1
        self._seen = seen
        return self._generation

    # -- helpers ----------------------------------------------------------------------------------------------------

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

    def _order(self, staged: Deployment | None) -> Order | None:
        """The order that is in force."""
        order = self._shutdowns.order() if staged is not None else None
        return order if order is not None and staged is not None and order.is_for(staged) else None

    def _passes(self, staged: Deployment) -> bool:
        """Whether the gate would let `staged` through as things are now."""
        if not staged.locked:
            return True
        order = self._order(staged)
        ordered = order is not None and order.hold
        return not (self.settings.gate.policy == "hold" or staged.foreign_lock or staged.key_locked or ordered)

    def _owed(self, staged: Deployment | None) -> Owed | None:
        """What was staged and is not booted yet; with nothing staged, what is to come back."""
        owed, booted = self._keeper.owed if self._keeper is not None else None, self._by_role(Role.BOOTED)
        if owed is None or staged is not None or booted is None:
            return owed
        return owed if still_owed(owed, booted, self._backend.staging(booted)) else None

    def _next_try(self) -> int:
        return self._keeper.next_try if self._keeper is not None else 0

    def _rows(self, key: str) -> list[Row]:
        with contextlib.suppress(LashdError):
            return self._view.bound(self._view.selected(key), {})
        return []

    def _busy(self) -> dict[str, str]:
        job = self.jobs.active
        shown = {"failed": "failed"}
        if job is not None and job.stage == Stage.PULL:  # before that the registry is only asked
            shown |= dict.fromkeys(("fetching", "unpacking", "retrying"), "pulling")
        return {item: shown[at.state] for item, at in job.items.items() if at.state in shown} if job else {}

    def _state(self, staged: Deployment | None, active: Job | None) -> str:
        if active is not None:
            return "working"
        if staged is None:
            return "idle"
        if not self._passes(staged):
            return "held"
        return "ready" if self._view.decision(staged).release else "incomplete"
