# SPDX-License-Identifier: Apache-2.0
"""A job as lashctl sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lashd.cli import values


@dataclass(frozen=True, slots=True)
class Item:
    """One image or host layer of the current stage; bytes are those that cross the line."""

    name: str
    state: str  # waiting, fetching, unpacking, retrying, done, failed
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Job:
    """One job. Names are those of the bus interface in snake case; sizes are bytes, times seconds since the epoch."""

    path: str
    id: int
    uuid: str = ""
    kind: str = ""
    initiator: Mapping[str, Any] = field(default_factory=dict)
    created: int = 0
    ended: int = 0  # only the history says when
    options: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""
    stage: str = ""
    item: str = ""
    fraction: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0
    items_done: int = 0
    items_total: int = 0
    attempt: int = 1
    next_attempt: int = 0
    cancellable: bool = False
    result: str = ""
    error_name: str = ""
    error_message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[Item, ...] = ()

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def title(self) -> str:
        return f"{self.kind or 'job'} (job {self.id})"

    def as_json(self) -> dict[str, Any]:
        """With the keys that lashd's own JSON has: `bytes-done`."""
        return {key.replace("_", "-"): value for key, value in asdict(self).items()}


def read(path: str, properties: object) -> Job:
    """A job out of its bus properties or out of a row of ListJobs. Never fails: what is odd is left out."""
    source = values.row(properties)
    return Job(
        path=path,
        id=values.number(source, "id") or number_of(path),
        uuid=values.text(source, "uuid"),
        kind=values.text(source, "kind"),
        initiator=values.row(source.get("initiator")),
        created=values.number(source, "created"),
        ended=values.number(source, "ended"),
        options=_plain(source.get("options")),
        state=values.text(source, "state"),
        stage=values.text(source, "stage"),
        item=values.text(source, "item"),
        fraction=values.share(source.get("fraction")),
        bytes_done=values.number(source, "bytes_done"),
        bytes_total=values.number(source, "bytes_total"),
        items_done=values.number(source, "items_done"),
        items_total=values.number(source, "items_total"),
        attempt=values.number(source, "attempt") or 1,
        next_attempt=values.number(source, "next_attempt"),
        cancellable=source.get("cancellable") is True,
        result=values.text(source, "result"),
        error_name=values.text(source, "error_name"),
        error_message=values.text(source, "error_message"),
        details=_plain(source.get("details")),
        items=_items(source.get("items")),
    )


def number_of(path: str) -> int:
    """The job's number, from the end of its object path; 0 when there is none."""
    last = path.rpartition("/")[2]
    return int(last) if last.isascii() and last.isdigit() and len(last) < 20 else 0


def _plain(value: object) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def _items(value: object) -> tuple[Item, ...]:
    found = []
    for item in value if isinstance(value, (list, tuple)) else ():
        if isinstance(item, (list, tuple)) and len(item) >= 4:
            found.append(Item(str(item[0]), str(item[1]), values.whole(item[2]), values.whole(item[3])))
    return tuple(found)


def merge(job: Job, changed: Mapping[str, Any]) -> Job:
    """The job with some properties (snake case) changed. Properties that `changed` does not hold stay."""
    fresh = read(job.path, changed)
    return replace(job, **{name: getattr(fresh, name) for name in changed if name in _NAMES and name != "path"})


_NAMES = frozenset(Job.__dataclass_fields__)
