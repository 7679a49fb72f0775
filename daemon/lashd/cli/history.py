# SPDX-License-Identifier: Apache-2.0
"""The command that shows what was: `history`."""

from __future__ import annotations

from typing import Any

from lashd.cli import jsonout, screen
from lashd.cli.client import Client, no_job
from lashd.cli.job import Job


async def history(client: Client, arguments: Any) -> int:
    if arguments.sets:
        return await _sets(client, arguments)
    found = await _jobs(client, arguments)
    if arguments.json:
        jsonout.document([job.as_json() for job in found])
        return 0
    from lashd.cli.render import history as view
    from lashd.cli.render import tables

    if arguments.ids:
        for number, job in enumerate(found):
            if number:
                print()
            screen.show(tables.one_job(job))
    else:
        screen.show(view.jobs(found, width=screen.console().width))
    return 0


async def _jobs(client: Client, arguments: Any) -> list[Job]:
    """The newest first; or those that were asked for, in that order. Raises Failure when there is no such job."""
    if not arguments.ids:
        return await client.past_jobs(limit=arguments.limit)
    found = []
    for number in arguments.ids:
        jobs = await client.past_jobs(number=number)
        if not jobs:
            raise no_job(number)
        found += jobs[:1]
    return found


async def _sets(client: Client, arguments: Any) -> int:
    rows = await client.past_sets(limit=arguments.limit)
    if arguments.json:
        jsonout.document([jsonout.keys(row) for row in rows])
        return 0
    from lashd.cli.render import history as view

    screen.show(view.sets(rows))
    return 0
