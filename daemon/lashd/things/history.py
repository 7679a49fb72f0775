# SPDX-License-Identifier: Apache-2.0
"""The file of the history (SQLite): the jobs that were, and which host image ran with which bound images.

A row is on disk when the call that wrote it returns, and a power cut leaves it whole or not there at all: the journal
is of SQLite's classic kind, so nothing but this one file, and for moments its journal, has to be kept together. A file
that is damaged, or of another version, is set aside and a new one begun. For one thread at a time; all of it may wait
for the disk.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from lashd.things import history_rows
from lashd.things.history_rows import VERSION, JobEntry, SetEntry, SetSeen
from lashd.words import shape
from lashd.words.errors import ErrorName, LashdError

log = logging.getLogger(__name__)

# How long somebody else's lock on the file is waited for (seconds).
LOCK_SECONDS = 2.0

_T = TypeVar("_T")
# SQLITE_ERROR: a table or a column is not there, since our statements never change.
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR})


class HistoryFile:
    """`lock` is a file that is held locked while the history is open, so that no two daemons write it.

    All that reads or writes raises LashdError: NoSpace, Busy while another daemon has it, Internal for the rest.
    """

    def __init__(self, path: Path, lock: Path) -> None:
        self.path = path
        self._lock_path = lock
        self._lock = -1
        self._database: sqlite3.Connection | None = None
        self._opened_file: tuple[int, int] | None = None
        self.lost = False  # what was there was set aside

    def unfinished(self) -> list[JobEntry]:
        """The jobs of which nobody has written how they ended, oldest first."""
        return self._do(lambda database: history_rows.read_jobs(database, "WHERE ended = 0 ORDER BY id"))

    def last_number(self) -> int:
        """The highest number of a job; 0 when none is known."""
        return self._do(lambda database: int(database.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()[0]))

    def jobs(self, *, limit: int, since: int = 0, number: int = 0) -> list[JobEntry]:
        """The newest `limit` jobs, newest first: that `number`, and those that ran at `since` or later (0: any)."""
        return self._do(lambda database: history_rows.newest_jobs(database, limit, since, number))

    def sets(self, *, limit: int, since: int = 0) -> list[SetEntry]:
        """The newest `limit` sets, newest first: those that were seen at `since` or later (0: any)."""
        return self._do(lambda database: history_rows.newest_sets(database, limit, since))

    def write(self, jobs: Iterable[JobEntry], running: SetSeen | None = None) -> None:
        """Put down `jobs`, each in place of what was there of it, and what runs now: all of it or nothing."""
        entries = list(jobs)

        def work(database: sqlite3.Connection) -> None:
            for entry in entries:
                history_rows.write_job(database, entry)
            if running is not None:
                history_rows.see(database, running)
            history_rows.shorten(database)

        self._do(lambda database: _whole(database, work))

    def close(self) -> None:
        """Let go of the file, and of the lock."""
        self._close_database()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ---- inner ----

    def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            try:
                return work(self._usable())
            except (sqlite3.Error, shape.Misfit) as error:
                if isinstance(error, sqlite3.Error) and _code(error) not in _DAMAGE:
                    raise
                self._set_aside("damaged", str(error))
                return work(self._usable())
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def _usable(self) -> sqlite3.Connection:
        if self._database is None or self._file() != self._opened_file:
            self._close_database()
            self._take_lock()
            self._database = self._opened()
            self._opened_file = self._file()
        return self._database

    def _file(self) -> tuple[int, int] | None:
        """What tells the file apart from another one that somebody puts in its place."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _close_database(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(self.path.lstat().st_mode):
                self._set_aside("damaged", "it is no file")
        if not self.path.exists():
            self._create()
        for _ in range(2):
            database = sqlite3.connect(
                self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=16
            )
            # Else a text with one wrong byte keeps all the others from being read.
            database.text_factory = lambda content: content.decode(errors="replace")
            try:
                if (version := _prepare(database)) == VERSION:
                    return database
            except BaseException:
                database.close()
                raise
            database.close()
            # As after a rollback of the host: what the other version has written, it will understand.
            self._set_aside(f"version-{version}", f"it is of version {version}, and this lashd knows {VERSION}")
            self._create()
        raise AssertionError

    def _create(self) -> None:
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _take_lock(self) -> None:
        if self._lock >= 0:
            return
        try:
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = -1
            raise LashdError(ErrorName.BUSY, f"Another lashd keeps the history in {self.path}.") from error

    def _set_aside(self, what: str, why: str) -> None:
        self._close_database()
        aside = self.path.with_name(f"{self.path.name}.{what}")
        for suffix in ("", "-journal", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").replace(f"{aside}{suffix}")
        self.lost = True
        log.error("The history %s cannot be used (%s); it is kept as %s, and a new one begins", self.path, why, aside)

    def _unusable(self, error: sqlite3.Error | OSError) -> LashdError:
        full = _code(error) == sqlite3.SQLITE_FULL
        return LashdError(
            ErrorName.NO_SPACE if full else ErrorName.INTERNAL,
            f"The history {self.path} cannot be read or written ({error}). Jobs run all the same; what becomes of them "
            "is kept in memory until it can be written.",
        )


def _prepare(database: sqlite3.Connection) -> int:
    """Make a new file ours, and look at an old one; its version. Raises sqlite3.Error."""
    database.execute("PRAGMA journal_mode = TRUNCATE")
    # With this kind of journal a transaction is on disk when it ends.
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA trusted_schema = OFF")
    # KiB; what is not asked for does not stay in memory, and the check reads all of it.
    database.execute("PRAGMA cache_size = -128")
    if (found := database.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
        error = sqlite3.DatabaseError(found[0] if found else "it cannot be checked")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0 and database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
        _whole(database, history_rows.create)
        return VERSION
    return int(version)


def _whole(database: sqlite3.Connection, work: Callable[[sqlite3.Connection], None]) -> None:
    """Do `work` as one transaction."""
    database.execute("BEGIN IMMEDIATE")
    try:
        work(database)
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _code(error: Exception) -> int:
    """SQLite's primary code of `error`; -1 when it has none."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else int(code) & 0xFF
