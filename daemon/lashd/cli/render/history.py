# SPDX-License-Identifier: Apache-2.0
"""Tables for `history`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from lashd.cli import values
from lashd.cli.job import Job
from lashd.cli.render import words
from lashd.cli.render.tables import RESULT_STYLES, cell, job_error, plain_table


def jobs(found: Sequence[Job], *, width: int) -> RenderableType:
    """Jobs that were, one row each, as they come."""
    if not found:
        return cell("Nothing is in the history yet.", "dim")
    table = plain_table("ID", "KIND", "RESULT", "STARTED", "TOOK", "BY", "WHAT", fold=("WHAT",))
    for job in found:
        error = job_error(job, width)
        took = job.ended - job.created
        table.add_row(
            cell(str(job.id)),
            cell(words.clean(job.kind), "bold"),
            cell(words.clean(job.result or "running"), RESULT_STYLES.get(job.result, "cyan")),
            cell(words.when(job.created), "dim"),
            # The clock may have been set meanwhile.
            cell(words.period(took) if job.ended and took >= 0 else ""),
            cell(_by(job)),
            cell(error, "red") if error else cell(_what(job)),
        )
    return table


def _by(job: Job) -> str:
    name, uid = values.text(job.initiator, "name"), values.number(job.initiator, "uid")
    return words.clean(name or (f"uid {uid}" if uid else "root"))


def _what(job: Job) -> str:
    details = values.row(job.details)
    version = words.clean(values.text(details, "version"))
    return (
        words.reference(values.text(details, "image"))
        or version
        or words.deployment(values.text(details, "deployment"))
    )


def sets(rows: Sequence[values.Row]) -> RenderableType:
    """What ran: a line for the host image, and below it one for each image that it was bound to."""
    if not rows:
        return cell("What ran is not in the history yet.", "dim")
    parts: list[RenderableType] = []
    for row in rows:
        until = "now" if row.get("this_boot") is True and row is rows[0] else words.when(values.number(row, "until"))
        image, version = words.reference(values.text(row, "image")), words.clean(values.text(row, "version"))
        name = " ".join(filter(None, (image or words.deployment(values.text(row, "deployment")), version)))
        digest = words.digest(values.text(row, "digest"))
        parts.append(cell(f"{words.when(values.number(row, 'from'))} to {until}", "bold"))
        table = plain_table("", "", fold=("",))
        table.show_header = False
        table.add_row(cell(f"  {name}"), cell(digest, "dim"))
        for reference, bound in values.pairs(row.get("bound")):
            table.add_row(cell(f"    {words.reference(reference)}"), cell(words.digest(bound), "dim"))
        parts.append(table)
        if row.get("ready") is False:
            parts.append(cell("    Not all of these images were there.", "yellow"))
    return Group(*parts)
