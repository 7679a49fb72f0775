# SPDX-License-Identifier: Apache-2.0
"""What is worth an alert: the ids of such entries in the journal, and the fields that they carry.

packaging/lashd.catalog says of each id what it means and what to do; a test keeps the two in step.
"""

from __future__ import annotations

from contextvars import ContextVar
from enum import StrEnum


class MessageId(StrEnum):
    """Ids for `journalctl MESSAGE_ID=…` (sd-id128). They never change, and none is used for something else later."""

    HELD = "0a8de9618ae947df9c6fb31f3705a984"  # what is staged is held, and nothing is under way that would end it
    RELEASED = "aee8cce65988485a87e025e0f9d5dd76"  # what is staged was declared ready
    FORCED = "7a6dc92245184464a34c9d0e9401756c"  # a person lets it through although images are missing
    GATE_PASSED = "266f77b0de854b04b579150ee315485d"  # the shutdown let it through
    GATE_HELD = "d8f705449d7d4ff79cf4bbd956a93a72"  # the shutdown did not
    GATE_IGNORED = "b5648786d35c4e08a10048af38fbedef"  # what the shutdown has held runs all the same
    REBOOT_WASTED = "4a8e8c9dbc214dde97c7e8b32a3e9a99"  # a reboot did not bring up what was staged before it
    REBOOT_STARTED = "68e897b5ef804e4ba9d29545b829838b"
    REBOOT_BLOCKED = "301c490bd3ac4b34824ce94d86f1400e"  # wanted, everything is ready, and something is in the way
    IMAGE_FAILED = "101e4a33f88b48088ad3ccbdf89a7999"  # a bound image could not be fetched, after the last attempt
    RUNNING_LACKS = "04adb81b21d64d87863c291ad6ce23b5"  # what runs has not got all that it binds, or under wrong names
    STORE_DAMAGED = "62a9c8c07f0d430a9072d8b0d5eea893"
    STORE_MENDED = "c192fb1772044b8d8905cd436f84cfb4"  # what was damaged was taken out, to be fetched again
    BROUGHT_BACK = "3b1e969d5e904a0196011d2687517753"  # another program had removed it
    JOB_ENDED = "79091ad512ff43f5aec997a4b5756dbe"
    ROLLBACK_QUEUED = "eaa615b69c2943ea9a8bac91bb7e6105"  # the next boot is the way back
    SETTINGS_BROKEN = "5d3916a2093f4e88bd6ce720a83569c8"
    OTHER_UPDATER = "d24dea9f10ce467e8c27cff224f7f098"  # another program updates this host by itself


# Every field that an entry may carry besides the journal's own.
FIELDS = (
    "LASHD_JOB",  # Job.Uuid
    "LASHD_KIND",  # Job.Kind
    "LASHD_RESULT",  # Job.Result
    "LASHD_ERROR",  # a name from words/errors.py
    "LASHD_RETRYABLE",  # yes or no: may the same succeed later without a person doing anything?
    "LASHD_DEPLOYMENT",  # Deployment.key
    "LASHD_DIGEST",  # of the host image, or with a reference of the bound image
    "LASHD_REFERENCE",  # normalised reference of a bound image
    "LASHD_UID",  # who ordered it
)

# The job at work in this task and in those that it starts: its fields are on every entry from there.
_job: ContextVar[dict[str, str] | None] = ContextVar("job", default=None)


def fields(
    message: MessageId,
    *,
    job: str = "",
    kind: str = "",
    result: str = "",
    error: str = "",
    retryable: bool | None = None,
    deployment: str = "",
    digest: str | None = "",
    reference: str = "",
    uid: int | None = None,
) -> dict[str, str]:
    """The fields of an entry, also as `extra` of a log record; those that are not given are left out."""
    given = {
        "LASHD_JOB": job,
        "LASHD_KIND": kind,
        "LASHD_RESULT": result,
        "LASHD_ERROR": error,
        "LASHD_RETRYABLE": "" if retryable is None else "yes" if retryable else "no",
        "LASHD_DEPLOYMENT": deployment,
        "LASHD_DIGEST": digest or "",
        "LASHD_REFERENCE": reference,
        "LASHD_UID": "" if uid is None else str(uid),
    }
    return {"MESSAGE_ID": message.value, **{name: value for name, value in given.items() if value}}


def enter_job(job: str, kind: str) -> None:
    """From here on this task works for `job` (its uuid)."""
    _job.set({"LASHD_JOB": job, "LASHD_KIND": kind})


def of_job() -> dict[str, str]:
    """The fields of the job that this task works for; none outside of jobs."""
    return _job.get() or {}
