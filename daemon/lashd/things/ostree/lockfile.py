# SPDX-License-Identifier: Apache-2.0
"""ostree's finalisation lock file: while it exists, whatever is staged is not finalised at shutdown.

ostree only looks whether it is there. Ours says in its content that it is ours and for which deployment, so that
nobody else's is ever taken away. Nothing but the standard library is behind it: the worker uses it too.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from lashd.words import files

STAGED = "staged-deployment"
LOCK = "staged-deployment-locked"
_MARK = "lashd"
_LIMIT = 4096  # bytes; ours has hardly a hundred
# When ours was last changed, in seconds since the epoch: one that says another time was touched, which is how a person
# holds by hand.
_TIME = 1
# In place of a deployment's key while one is being staged.
STAGING = "staging"
# There while one is being staged: the `locked` key in what is staged from the commit that it names is ours, too.
# Whoever stages may be killed before he has taken that away again.
NOTE = ".lashd-staging"
# A second name of ostree's note of what is staged, while the `locked` key in there is ours. Whoever sets that key,
# takes it away or stages puts another note in its place, so this can never be about a key of somebody else's; and
# nobody loses it by removing the lock file.
OWN_KEY = ".lashd-locked"
# Where the note of what is staged lies while the boot order behind it is put right (`sysroot._staged_aside`).
ASIDE = f".{STAGED}.aside"


@dataclass(frozen=True, slots=True)
class Lock:
    """Who holds. `deployment` is its key (or STAGING), empty when the lock is not ours.

    `ready` says that the deployment was verified, so that only the gate at shutdown is still to look and to take the
    lock away.
    """

    deployment: str = ""
    ready: bool = False

    @property
    def ours(self) -> bool:
        return bool(self.deployment)

    def is_for(self, key: str) -> bool:
        return self.deployment in (key, STAGING)


def read_lock(ostree_run: Path) -> Lock | None:
    """The lock that is set, None without one. Raises OSError when it can be seen but not read."""
    try:
        content, status = files.read_regular(ostree_run / LOCK, _LIMIT)
    except FileNotFoundError:
        return None
    except ValueError:
        return Lock()  # to ostree whatever is there is a lock
    lines = content.decode(errors="replace").splitlines()
    if len(lines) < 2 or lines[0] != _MARK or status.st_mtime_ns != _TIME * 1_000_000_000:
        return Lock()
    return Lock(lines[1], "ready" in lines[2:])


def look_at_lock(ostree_run: Path) -> Lock | None:
    """As `read_lock`, for whoever only looks: a lock that cannot be read is somebody else's. Never raises."""
    try:
        return read_lock(ostree_run)
    except OSError:
        return Lock()


def write_lock(ostree_run: Path, lock: Lock, *, take_over: bool = False) -> Lock:
    """Set the lock, replacing one of ours; somebody else's stays unless `take_over`.

    Answers the lock that is set now. Raises OSError.
    """
    path = ostree_run / LOCK
    partial = ostree_run / f".{LOCK}.{os.getpid()}"
    text = "\n".join([_MARK, lock.deployment, *(["ready"] if lock.ready else []), ""])
    try:
        partial.write_text(text, encoding="utf-8")
        partial.chmod(0o640)
        os.utime(partial, (_TIME, _TIME))
        # At no moment is there no lock, and at no moment one without its content.
        present = read_lock(ostree_run)
        if present is None:
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(partial)
                return lock
            present = read_lock(ostree_run)
        if present is not None and not present.ours and not take_over:
            return present
        partial.rename(path)
        return lock
    finally:
        partial.unlink(missing_ok=True)


def remove_lock(ostree_run: Path) -> None:
    (ostree_run / LOCK).unlink(missing_ok=True)


def own_key(ostree_run: Path) -> None:
    """Remember that the `locked` key in what is staged now was set by lashd. Raises OSError."""
    disown_key(ostree_run)
    (ostree_run / OWN_KEY).hardlink_to(ostree_run / STAGED)


def disown_key(ostree_run: Path) -> None:
    (ostree_run / OWN_KEY).unlink(missing_ok=True)


def put_back(ostree_run: Path) -> bool:
    """Give ostree its note of what is staged again, should whoever put it aside have been killed meanwhile.

    One that is there is newer, and stays. Answers whether it was put back. Raises OSError.
    """
    note, aside = ostree_run / STAGED, ostree_run / ASIDE
    if note.exists():
        aside.unlink(missing_ok=True)
        return False
    try:
        aside.rename(note)
    except FileNotFoundError:
        return False
    return True


def key_is_ours(ostree_run: Path, commit: str = "") -> bool:
    """Whether a `locked` key in what is staged now, from `commit`, is there because lashd set it. Never raises."""
    if commit and noted_commit(ostree_run) == commit:
        return True
    try:
        return os.path.samestat((ostree_run / STAGED).lstat(), (ostree_run / OWN_KEY).lstat())
    except OSError:
        return False


def noted_commit(ostree_run: Path) -> str:
    """The commit that lashd is staging, or was when it was killed; empty for none."""
    try:
        return files.read_regular(ostree_run / NOTE, _LIMIT)[0].decode("ascii")
    except (OSError, ValueError):
        return ""
