# SPDX-License-Identifier: Apache-2.0
"""A running job: as lines (for logs, needs no rich) and as a live view with bars (for terminals)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lashd.cli.job import Item, Job
from lashd.cli.render import words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress_bar import ProgressBar

# What each stage does, for people.
STAGES = {
    "stage": "fetch and stage the host image",
    "hold": "hold the deployment back until its images are there",
    "discover": "read which images it binds",
    "plan": "find out what is missing",
    "pull": "fetch images",
    "verify": "verify images",
    "record": "record what is bound",
    "release": "let the deployment through",
    "roll-back": "make the rollback deployment the next boot",
    "discard": "drop the staged deployment",
    "collect": "remove what nothing needs any more",
    "reboot": "reboot",
}
_IMAGES = "pull"
_AFTER_IMAGES = ("verify", "record", "release", "roll-back", "discard", "collect", "reboot")


def stage_name(stage: str) -> str:
    return STAGES.get(stage, words.clean(stage))


def news(before: Job | None, after: Job) -> list[str]:
    """The lines that tell what is new: one per stage, per fetched image and per retry."""
    lines = _ended_unseen(before, after)
    if after.stage and (before is None or before.stage != after.stage):
        totals = [words.count(after.items_total, "image")] if after.items_total and after.stage == _IMAGES else []
        totals += [words.size(after.bytes_total)] if after.bytes_total and after.stage in (_IMAGES, "stage") else []
        lines.append(f"{words.clean(after.stage)}: {stage_name(after.stage)}{_bracket(totals)}")
    lines += _changed_items(before, after)
    if after.state == "cancelling" and (before is None or before.state != "cancelling"):
        lines.append("cancelling")
    return lines


def item_news(before: Job | None, after: Job) -> list[str]:
    """One line for each image that has been fetched, has failed or is tried again.

    Host layers, of which there are many, only tell when something is wrong.
    """
    return _ended_unseen(before, after) + _changed_items(before, after)


def _ended_unseen(before: Job | None, after: Job) -> list[str]:
    # The list of items starts anew with each stage, so the last images may have been done without our seeing it.
    if before and before.stage == _IMAGES and after.stage in _AFTER_IMAGES:
        return [_finished(item) for item in before.items if item.state not in ("done", "failed")]
    return []


def _changed_items(before: Job | None, after: Job) -> list[str]:
    known = {item.name: item.state for item in before.items} if before and before.stage == after.stage else {}
    lines = []
    for item in after.items:
        if known.get(item.name) == item.state:
            continue
        if item.state == "done" and after.stage == _IMAGES:
            lines.append(_finished(item))
        elif item.state == "failed":
            lines.append(f"  failed: {words.reference(item.name)}")
        elif item.state == "retrying":
            lines.append(f"  trying again: {words.reference(item.name)}{_bracket(_attempt(after, item))}")
    return lines


def _finished(item: Item) -> str:
    return f"  done: {words.reference(item.name)}{_bracket([words.size(item.total)] if item.total else [])}"


def _attempt(job: Job, item: Item) -> list[str]:
    # The job tells attempt and time for the item that it is at, not for each.
    return [f"attempt {job.attempt}"] if job.item == item.name and job.attempt > 1 else []


def _bracket(parts: Sequence[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def view(
    job: Job, *, rows: int, now: float | None = None, speed: float = 0.0, notice: str = "", plain: bool = False
) -> RenderableType:
    """The live view of a job: a line for all of it, and a bar per image, in at most `rows` lines.

    `speed` is bytes a second; `plain` keeps to ASCII.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    now = time.time() if now is None else now
    head = Table.grid(padding=(0, 1), expand=False)
    for _ in range(4):
        head.add_column(no_wrap=True, overflow="ellipsis")
    figures = [words.of(job.bytes_done, job.bytes_total)]
    figures += [f"{words.size(int(speed))}/s"] if speed >= 1 else []
    left = (job.bytes_total - job.bytes_done) / speed if speed >= 1 else 0
    figures += [f"{words.period(left)} left"] if left >= 1 else []
    head.add_row(
        Text("cancelling" if job.state == "cancelling" else words.clean(job.kind), style="bold"),
        _bar(1.0, job.fraction, 24),
        Text(f"{job.fraction:4.0%}", style="bold"),
        Text(", ".join(filter(None, figures)), style="dim"),
    )
    lines: list[RenderableType] = [
        head,
        Text(
            f"  {stage_name(job.stage) or 'waiting for its turn'}{_items(job)}",
            style="cyan",
            no_wrap=True,
            overflow="ellipsis",
        ),
    ]
    if job.next_attempt > now:
        lines.append(
            Text(f"  next attempt in {words.period(job.next_attempt - now)} (attempt {job.attempt})", style="yellow")
        )
    if notice:
        lines.append(Text(f"  {notice}", style="yellow"))
    # What is done has had its line above the view.
    left_over = [item for item in job.items if item.state != "done"]
    shown, hidden = _choose(left_over, max(0, rows - len(lines) - 1))
    if shown:
        table = Table.grid(padding=(0, 1), expand=False)
        table.add_column(width=1)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=48)
        for _ in range(3):
            table.add_column(no_wrap=True)
        for item in shown:
            mark, style = _mark(item.state, plain)
            table.add_row(
                "",
                Text(f"{mark} {words.reference(item.name)}", style=style),
                _bar(item.total or 1, min(item.done, item.total), 16),
                Text(words.clean(item.state), style=style),
                Text(words.of(item.done, item.total), style="dim"),
            )
        lines.append(table)
    if hidden:
        lines.append(Text(f"    and {hidden} more", style="dim"))
    return Group(*lines)


def _bar(total: float, done: float, width: int) -> ProgressBar:
    from rich.progress_bar import ProgressBar

    return ProgressBar(total, done, width, complete_style="cyan", finished_style="green")


def _items(job: Job) -> str:
    return f", {job.items_done} of {job.items_total} done" if job.items_total and job.stage == _IMAGES else ""


def _mark(state: str, plain: bool) -> tuple[str, str]:
    marks = {"failed": ("!", "✗", "red"), "retrying": ("~", "↻", "yellow")}
    ascii_mark, mark, style = marks.get(state, ("-", "•", "default" if state != "waiting" else "dim"))
    return (ascii_mark if plain else mark), style


def _choose(items: Sequence[Item], room: int) -> tuple[list[Item], int]:
    """What is moving comes first when not all items have room, then what waits."""
    if len(items) <= room:
        return list(items), 0
    weight = {"fetching": 0, "unpacking": 0, "retrying": 0, "failed": 1, "waiting": 2}
    ranked = sorted(range(len(items)), key=lambda place: (weight.get(items[place].state, 1), place))[:room]
    return [items[place] for place in sorted(ranked)], len(items) - room


class Speed:
    """Bytes a second over the last ten seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def at(self, now: float, done: int) -> float:
        self._seen = [(time_, bytes_) for time_, bytes_ in self._seen if now - time_ <= 10] + [(now, done)]
        (first, start), (last, end) = self._seen[0], self._seen[-1]
        return (end - start) / (last - first) if last - first >= 1 and end > start else 0.0
