# SPDX-License-Identifier: Apache-2.0
"""The values of the metrics: what can be read of the service now, and what its jobs have come to."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lashd
from lashd.running.jobs import Job, Jobs, Listener
from lashd.running.reading import Reader
from lashd.running.rows import Row
from lashd.words.errors import ErrorName, LashdError
from lashd.words.metrics import Sample, Values, one, states
from lashd.words.model import ImageState, Passed
from lashd.words.notes import read_note, write_note

log = logging.getLogger(__name__)

# So many bound images have a value of their own; all of them are counted.
IMAGES = 256

STATES = ("idle", "working", "held", "ready", "incomplete")
GATE = ("none", "held", "released", "open")
POLICIES = ("hold", "warn", "off")
WANTED = ("never", "ready", "window")


@dataclass(frozen=True, slots=True)
class _LastSuccess:
    """Kind of job → when one last ended well, in seconds since the epoch."""

    times: Mapping[str, int] = field(default_factory=dict)


class JobFigures(Listener):
    """Listens to jobs, and adds up. `note`: the file that keeps when which kind last ended well."""

    def __init__(self, jobs: Jobs, note: Path) -> None:
        self._jobs = jobs
        self._note = note
        self._begun: dict[int, float] = {}
        self._fetched = self._retries = 0
        self.ended: Counter[tuple[str, str]] = Counter()  # by kind and result
        self.seconds: dict[str, float] = {}  # by kind
        self.successes = dict((read_note(note, _LastSuccess) or _LastSuccess()).times)
        self._unwritten = False

    @property
    def fetched(self) -> int:
        """Compressed bytes of layers."""
        return self._fetched + sum(int(job.bytes_done) for job in self._active)

    @property
    def retries(self) -> int:
        return self._retries + sum(int(job.retries) for job in self._active)

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def _active(self) -> list[Job]:
        return [job for job in self._jobs.list() if job.active]

    def unwritten(self) -> Mapping[str, int] | None:
        """When jobs ended well, if that is news since the last time that this was asked."""
        news, self._unwritten = dict(self.successes) if self._unwritten else None, False
        return news

    def keep(self, successes: Mapping[str, int] | None) -> None:
        """Write down what `unwritten` has answered. Blocks."""
        if successes is not None:
            try:
                write_note(self._note, _LastSuccess(successes))
            except LashdError as error:
                log.warning("%s", error.message)

    def job_new(self, job: Job) -> None:
        self._begun[job.id] = time.monotonic()

    def job_done(self, job: Job) -> None:
        self.ended[job.kind, job.result] += 1
        now = time.monotonic()
        self.seconds[job.kind] = self.seconds.get(job.kind, 0.0) + now - self._begun.pop(job.id, now)
        self._fetched += int(job.bytes_done)
        self._retries += int(job.retries)
        if job.result in ("success", "unchanged"):
            self.successes[job.kind] = int(time.time())
            self._unwritten = True


def values(service: Reader, figures: JobFigures) -> Values:
    """All that there is to be said now. Free of locks, processes and the network, as everything that is read."""
    now = service.properties()
    waiting, reboot, stored = service.waiting(), service.reboot_row(), service.stored()
    deployments = service.list_deployments({})
    found: dict[str, list[Sample]] = {
        "lashd_build": [one(1, lashd.__version__, str(now["HostKind"]))],
        "lashd_deployment": list(
            dict.fromkeys(  # a key is unique in its stateroot only
                one(1, role, row["key"], row["version"], row["image"], row["digest"])
                for row in deployments
                for role in row["roles"]
            )
        ),
        "lashd_state": states(STATES, now["State"]),
        "lashd_gate": states(GATE, now["Gate"]),
        "lashd_gate_policy": states(POLICIES, service.settings.gate.policy),
        "lashd_blocked_by": [one(count, code) for code, count in Counter(code for code, _ in now["BlockedBy"]).items()],
        "lashd_wasted_reboots": [one(max(waiting.wasted, 0) if waiting else 0)],
        "lashd_reboot_wanted": states(WANTED, reboot["when"]),
        "lashd_reboot_started": [one(int(reboot["started"]))],
        "lashd_fetched_bytes": [one(figures.fetched)],
        "lashd_fetch_retries": [one(figures.retries)],
        "lashd_jobs_active": [one(figures.active)],
        "lashd_jobs": [one(count, *key) for key, count in sorted(figures.ended.items())],
        "lashd_job_duration_seconds": list(_durations(figures)),
        "lashd_job_last_success_timestamp_seconds": [one(at, kind) for kind, at in sorted(figures.successes.items())],
        "lashd_last_error": states(ErrorName, now["LastError"][0]),
        **_bound(deployments, service.list_bound({"deployment": "all"})),
    }
    if waiting is not None:
        found["lashd_staged_since_timestamp_seconds"] = [one(max(waiting.since, 0))]
    if now["NextTry"]:
        found["lashd_next_try_timestamp_seconds"] = [one(now["NextTry"])]
    if now["LastShutdown"]:
        found["lashd_last_shutdown"] = states(Passed, now["LastShutdown"]["result"])
    if stored is not None:
        names = ("lashd_store_images", "lashd_store_layers", "lashd_store_bytes")
        found |= {name: [one(value)] for name, value in zip(names, stored, strict=True)}
    return found


def _durations(figures: JobFigures) -> Iterable[Sample]:
    for kind in sorted(figures.seconds):
        yield Sample((kind,), sum(count for (each, _), count in figures.ended.items() if each == kind), "_count")
        yield Sample((kind,), round(figures.seconds[kind], 3), "_sum")


def _bound(deployments: Iterable[Row], bound: Iterable[Row]) -> dict[str, list[Sample]]:
    roles: dict[str, list[str]] = {row["key"]: row["roles"] for row in deployments}
    counts = {(role, state.value): 0 for each in roles.values() for role in each for state in ImageState}
    present: dict[tuple[str, str], int] = {}
    errors: dict[tuple[str, str], Any] = {}
    for row in bound:
        reference, is_there = row["normalised"], int(row["state"] == ImageState.PRESENT)
        for role in roles.get(row["deployment"], ()):
            counts[role, row["state"]] += 1
            if reference:
                # One name for several units, or several deployments of one role: all have to have it.
                present[role, reference] = min(is_there, present.get((role, reference), 1))
        if reference and row["error-name"]:
            errors[reference, row["error-name"]] = 1
    return {
        "lashd_bound_images": [one(count, *key) for key, count in sorted(counts.items())],
        "lashd_bound_image_present": [one(value, *key) for key, value in sorted(present.items())[:IMAGES]],
        "lashd_bound_image_error": [one(1, *key) for key in sorted(errors)[:IMAGES]],
    }
