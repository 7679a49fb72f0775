# SPDX-License-Identifier: Apache-2.0
"""Jobs of a daemon before this one: as finished ones on the bus, and what is said of those that were interrupted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lashd.running.job import Initiator, Job, Table
from lashd.running.reconcile import RESTAGE
from lashd.things.history_rows import JobEntry
from lashd.words.errors import ErrorName
from lashd.words.model import Deployment, Role

# Those that end with a staged deployment that is bound, and what is left of one goes on by itself.
WALKS = ("upgrade", "switch", "bind", RESTAGE)
_STAGES = ("upgrade", "switch", RESTAGE)
_LOOKS = ("check", "plan", "verify")
# The closed list has no name of its own for it. This one says the same to a program: it was ended from outside and did
# not come to its end, and what was fetched is kept. But the result is `failed`, because nobody wanted that, and it may
# be tried again.
NAME = ErrorName.CANCELLED


@dataclass(frozen=True, slots=True)
class Found:
    """What there is when the daemon comes back: the id of the boot, and the key of what is staged, empty for nothing.

    `comes_back`: what was staged is lost, and is staged again; `bootc`: a bootc may still be at work on its own.
    """

    boot: str
    staged: str = ""
    comes_back: bool = False
    bootc: bool = False


def told(entry: JobEntry, found: Found, now: int) -> JobEntry:
    """The `entry` of a job that was interrupted, as one that has ended: with what happened and what happens now."""
    details: dict[str, Any] = {"changed": entry.kind in _STAGES and bool(found.staged), "retryable": True}
    return replace(
        entry,
        ended=max(1, now),
        result="failed",
        error_name=NAME.value,
        error_message=f"{_what_happened(entry, found)} {_what_now(entry, found)}",
        details={**entry.details, **details, "interrupted": True},
    )


def carries_on(entry: JobEntry) -> bool:
    """Whether it is one whose rest the daemon does by itself, as far as there is any."""
    return entry.kind in WALKS


def is_rest_of(entry: JobEntry, deployment: Deployment | None) -> bool:
    """Whether to bind `deployment`, or to stage again what was lost (None), is what is left of `entry`."""
    if deployment is None:
        return True
    return entry.options.get("deployment") == deployment.key or (
        entry.kind in _STAGES and Role.STAGED in deployment.roles
    )


def recalled(entry: JobEntry, table: Table) -> Job:
    """The job as it is shown on the bus, for whoever still asks for it."""
    asked_by = Initiator(entry.uid, entry.unit, entry.initiator)
    job = Job(entry.id, entry.kind, asked_by, entry.options, table, slot=entry.slot)
    job.uuid, job.created = entry.uuid, entry.created
    job.recall(entry.stage, entry.result, entry.error_name, entry.error_message, entry.details)
    return job


def _what_happened(entry: JobEntry, found: Found) -> str:
    where = f", in its step '{entry.stage}'" if entry.stage else ""
    if entry.boot == found.boot:
        return f"Job {entry.id} ({entry.kind}) was interrupted{where}: lashd was killed, or ended by a fault."
    return f"Job {entry.id} ({entry.kind}) was interrupted{where}: the host went down, or lost its power."


def _what_now(entry: JobEntry, found: Found) -> str:
    if entry.kind in _LOOKS:
        return "It has changed nothing; ask for it again."
    if entry.kind not in WALKS:
        return "'lashctl status' shows what there is now; ask for it again if that is not what you want."
    about_staged = entry.kind in _STAGES or entry.options.get("deployment") == found.staged
    if found.staged and about_staged:
        return (
            "What was fetched is kept. What is staged stays held until all of its images are there; lashd carries on "
            "with that by itself, in a new job."
        )
    if found.comes_back and entry.kind in _STAGES:
        return "What was fetched is kept. What was staged is lost; lashd stages it again by itself, in a new job."
    if entry.kind in _STAGES:
        more = " A bootc that it has started may still be at work; what that stages is held and bound." * found.bootc
        return f"What was fetched is kept, but nothing is staged: ask for it again.{more}"
    return "What was fetched is kept; what the running system lacks lashd fetches by itself, else ask for it again."
