# SPDX-License-Identifier: Apache-2.0
"""The commands that start a job: ask for it, follow it, tell how it ended."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from lashd.cli import jsonout, present, screen, values
from lashd.cli.client import Client, Options
from lashd.cli.failures import Failure, from_name, odd_answer
from lashd.cli.follow import follow
from lashd.cli.job import Job
from lashd.cli.names import whole_digest, whole_key
from lashd.cli.render import words
from lashd.words.errors import EXIT_NOTHING_TO_DO, ErrorName
from lashd.words.reference import is_digest

_UNCHANGED = {
    "upgrade": "Nothing to do: the host is up to date.",
    "switch": "Nothing to do: the host follows this image, and is up to date.",
    "bind": "Nothing to do: every bound image is present.",
    "rollback": "Nothing to do: the rollback deployment is the next boot already.",
    "check": "Nothing to do: nothing is newer.",
    "plan": "Nothing to do: there is nothing to fetch.",
    "collect": "Nothing to do: everything in the store is needed.",
    "discard": "Nothing to do: nothing is staged.",
    "reboot": "Nothing to do: nobody has asked for a reboot that waits.",
}

# What is left to do for whoever asked.
_NEXT = {
    "upgrade": "Reboot to start it: systemctl reboot",
    "switch": "Reboot to start it: systemctl reboot",
    "rollback": "Reboot to start it: systemctl reboot",
    "discard": "The host boots what it boots now.",
}


_REBOOT = {
    "started": "The reboot has begun",
    "waiting": "The reboot is wanted, and 'lashctl status' shows what it waits for",
    "withdrawn": "The reboot is not asked for any more",
}


async def upgrade(client: Client, arguments: Any) -> int:
    return await _start(client, "Upgrade", _upgrade_options(arguments), arguments)


async def switch(client: Client, arguments: Any) -> int:
    return await _start(client, "Switch", _upgrade_options(arguments), arguments, arguments.image)


def _upgrade_options(arguments: Any) -> Options:
    digest = arguments.expected_digest
    if digest is not None and not is_digest(digest):
        raise from_name(
            ErrorName.INVALID_ARGUMENT, f"'{digest}' is not a digest: it must be sha256: and 64 hexadecimal digits."
        )
    return {"expected-digest": digest, "reboot": arguments.reboot, "reason": arguments.reason}


async def bind(client: Client, arguments: Any) -> int:
    options = {"deployment": await whole_key(client, arguments.deployment), "reason": arguments.reason}
    return await _start(client, "Bind", options, arguments)


async def rollback(client: Client, arguments: Any) -> int:
    options = {"drop-staged": arguments.drop_staged or None, "reason": arguments.reason}
    return await _start(client, "Rollback", options, arguments)


async def check(client: Client, arguments: Any) -> int:
    return await _start(client, "Check", {}, arguments)


async def plan(client: Client, arguments: Any) -> int:
    options = {"kind": arguments.what, "deployment": await whole_key(client, arguments.deployment)}
    return await _start(client, "Plan", options, arguments)


async def verify(client: Client, arguments: Any) -> int:
    which = await whole_key(client, arguments.deployment)
    options = {"deployment": which, "deep": arguments.deep or None, "reason": arguments.reason}
    return await _start(client, "Verify", options, arguments)


async def collect(client: Client, arguments: Any) -> int:
    return await _start(
        client, "Collect", {"dry-run": arguments.dry_run or None, "reason": arguments.reason}, arguments
    )


async def discard(client: Client, arguments: Any) -> int:
    options = {"expected-digest": await whole_digest(client, arguments.expected_digest), "reason": arguments.reason}
    return await _start(client, "Discard", options, arguments)


async def reboot(client: Client, arguments: Any) -> int:
    when = "never" if arguments.cancel else arguments.when
    return await _start(client, "Reboot", {"when": when, "reason": arguments.reason}, arguments)


async def _start(client: Client, member: str, options: Options, arguments: Any, *image: str) -> int:
    # Watched before the call, so that not even a job that ends at once is missed.
    async with client.watch() as feed:
        try:
            path = await client.start(member, options, *image)
        except asyncio.CancelledError:
            print("Stopped before lashd had answered; 'lashctl jobs' shows whether it has begun.", file=sys.stderr)
            raise
        if getattr(arguments, "no_wait", False):
            return _accepted(await client.job(path), json=arguments.json)
        with present.presenter(json=arguments.json) as presenter:
            job = await follow(client, path, feed, show=presenter.show, notice=presenter.notice)
    return ended(job, json=arguments.json)


async def follow_job(client: Client, path: str, *, json: bool) -> int:
    """Follow a job that somebody started; its exit status."""
    async with client.watch() as feed:
        await client.job(path)  # says so when there is none
        with present.presenter(json=json) as presenter:
            job = await follow(client, path, feed, show=presenter.show, notice=presenter.notice)
    return ended(job, json=json)


def _accepted(job: Job, *, json: bool) -> int:
    if json:
        jsonout.document({"job": job.as_json()})
    elif job.details.get("joined") is True:
        print(
            f"{words.clean(job.title)} was running already and does that; 'lashctl jobs --follow {job.id}' follows it."
        )
    else:
        print(f"Started {words.clean(job.title)}; 'lashctl jobs --follow {job.id}' follows it.")
    return 0


def ended(job: Job, *, json: bool) -> int:
    """Tell how a finished job ended; its exit status. Raises Failure for one that failed or was cancelled."""
    failure = failure_of(job)
    if json:
        jsonout.document({"job": job.as_json(), **(failure.as_json() if failure else {})})
    if failure is not None:
        failure.told = json
        raise failure
    unchanged = job.result == "unchanged" and not _something_told(job)
    if not json:
        print(_unchanged(job) if unchanged else _done(job))
        for sentence in values.texts(job.details, "missing"):
            print(f"Warning: {words.clean(sentence)}")
        held = words.clean(values.text(job.details, "held"))
        if held:
            print(held)
        if job.details:
            from lashd.cli.render import tables

            screen.show(tables.figures(job))
        if job.kind in _NEXT and not unchanged and not held:
            print(_NEXT[job.kind])
    return EXIT_NOTHING_TO_DO if unchanged else 0


def _unchanged(job: Job) -> str:
    if job.kind in ("upgrade", "switch") and job.details.get("staged") is True:
        then = "" if values.text(job.details, "held") else "; reboot to start it: systemctl reboot"
        return f"Nothing to do: the newest host image is staged already{then}."
    return _UNCHANGED.get(job.kind, "Nothing to do.")


def _done(job: Job) -> str:
    if job.kind == "plan" and job.details.get("newer") is True:
        return (
            f"{_newest(job)} What it binds is known only once it was fetched, which 'lashctl upgrade' does; the rest "
            "of this is about what is here."
        )
    if job.kind == "check":
        newer = job.details.get("newer") is True
        return f"{_newest(job)} 'lashctl upgrade' brings it." if newer else "There is no newer host image."
    if job.kind == "verify":
        return "Every image is as it was recorded."
    if job.kind == "collect" and job.result == "unchanged":
        return "This would be removed:"
    if job.kind == "reboot" and (told := _REBOOT.get(values.text(job.details, "state"))):
        wanted = told is _REBOOT["withdrawn"] and values.text(job.details, "when") not in ("", "never")
        return f"{told}; the settings want one all the same." if wanted else f"{told}."
    if job.kind == "discard" and job.details.get("given-up"):
        return "Nothing was staged; what a reboot has lost is given up and will not be staged again."
    return f"Done: {words.clean(job.title)}."


def _newest(job: Job) -> str:
    facts = values.row(job.details)
    version, size = words.clean(values.text(facts, "newest_version")), values.number(facts, "newest_bytes")
    newest = f"version {version}, " if version else ""
    newest += words.digest(values.text(facts, "newest"))
    newest += f", {words.size(size)} with what is here of it already" if size else ""
    return f"There is a newer host image: {newest}."


def _something_told(job: Job) -> bool:
    """What only looks never changes anything; whether there is something to do stands in its figures."""
    figures = {
        "check": ("newer", "moved", "unknown"),
        "plan": ("bytes-to-fetch", "images-to-fetch", "newer"),
        "collect": ("images", "layers", "removed", "bytes-freed"),
    }
    return job.kind == "verify" or any(job.details.get(key) for key in figures.get(job.kind, ()))


def failure_of(job: Job) -> Failure | None:
    """Why a finished job failed; None when it did not. A plan that does not fit is one that would fail."""
    if job.kind == "plan" and job.details.get("fits") is False:
        return from_name(
            ErrorName.NO_SPACE, job.error_message or "What is to be fetched does not fit on the disk.", job=job.id
        )
    if job.result in ("success", "unchanged"):
        return None
    if job.result == "cancelled":
        return from_name(job.error_name or ErrorName.CANCELLED, job.error_message, job=job.id)
    if job.result != "failed" or not job.error_name:
        return odd_answer(f"{job.title} has ended with the result '{words.clean(job.result)}'")
    retryable = job.details.get("retryable")
    found = from_name(
        job.error_name, job.error_message, job=job.id, retryable=retryable if isinstance(retryable, bool) else None
    )
    # By itself it lists the booted one.
    which = values.text(job.options, "deployment") or ("staged" if job.kind in ("upgrade", "switch", "bind") else "")
    if which not in ("", "booted"):
        found.hint = found.hint.replace("'lashctl list'", f"'lashctl list --deployment {words.clean(which)}'")
    return found
