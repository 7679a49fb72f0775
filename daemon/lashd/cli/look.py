# SPDX-License-Identifier: Apache-2.0
"""The commands that only look: status, list, jobs."""

from __future__ import annotations

import sys
from typing import Any

from lashd.bus.paths import job_path
from lashd.cli import jsonout, screen, values, walk
from lashd.cli.client import Client
from lashd.cli.failures import Failure
from lashd.cli.job import Job
from lashd.cli.names import whole_key
from lashd.words.errors import EXIT_NOTHING_TO_DO


async def status(client: Client, arguments: Any) -> int:
    text = await client.describe()
    if arguments.json:
        jsonout.verbatim(text)
        return 0
    document = jsonout.parse(text)
    job = await _active(client, values.number(document, "active_job"))
    # Late, because rich takes longer to load than lashd to answer.
    from lashd.cli.render import status as view

    screen.show(view.status(document, job, plain=screen.plain(sys.stdout)))
    return 0


async def _active(client: Client, number: int) -> Job | None:
    if not number:
        return None
    try:
        job = await client.job(job_path(number))
    except Failure:
        return None  # it has just ended
    return None if job.done else job


# To have none of these is nothing unusual; that it is bound to nothing would be another thing.
_ABSENT = {
    "staged": "Nothing is staged.",
    "rollback": "There is no deployment to roll back to.",
    "pinned": "No deployment is pinned.",
}


async def bound(client: Client, arguments: Any) -> int:
    rows = await client.bound(await whole_key(client, arguments.deployment))
    if arguments.json:
        jsonout.document(rows)
        return 0
    from lashd.cli.render import tables

    if not rows and arguments.deployment in _ABSENT:
        roles = {role for row in await client.deployments() for role in values.texts(row, "roles")}
        if arguments.deployment not in roles:
            print(_ABSENT[arguments.deployment])
            return 0
    names = None
    if arguments.deployment == "all":
        names = {values.text(row, "key"): ", ".join(values.texts(row, "roles")) for row in await client.deployments()}
    screen.show(tables.bound(values.rows(rows), width=screen.console().width, deployments=names))
    return 0


async def jobs(client: Client, arguments: Any) -> int:
    if arguments.follow is not None:
        return await walk.follow_job(client, job_path(arguments.follow), json=arguments.json)
    if arguments.cancel is not None:
        return await _cancel(client, arguments.cancel, json=arguments.json)
    if arguments.id is not None:
        return _show(await client.job(job_path(arguments.id)), json=arguments.json)
    found = await client.jobs()
    if arguments.json:
        jsonout.document([job.as_json() for job in found])
        return 0
    from lashd.cli.render import tables

    screen.show(tables.jobs(found, width=screen.console().width))
    return 0


def _show(job: Job, *, json: bool) -> int:
    if json:
        jsonout.document({"job": job.as_json()})
    else:
        from lashd.cli.render import tables

        screen.show(tables.one_job(job))
    return 0


async def _cancel(client: Client, number: int, *, json: bool) -> int:
    path = job_path(number)
    before = await client.job(path)
    if before.done:
        if json:
            jsonout.document({"job": before.as_json()})
        else:
            print(f"Nothing to do: job {number} has ended already.")
        return EXIT_NOTHING_TO_DO
    await client.cancel(path)
    after = await client.job(path)
    if json:
        jsonout.document({"job": after.as_json()})
    else:
        print(f"Cancelling job {number}; what was fetched is kept.")
    return 0
