# SPDX-License-Identifier: Apache-2.0
"""Which deployments a host has, read from its files: no lock, no root, no process, no bindings.

What cannot be read makes fewer facts, never an error. The rules are libostree's own (how entries are sorted, which
one is booted) and bootc's (which one is the rollback).
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path

from lashd.things import composefs
from lashd.things.gvariant import parse
from lashd.things.ostree.facts import (
    DEPLOYMENT_NAME,
    MERGES,
    BootEntry,
    CommitFacts,
    boot_entries,
    commit_facts,
    parse_origin,
    read,
    staged_name,
)
from lashd.things.ostree.lockfile import LOCK, NOTE, STAGED, key_is_ours, look_at_lock
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Role

_LINK = re.compile(r"/ostree/boot\.[01]/(?P<stateroot>[^/]+)/[^/]+/[0-9]+")
_COMMITS_KEPT = 256


def find_sysroot(settings: Settings) -> OstreeSysroot:
    """The ostree sysroot of this host, or the one in a directory. Raises UnsupportedHost when there is none."""
    sysroot = OstreeSysroot(settings)
    if settings.booted_sysroot and composefs.is_host(settings):
        raise LashdError(ErrorName.UNSUPPORTED_HOST, composefs.refusal(settings))
    if not sysroot.repository.is_dir():
        raise LashdError(
            ErrorName.UNSUPPORTED_HOST,
            f"There is no ostree repository in {settings.host.sysroot}; lashd works on hosts that boot from "
            "ostree, and on sysroots that 'ostree admin init-fs' has made.",
        )
    if settings.booted_sysroot and not sysroot.booted:
        raise LashdError(ErrorName.UNSUPPORTED_HOST, "This system was not booted from ostree.")
    return sysroot


class OstreeSysroot:
    """The deployments of the sysroot that `settings` names. Cheap to ask again while nothing has changed."""

    def __init__(self, settings: Settings) -> None:
        self._sysroot = settings.host.sysroot
        self._run = settings.paths.ostree_run
        self._root = settings.paths.root
        self.booted = settings.booted_sysroot and (self._root / "run/ostree-booted").exists()
        self._boot = self._root / "boot" if self.booted else self._sysroot / "boot"
        self._commits: dict[str, CommitFacts] = {}
        self._stamps: dict[Path, object] = {}
        self._known: tuple[Deployment, ...] = ()

    @property
    def repository(self) -> Path:
        return self._sysroot / "ostree/repo"

    def watched(self) -> tuple[Path, ...]:
        """Directories in which something changes when the deployments do."""
        return (self._boot / "loader", self._boot / "loader/entries", self._sysroot / "ostree/deploy")

    def deployments(self) -> tuple[Deployment, ...]:
        """In boot order: the one that boots next is first, a staged one before all others."""
        if not self._stamps or any(_stamp(path) != stamp for path, stamp in self._stamps.items()):
            # Each file's stamp is taken before it is read: a change in between is seen the next time.
            # libostree bumps the time of ostree/deploy with all it does.
            self._stamps.clear()
            for path in (self._boot / "loader", self._boot / "loader/entries", self._sysroot / "ostree/deploy"):
                self._stamps[path] = _stamp(path)
            for path in (self._run / STAGED, self._run / LOCK, self._run / NOTE):
                self._stamps[path] = _stamp(path)
            try:
                self._known = self._list()
            except BaseException:
                self._stamps.clear()  # what was known before is not what is there now
                raise
        return self._known

    def commit(self, checksum: str) -> CommitFacts:
        """Facts of a commit, empty ones when it cannot be read."""
        facts = self._commits.get(checksum)
        if facts is None:
            path = self.repository / "objects" / checksum[:2] / f"{checksum[2:]}.commit"
            facts = commit_facts(read(path))
            if facts.timestamp is not None:
                if len(self._commits) >= _COMMITS_KEPT:
                    self._commits.clear()
                self._commits[checksum] = facts
        return facts

    def resolve(self, ref: str) -> str | None:
        """The commit that a local ref names, if its commit object is there."""
        checksum = read(self.repository / "refs/heads" / ref).decode("ascii", "replace").strip()
        if not re.fullmatch(r"[0-9a-f]{64}", checksum) or self.commit(checksum).timestamp is None:
            return None
        return checksum

    def boot_entry(self, deployment: Deployment) -> BootEntry:
        """How the installed `deployment` is booted; an empty one when no boot entry says so."""
        for entry in boot_entries(self._boot / "loader/entries"):
            found = self._from_link(entry.link, None)
            if found is not None and found.root == deployment.root:
                return entry
        return BootEntry()

    def _list(self) -> tuple[Deployment, ...]:
        booted = _booted_inode(self._root) if self.booted else None
        found: list[Deployment] = []
        if self.booted and (staged := self._staged()):
            found.append(staged)
        for entry in boot_entries(self._boot / "loader/entries"):
            deployment = self._from_link(entry.link, booted)
            if deployment is not None:
                found.append(deployment)
        return _with_rollback(found)

    def _from_link(self, link: str, booted: tuple[int, int] | None) -> Deployment | None:
        match = _LINK.fullmatch(link)
        try:
            name = DEPLOYMENT_NAME.fullmatch((self._sysroot / link[1:]).readlink().name) if match else None
            found = (self._sysroot / link[1:]).stat()
        except OSError:
            return None
        if match is None or name is None:
            return None
        roles = {Role.BOOTED} if booted == (found.st_dev, found.st_ino) else set()
        return self._deployment(match["stateroot"], name[0], roles)

    def _staged(self) -> Deployment | None:
        try:
            state = parse("a{sv}", read(self._run / STAGED))
            stateroot, name = staged_name(state["target"])
            merges = None
            if isinstance(state.get(MERGES), dict):  # as libostree, for which another type is as good as none
                merges = self._checkout(*staged_name(state[MERGES]))
        except (ValueError, KeyError, TypeError):
            return None
        deployment = self._deployment(stateroot, name, {Role.STAGED})
        deployment = _held(self._run, deployment, key_set=state.get("locked") is True)
        deployment = replace(deployment, merges=merges)
        # Between the two moments at which libostree writes its file and makes or removes the directory.
        return deployment if deployment.root.is_dir() else None

    def _checkout(self, stateroot: str, name: str) -> Path:
        return self._sysroot / "ostree/deploy" / stateroot / "deploy" / name

    def _deployment(self, stateroot: str, name: str, roles: set[Role]) -> Deployment:
        checksum, _, serial = name.partition(".")
        root = self._checkout(stateroot, name)
        origin = root.with_name(root.name + ".origin")
        self._stamps[origin] = _stamp(origin)
        image, pinned = parse_origin(read(origin).decode("utf-8", "replace"))
        facts = self.commit(checksum)
        return Deployment(
            stateroot=stateroot,
            checksum=checksum,
            serial=int(serial),
            root=root,
            roles=frozenset(roles | ({Role.PINNED} if pinned else set())),
            image=image,
            digest=facts.digest,
            version=facts.version,
            timestamp=facts.timestamp,
        )


def _held(run: Path, staged: Deployment, *, key_set: bool) -> Deployment:
    """`staged` with who holds it. `key_set`: ostree's note of it says that it is locked."""
    lock, own = look_at_lock(run), key_set and key_is_ours(run, staged.checksum)
    foreign_key = key_set and not own
    if lock is None:
        return replace(staged, locked=key_set, foreign_lock=foreign_key, key_locked=own)
    declared = lock.is_for(staged.key) and lock.ready and not key_set
    foreign = foreign_key or not lock.ours
    return replace(staged, locked=not declared, declared=declared, foreign_lock=foreign, key_locked=own)


def _with_rollback(found: list[Deployment]) -> tuple[Deployment, ...]:
    """As bootc has it: the first of the booted one's stateroot that is neither booted nor staged, also when it is
    queued to boot next. On a sysroot that is not booted, the one after the first."""
    installed = [deployment for deployment in found if Role.STAGED not in deployment.roles]
    current = next((one for one in installed if Role.BOOTED in one.roles), installed[0] if installed else None)
    rollback = next(
        (one for one in installed if current and one is not current and one.stateroot == current.stateroot), None
    )
    return tuple(replace(one, roles=one.roles | {Role.ROLLBACK}) if one is rollback else one for one in found)


def _booted_inode(root: Path) -> tuple[int, int] | None:
    """Device and inode of the directory that is the running root: from ostree's note, else of the root itself."""
    with contextlib.suppress(ValueError, TypeError):
        device, inode = parse("a{sv}", read(root / "run/ostree-booted")).get("backing-root-device-inode", (None, None))
        if isinstance(device, int) and isinstance(inode, int):
            return device, inode
    with contextlib.suppress(OSError):
        found = root.stat()
        return found.st_dev, found.st_ino
    return None


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
