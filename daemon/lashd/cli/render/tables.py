# SPDX-License-Identifier: Apache-2.0
"""Tables for `list`, `jobs` and `plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lashd.cli import values
from lashd.cli.job import Job
from lashd.cli.render import words
from lashd.words.model import ImageState, UseProblem

STATE_STYLES: dict[str, str] = {
    ImageState.PRESENT: "green",
    ImageState.PULLING: "cyan",
    ImageState.UNVERIFIED: "yellow",
    ImageState.UNKNOWN: "yellow",
    ImageState.DRIFTED: "yellow",
    ImageState.MISSING: "red",
    ImageState.INCOMPLETE: "red",
    ImageState.FAILED: "red",
    ImageState.INVALID: "red",
}
RESULT_STYLES = {"success": "green", "unchanged": "green", "failed": "red", "cancelled": "yellow"}

_PROBLEMS = {
    UseProblem.STORE_NOT_NAMED: "the unit does not name the bound image store, so podman would fetch the image again",
    UseProblem.PULL_ALWAYS: "the unit pulls its image at every start, so it does not run what is bound",
    UseProblem.AUTO_UPDATE: "the unit follows the registry (AutoUpdate=), so it does not keep to what is bound",
    UseProblem.SHADOWED: "the host's own store has another image under this name, and podman takes that one first",
}

# Below these widths (columns) the problems move below the table, and the digest and the size go.
_WIDTH_FOR_PROBLEMS = 110
_WIDTH_FOR_DIGEST = 88
_WIDTH_FOR_SIZE = 66
# Below this one a table of jobs has the names of errors and not their sentences, which would be columns of syllables.
_WIDTH_FOR_SENTENCES = 120


def cell(text: str, style: str = "") -> Text:
    return Text(text, style=style)


def plain_table(*columns: str, fold: Sequence[str] = ()) -> Table:
    """A table without lines: readable in a log, and in a terminal of any width."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(
            column,
            no_wrap=column not in fold,
            overflow="fold" if column in fold else "ellipsis",
            justify="right" if column == "SIZE" else "left",
        )
    return table


def image_name(row: values.Row) -> str:
    return values.text(row, "normalised", "reference", "text")


def bound(
    rows: Sequence[Mapping[str, Any]], *, width: int, deployments: Mapping[str, str] | None = None
) -> RenderableType:
    """The bound images, one row each. `deployments` (key → name) adds a column that says whose they are."""
    if not rows:
        return cell("No image is bound.", "dim")
    in_table = width >= _WIDTH_FOR_PROBLEMS and any(row.get("use_problems") for row in rows)
    columns = {
        "DEPLOYMENT": deployments is not None,
        "UNIT": True,
        "IMAGE": True,
        "STATE": True,
        "DIGEST": width >= _WIDTH_FOR_DIGEST,
        "SIZE": width >= _WIDTH_FOR_SIZE,
        "PROBLEMS": in_table,
    }
    table = plain_table(*(name for name, shown in columns.items() if shown), fold=("UNIT", "IMAGE", "PROBLEMS"))
    notes: dict[str, str] = {}  # sentence → style; several deployments often have the same to say
    for row in rows:
        key, unit, state = (words.clean(values.text(row, name)) for name in ("deployment", "unit", "state"))
        problems, bytes_ = values.texts(row, "use_problems"), values.number(row, "bytes")
        codes = ", ".join(map(words.clean, problems))
        cells = {
            "DEPLOYMENT": cell((deployments or {}).get(key) or words.deployment(key)),
            "UNIT": cell(unit),
            "IMAGE": cell(words.reference(image_name(row))),
            "STATE": cell(state, STATE_STYLES.get(state, "")),
            "DIGEST": cell(words.digest(values.text(row, "wanted_digest", "present_digest")), "dim"),
            "SIZE": cell(words.size(bytes_) if bytes_ else ""),
            "PROBLEMS": cell(codes, "yellow"),
        }
        table.add_row(*(value for name, value in cells.items() if columns[name]))
        if error := row_error(row):
            notes[f"{unit}: {words.clean(error)}"] = "red"
        if codes and not in_table:
            notes[f"{unit}: {codes}"] = "yellow"
    codes_seen = {code for row in rows for code in values.texts(row, "use_problems")}
    notes |= {f"{code.value}: {sentence}": "yellow" for code, sentence in _PROBLEMS.items() if code in codes_seen}
    return Group(table, *([cell("")] if notes else []), *(cell(note, style) for note, style in notes.items()))


def row_error(row: values.Row) -> str:
    return values.text(row, "error_message", "error_name")


