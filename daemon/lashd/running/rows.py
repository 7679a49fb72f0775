# SPDX-License-Identifier: Apache-2.0
"""Values as plain rows (dicts of str, int, float, bool and lists) for whoever shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lashd.running.jobs import Job
from lashd.things.history_rows import JobEntry, SetEntry
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Discovery, ImageState, Order, Owed, Verdict

Row = dict[str, Any]


def gate_word(staged: Deployment | None, *, passes: bool) -> str:
    """`none`; `held`; `released`: only the gate's own look at shutdown is to come; `open`: nobody holds it.

    `passes`: the gate would let it through as things are, although it may be locked until then.
    """
    if staged is None:
        return "none"
    return "held" if not passes else "released" if staged.declared else "open"


def shutdown_row(verdict: Verdict | None) -> Row:
    """What the gate decided at the last shutdown, as a property."""
    if verdict is None:
        return {}
    return {
        "result": verdict.result.value,
        "deployment": verdict.deployment,
        "digest": verdict.digest,
        "time": max(verdict.decided, 0),
        "boot": verdict.boot,
        "reasons": [[code, sentence] for code, sentence in verdict.reasons],
    }


def order_row(order: Order | None) -> Row:
    """What an operator said about the staged deployment, for documents; empty for nothing."""
    if order is None:
        return {}
    return {"hold": order.hold, "uid": order.uid, "reason": order.reason, "given": max(order.given, 0)}


def owed_row(owed: Owed | None) -> Row:
    """What a reboot has lost and is to be staged again, for documents; empty for nothing."""
    if owed is None:
        return {}
    return {
        "deployment": owed.deployment,
        "stateroot": owed.stateroot,
        "checksum": owed.checksum,
        "digest": owed.digest,
        "since": max(owed.since, 0),
        "wasted": max(owed.wasted, 0),
    }


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


def entry_row(entry: JobEntry) -> Row:
    """One job of the history, as GetHistory shows it. Its state is `done`, or `running` as long as it has not ended."""
    return {
        "id": entry.id,
        "uuid": entry.uuid,
        "kind": entry.kind,
        "state": "done" if entry.ended else "running",
        "stage": entry.stage,
        "boot": entry.boot,
        "created": max(entry.created, 0),
        "ended": max(entry.ended, 0),
        "uid": entry.uid,
        "unit": entry.unit,
        "initiator": entry.initiator,
        "options": dict(entry.options),
        "result": entry.result,
        "error-name": entry.error_name,
        "error-message": entry.error_message,
        "details": dict(entry.details),
    }


def set_row(entry: SetEntry, boot: str) -> Row:
    """One set of the history, as GetHistory shows it. `boot` is the id of this boot."""
    return {
        "id": entry.id,
        "boot": entry.boot,
        "this-boot": entry.boot == boot,
        "deployment": entry.deployment,
        "image": entry.image,
        "digest": entry.digest,
        "version": entry.version,
        "bound": [list(pair) for pair in entry.bound],
        "ready": entry.ready,
        "from": max(entry.begun, 0),
        "until": max(entry.seen, 0),
    }


def blank_row(deployment: Deployment, unit: str) -> Row:
    """A row of ListBound that says nothing yet."""
    return {
        "deployment": deployment.key,
        "unit": unit,
        "reference": "",
        "normalised": "",
        "wanted-digest": "",
        "present-digest": "",
        "state": "",
        "bytes": 0,
        "usable": False,
        "use-problems": [],
        "error-name": "",
        "error-message": "",
    }


def bad_rows(deployment: Deployment, found: Discovery) -> list[Row]:
    """A row of ListBound for each entry that cannot be used."""
    return [
        {
            **blank_row(deployment, entry.unit),
            "state": ImageState.INVALID.value,
            "error-name": ErrorName.BOUND_IMAGE_INVALID.value,
            "error-message": entry.problem,
        }
        for entry in found.bad
    ]


def not_known(error: LashdError) -> Row:
    """What a row of ListBound says of a state that `error` hides."""
    return {"state": ImageState.UNKNOWN.value, "error-name": error.name.value, "error-message": error.message}


def unreadable(error: LashdError) -> tuple[str, str]:
    """Why nobody can say what is there, as a reason: a code, and a sentence that says what to do."""
    if error.name is not ErrorName.STORE_DAMAGED:
        return "root-unreadable", f"{error.message} Look at it with 'ostree admin status', and deploy it again."
    return "store-damaged", (
        f"{error.message} Until it can be read it is not known which images are there; 'lashctl bind' mends what it "
        "can, and 'lashctl bind booted' does when nothing is staged."
    )


def told(pairs: Iterable[Sequence[str]]) -> list[Row]:
    """Pairs of code and sentence, for documents."""
    return [{"code": code, "message": sentence} for code, sentence in pairs]
