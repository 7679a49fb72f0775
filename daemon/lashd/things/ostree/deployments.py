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

from lashd.things.gvariant import parse
from lashd.things.ostree.facts import CommitFacts, boot_links, commit_facts, parse_origin, read
from lashd.things.ostree.lockfile import LOCK, STAGED, look_at_lock
from lashd.words.config import Settings
from lashd.words.model import Deployment, Role

_LINK = re.compile(r"/ostree/boot\.[01]/(?P<stateroot>[^/]+)/[^/]+/[0-9]+")
DEPLOYMENT_NAME = re.compile(r"(?P<checksum>[0-9a-f]{64})\.(?P<serial>[0-9]{1,9})")
_COMMITS_KEPT = 256


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
            for path in (self._run / STAGED, self._run / LOCK):
                self._stamps[path] = _stamp(path)
            self._known = self._list()
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

    def _list(self) -> tuple[Deployment, ...]:
        booted = _booted_inode(self._root) if self.booted else None
        found: list[Deployment] = []
        if self.booted and (staged := self._staged()):
            found.append(staged)
        for link in boot_links(self._boot / "loader/entries"):
            deployment = self._from_link(link, booted)
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
            target = state["target"]
            stateroot, name = target["osname"], target["name"]
            if not (isinstance(stateroot, str) and isinstance(name, str)):
                return None
        except (ValueError, KeyError, TypeError):
            return None
        if "/" in stateroot or stateroot in ("", ".", "..") or not DEPLOYMENT_NAME.fullmatch(name):
            return None
        deployment = self._deployment(stateroot, name, {Role.STAGED})
        locked, declared, foreign = _hold(self._run, name, key_set=state.get("locked") is True)
        deployment = replace(deployment, locked=locked, declared=declared, foreign_lock=foreign)
        # Between the two moments at which libostree writes its file and makes or removes the directory.
        return deployment if deployment.root.is_dir() else None

    def _deployment(self, stateroot: str, name: str, roles: set[Role]) -> Deployment:
        checksum, _, serial = name.partition(".")
        root = self._sysroot / "ostree/deploy" / stateroot / "deploy" / name
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


def _hold(run: Path, key: str, *, key_set: bool) -> tuple[bool, bool, bool]:
    """Who holds the staged deployment `key`: `locked`, `declared` and `foreign_lock` of Deployment.

    `key_set`: its own file says that it is locked.
    """
    lock = look_at_lock(run)
    if lock is None:
        return key_set, False, key_set
    declared = lock.is_for(key) and lock.ready and not key_set
    foreign = not lock.ours or (key_set and not (lock.is_for(key) and lock.with_key))
    return not declared, declared, foreign


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