def job_error(job: Job, width: int) -> str:
    """What a table of `width` columns has room for; `jobs ID` and `history ID` have the sentence."""
    return words.clean((width < _WIDTH_FOR_SENTENCES and job.error_name) or job.error_message or job.error_name)


def jobs(found: Sequence[Job], *, width: int) -> RenderableType:
    if not found:
        return cell("No job is known.", "dim")
    table = plain_table("ID", "KIND", "STATE", "RESULT", "CREATED", "WHAT", fold=("WHAT",))
    for job in found:
        error = job_error(job, width)
        state = words.clean(job.state) if job.state != "running" else f"{words.clean(job.state)} {job.fraction:.0%}"
        table.add_row(
            cell(str(job.id)),
            cell(words.clean(job.kind), "bold"),
            cell(state, "" if job.done else "cyan"),
            cell(words.clean(job.result), RESULT_STYLES.get(job.result, "")),
            cell(words.when(job.created), "dim"),
            cell(error, "red") if error else cell("" if job.done else words.clean(job.stage)),
        )
    return table


def one_job(job: Job) -> RenderableType:
    """Everything about one job, a line each."""
    table = facts()
    initiator = ", ".join(
        f"{words.clean(key)} {words.clean(str(value))}" for key, value in job.initiator.items() if value != ""
    )
    lines = [
        ("Job:", f"{job.id} {words.clean(job.kind)}", "bold"),
        ("State:", words.clean(job.state), ""),
        ("Stage:", words.clean(job.stage) if not job.done else "", ""),
        ("Progress:", _progress(job), ""),
        ("Result:", words.clean(job.result), RESULT_STYLES.get(job.result, "")),
        ("Error:", words.clean(": ".join(filter(None, (job.error_name, job.error_message)))), "red"),
        ("Created:", words.when(job.created), ""),
        ("Ended:", words.when(job.ended), ""),
        ("Asked for by:", initiator if initiator != "uid 0" else "uid 0 (root)", ""),
        ("Uuid:", words.clean(job.uuid), "dim"),
    ]
    for label, value, style in lines:
        if value:
            table.add_row(label, cell(value, style))
    return Group(table, figures(job))


def _progress(job: Job) -> str:
    if job.done:
        return ""
    return ", ".join(filter(None, (f"{job.fraction:.0%}", words.of(job.bytes_done, job.bytes_total))))


_PLANNED = {"bytes_to_fetch": "To fetch", "bytes_on_disk": "Needed on disk", "bytes_free": "Free on disk"}
# A job that has ended tells the plan that it followed.
_FETCHED = {"bytes_to_fetch": "Fetched", "images_to_fetch": "Images fetched"}
# Said in other ways, or of no use to a person.
_SILENT = {"changed", "retryable", "joined", "fits", "newer", "held", "staged", "missing", "interrupted"}
# Of what is here nothing needs to be fetched, which says nothing of the newer host image.
_OF_NEWER = {"bytes_to_fetch", "bytes_on_disk", "images_to_fetch"}


def figures(job: Job) -> RenderableType:
    """What a job tells about its result, a line each; nothing that it does not say."""
    source = values.row(job.details)
    planned = job.kind == "plan"
    labels = _PLANNED if planned else _FETCHED
    silent = _SILENT if planned else _SILENT | {"bytes_on_disk", "bytes_free"}
    if planned and source.get("newer") is True:
        silent = (
            silent
            | {"newest", "newest_version", "newest_bytes"}
            | {key for key in _OF_NEWER if not values.number(source, key)}
        )
    if job.kind == "check":
        silent = silent | {"newest", "newest_version", "newest_bytes"}
    if job.kind == "reboot":
        silent = silent | {"state", "when"}
    table = facts()
    for key, value in source.items():
        if key == "fetch":
            value = [_fetched(item) for item in values.texts(source, key)]
        if key not in silent and (shown := _shown(key, value)):
            label = labels.get(key) or words.clean(key).replace("_", " ").capitalize()
            table.add_row(f"{label}:", cell(shown))
    return table


def facts() -> Table:
    """A table of labels and values."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="bold", no_wrap=True, min_width=12)
    table.add_column(overflow="fold")
    return table


def _fetched(item: str) -> str:
    """`NAME BYTES`, as a plan lists it."""
    name, _, count = item.rpartition(" ")
    return f"{words.reference(name)} ({words.size(int(count))})" if name and count.isdecimal() else item


def _shown(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        if key == "deployment":
            return words.deployment(value)
        return words.digest(value) if value.startswith("sha256:") else words.reference(value)
    if isinstance(value, (list, tuple)):
        return "\n".join(filter(None, (_shown(key, item) for item in value)))
    if isinstance(value, int):
        return words.size(value) if "bytes" in key else str(value)
    return f"{value:g}" if isinstance(value, float) else ""
