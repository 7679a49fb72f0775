# SPDX-License-Identifier: Apache-2.0
"""Values as plain rows (dicts of str, int, float, bool and lists) for whoever shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lashd.running.jobs import Job
from lashd.words.model import Deployment, Verdict

Row = dict[str, Any]


def gate_word(staged: Deployment | None) -> str:
    """`none`; `held`; `released`: only the gate's own look at shutdown is to come; `open`: nobody holds it."""
    if staged is None:
        return "none"
    return "held" if staged.locked else "released" if staged.declared else "open"


def shutdown_row(verdict: Verdict | None) -> Row:
    """What the gate decided at the last shutdown, as a property."""
    if verdict is None:
        return {}
    return {
        "result": verdict.result.value,
        "deployment": verdict.deployment,
        "digest": verdict.digest,
        "time": verdict.decided,
        "boot": verdict.boot,
        "reasons": [[code, sentence] for code, sentence in verdict.reasons],
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


def told(pairs: Iterable[Sequence[str]]) -> list[Row]:
    """Pairs of code and sentence, for documents."""
    return [{"code": code, "message": sentence} for code, sentence in pairs]
