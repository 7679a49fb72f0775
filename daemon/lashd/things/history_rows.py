# SPDX-License-Identifier: Apache-2.0
"""Rows of the history, and the SQL that writes and reads them, on a file that is open and in transactions of others.

SQLite keeps any value in any column, and does not take that for damage: what reads raises Misfit for a row that nobody
here has written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lashd.words import shape

if TYPE_CHECKING:
    import sqlite3  # which takes a while to load

# Raised when older versions could not go on with the file; a further column or table is no reason.
VERSION = 1
# So many rows are kept, the newest: of jobs that change the host, of those that only look, and of sets. There is no
# limit by age: a clock that is wrong for a minute would take everything.
KEEP_JOBS = 2000
KEEP_LOOKS = 500
KEEP_SETS = 2000
# And at most so many bytes of them, whatever they hold.
KEEP_BYTES = 32 * 1024 * 1024
# Of what one job tells, as JSON (characters); a list that is longer than it may be is cut.
LONGEST_DETAILS = 16 * 1024
LONGEST_LIST = 100

_BIGGEST = 2**63 - 1

_TABLES = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY, uuid TEXT NOT NULL, kind TEXT NOT NULL, slot INTEGER NOT NULL, boot TEXT NOT NULL,
    created INTEGER NOT NULL, uid INTEGER NOT NULL, unit TEXT NOT NULL, initiator TEXT NOT NULL, options TEXT NOT NULL,
    stage TEXT NOT NULL, ended INTEGER NOT NULL, result TEXT NOT NULL, error_name TEXT NOT NULL,
    error_message TEXT NOT NULL, details TEXT NOT NULL
);
CREATE INDEX jobs_by_slot ON jobs (slot, id);
CREATE TABLE sets (
    id INTEGER PRIMARY KEY, mark TEXT NOT NULL, boot TEXT NOT NULL, deployment TEXT NOT NULL,
    image TEXT NOT NULL, digest TEXT NOT NULL, version TEXT NOT NULL, bound TEXT NOT NULL, ready INTEGER NOT NULL,
    uptime REAL NOT NULL, begun INTEGER NOT NULL, seen INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class JobEntry:
    """One job. Times are seconds since the epoch, by the clock of then.

    While it runs `ended` is 0, and it has no result. `boot` is the id of the boot in which it began; `slot`: it was one
    that may change the host.
    """

    id: int
    uuid: str
    kind: str
    slot: bool
    boot: str
    created: int
    uid: int
    unit: str = ""
    initiator: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    stage: str = ""
    ended: int = 0
    result: str = ""
    error_name: str = ""
    error_message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetSeen:
    """What runs now: a host image with the images that it is bound to, (normalised reference, digest) each.

    `uptime` is in seconds since the boot, with the time that the host slept; `seen` is the same moment by the clock.
    """

    boot: str
    deployment: str
    image: str
    digest: str
    version: str
    bound: tuple[tuple[str, str], ...]
    ready: bool
    uptime: float
    seen: int

    @property
    def content(self) -> tuple[object, ...]:
        """What makes it another set in the same boot."""
        return (self.deployment, self.image, self.digest, self.bound)


@dataclass(frozen=True, slots=True)
class SetEntry:
    """A set that ran from `begun` until it was `seen` last (seconds since the epoch); `id` rises with each."""

    id: int
    boot: str
    deployment: str
    image: str
    digest: str
    version: str
    bound: tuple[tuple[str, str], ...]
    ready: bool
    begun: int
    seen: int


def create(database: sqlite3.Connection) -> None:
    """Make the tables of a new file."""
    for statement in _TABLES.split(";"):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {VERSION}")


_NAMES = tuple(each.name for each in fields(JobEntry))
_SET_NAMES = tuple(each.name for each in fields(SetEntry))
# Never over another job of the same number.
_WRITE = (
    f"INSERT INTO jobs ({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))}) ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _NAMES if name != "id")
    + " WHERE jobs.uuid = excluded.uuid"
)


def write_job(database: sqlite3.Connection, entry: JobEntry) -> None:
    """Put down `entry` in place of what was there of it."""
    found = [getattr(entry, name) for name in _NAMES]
    database.execute(_WRITE, [_json(value) if isinstance(value, Mapping) else _text(value) for value in found])


def read_jobs(database: sqlite3.Connection, where: str, *values: Any) -> list[JobEntry]:
    """The jobs that fit `where`."""
    rows = database.execute(f"SELECT {', '.join(_NAMES)} FROM jobs {where}", values).fetchall()
    return [_job(dict(zip(_NAMES, row, strict=True))) for row in rows]


def newest_jobs(database: sqlite3.Connection, limit: int, since: int, number: int) -> list[JobEntry]:
    """As `HistoryFile.jobs`."""
    number, since = min(number, _BIGGEST), min(since, _BIGGEST)
    where = "WHERE (? = 0 OR id = ?) AND (? = 0 OR ended = 0 OR max(ended, created) >= ?) ORDER BY id DESC LIMIT ?"
    return read_jobs(database, where, number, number, since, since, limit)


def newest_sets(database: sqlite3.Connection, limit: int, since: int) -> list[SetEntry]:
    """As `HistoryFile.sets`."""
    query = f"SELECT {', '.join(_SET_NAMES)} FROM sets WHERE seen >= ? ORDER BY id DESC LIMIT ?"
    return [_set(row) for row in database.execute(query, (min(since, _BIGGEST), limit)).fetchall()]


def _job(row: dict[str, Any]) -> JobEntry:
    mappings = {name: _parsed(shape.shaped(str, row[name])) for name in ("options", "details")}
    return shape.shaped(JobEntry, row | mappings | {"slot": _flag(row["slot"])})


def _flag(value: Any) -> Any:
    """SQLite has no truth values."""
    return bool(value) if value in (0, 1) else value


def _parsed(text: str) -> dict[str, Any]:
    try:
        return shape.from_json(dict[str, Any], text.encode())
    except ValueError:
        return {}


def _set(row: tuple[Any, ...]) -> SetEntry:
    entry = dict(zip(_SET_NAMES, row, strict=True))
    text = shape.shaped(str, entry["bound"])
    try:
        bound = shape.from_json(tuple[tuple[str, str], ...], text.encode())
    except ValueError:
        bound = ()
    return shape.shaped(SetEntry, entry | {"bound": bound, "ready": _flag(entry["ready"])})


def see(database: sqlite3.Connection, running: SetSeen) -> None:
    """Put down what runs now: a row for each set of each boot.

    When it began is worked out anew each time, from how long ago that is: at the boot the clock may have been wrong.
    """
    mark = _text(json.dumps([running.boot, *running.content]))
    query = "SELECT id, mark, boot, uptime FROM sets ORDER BY id DESC LIMIT 1"
    last_row = database.execute(query).fetchone() or (0, "", "", 0.0)
    number, last, boot, since = shape.shaped(tuple[int, str, str, float], last_row)
    if boot != running.boot:
        since = 0.0  # the first one of a boot runs since that
    elif last != mark:
        # As after a soft reboot: the one before has just ended.
        database.execute("UPDATE sets SET seen = ? WHERE id = ?", (running.seen, number))
        since = running.uptime
    else:
        database.execute("DELETE FROM sets WHERE id = ?", (number,))
        number -= 1
    begun = running.seen - round(running.uptime - since)
    before = database.execute("SELECT coalesce(max(seen), 0) FROM sets WHERE id = ?", (number,)).fetchone()
    (ended,) = shape.shaped(tuple[int], before)
    if ended <= running.seen:
        begun = max(begun, ended)  # whatever the uptime says, the one before ran until then
    database.execute(
        f"INSERT INTO sets (mark, uptime, {', '.join(_SET_NAMES)}) VALUES (?, ?, {', '.join('?' * len(_SET_NAMES))})",
        (
            *(mark, since, number + 1, running.boot, running.deployment, _text(running.image), running.digest),
            *(_text(running.version), json.dumps(running.bound), running.ready),
            *(begun, running.seen),
        ),
    )


def shorten(database: sqlite3.Connection) -> None:
    """Let the oldest go where there is more than is kept."""
    for table, where, keep in (
        ("jobs", "slot = 1", KEEP_JOBS),
        ("jobs", "slot = 0", KEEP_LOOKS),
        ("sets", "1 = 1", KEEP_SETS),
    ):
        last = f"SELECT id FROM {table} WHERE {where} ORDER BY id DESC LIMIT 1 OFFSET {keep}"
        database.execute(f"DELETE FROM {table} WHERE {where} AND id <= ({last})")
    while _bytes(database) > KEEP_BYTES:
        gone = 0
        for table in ("jobs", "sets"):
            oldest = f"SELECT id FROM {table} ORDER BY id LIMIT (SELECT (count(*) + 9) / 10 FROM {table})"
            gone += database.execute(f"DELETE FROM {table} WHERE id IN ({oldest})").rowcount
        if not gone:
            return


def _bytes(database: sqlite3.Connection) -> int:
    """In use; what is free in the file is used again."""
    (pages,), (free,), (size,) = (
        database.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _json(values: Mapping[str, Any]) -> str:
    """`values` as JSON of a sane length."""
    short = {key: value[:LONGEST_LIST] if isinstance(value, (list, tuple)) else value for key, value in values.items()}
    text = json.dumps(short, default=str, ensure_ascii=False)
    if len(text) > LONGEST_DETAILS:
        text = json.dumps({key: value for key, value in short.items() if not isinstance(value, (str, list, tuple))})
    return str(_text(text))


def _text(value: Any) -> Any:
    """A text that SQLite takes: no lone surrogates (undecodable bytes in file names)."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value
