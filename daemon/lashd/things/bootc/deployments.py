# SPDX-License-Identifier: Apache-2.0
"""Which deployments a host of bootc's composefs backend has, read from its files: no lock, no process.

A deployment is called by its id, the fs-verity digest of its EROFS image, which stands for an ostree commit everywhere:
its key is `<id>.0`. All share one /var, that of the stateroot `default`. What cannot be read makes fewer facts.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from lashd.things import composefs
from lashd.things.bootc import bootentries
from lashd.things.bootc.roots import Kind, Roots
from lashd.things.bootc.status import Entry, Status, read_status
from lashd.things.composefs import DEPLOYMENT, Note, read_note
from lashd.things.ostree.facts import parse_origin, read
from lashd.things.rootfs import Root, TooMuch, Unreadable
from lashd.things.specifiers import parse_os_release
from lashd.words import shape
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, Role
from lashd.words.reference import is_digest

STATEROOT = "default"
# In lashd's run directory: the id of the staged deployment that was declared ready, and what bootc said of itself.
READY = "composefs-ready"
STATUS = "bootc-status.json"


@dataclass(frozen=True, slots=True)
class _ImageInfo:
    """`<id>.imginfo`, which bootc wrote before the origin had the digest."""

    manifest: msgspec.Raw


class ComposefsSysroot:
    """The deployments of the running host."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.paths.root
        self._run = settings.paths.composefs_run
        self._own = settings.paths.run
        self._state = settings.host.sysroot / "state/deploy"
        self.roots = Roots(settings)
        self._versions: dict[Path, str | None] = {}

    @property
    def booted(self) -> str:
        """Id of the running deployment."""
        return bootentries.booted(self._root)

    def watched(self) -> tuple[Path, ...]:
        return (self._run, self._state, self.roots.directory, *bootentries.directories(self._root))

    def note(self) -> Note | None:
        """What is staged; None also when that cannot be understood.

        The note outlives a soft reboot into what it names, which is staged no more then.
        """
        with contextlib.suppress(composefs.Unreadable):
            note = read_note(self._run)
            return None if note is not None and note.deployment == self.booted else note
        return None

    def deployments(self) -> tuple[Deployment, ...]:
        """In boot order, a staged one first; the rollback is the first that is neither booted nor staged."""
        booted, note = self.booted, self.note()
        staged = note.deployment if note is not None else ""
        order = [id for id in self.order() if id != staged]
        if booted and booted not in order:
            order.insert(0, booted)
        found = [self.staged(note)] if note is not None else []
        rollback = next((id for id in order if id != booted), "")
        for id in order:
            kind, role = (Kind.BOOTED, Role.BOOTED) if id == booted else (Kind.INSTALLED, Role.ROLLBACK)
            found.append(self._deployment(id, kind, {role} if id in (booted, rollback) else set()))
        return tuple(found)

    def staged(self, note: Note) -> Deployment:
        """What `note` names, with who holds it."""
        found = self._deployment(note.deployment, Kind.STAGED, {Role.STAGED})
        declared = note.ours and read(self._own / READY).decode("ascii", "replace").strip() == note.deployment
        booted = self.booted
        return replace(
            found,
            locked=bool(note.locked) and not declared,
            declared=declared,
            foreign_lock=note.foreign,
            merges=self.roots.place(booted, Kind.BOOTED) if booted else None,
        )

    def unlisted(self) -> tuple[Deployment, ...]:
        """Those that have a state and no boot entry. Raises OSError when that is unknown."""
        listed = {one.checksum for one in self.deployments()}
        ids = sorted(path.name for path in self._state.iterdir() if DEPLOYMENT.fullmatch(path.name))
        return tuple(self._deployment(id, Kind.INSTALLED, set()) for id in ids if id not in listed)

    def origin(self, id: str) -> str:
        """The content of its origin file, empty without any."""
        return read(self._state / id / f"{id}.origin").decode("utf-8", "replace")

    def etc(self, id: str) -> Path:
        return self._state / id / "etc"

    def order_is_known(self) -> bool:
        """Whether `order` tells what boots next.

        bootc 1.16 says the contrary of what is so for unified kernel images outside of GRUB; then it starts with the
        booted one all the same.
        """
        return self.has_entries() or not _says_the_contrary(self.said())

    def has_entries(self) -> bool:
        """Whether the boot order can be read without bootc."""
        return bool(bootentries.installed(self._root))

    def said(self) -> Status:
        """What bootc has last said of itself; nothing when it was not asked."""
        content = read(self._own / STATUS)
        with contextlib.suppress(LashdError):
            return read_status(content) if content else Status()
        return Status()

    def order(self) -> tuple[str, ...]:
        """Ids of what has a boot entry, in boot order: from the entries, else as bootc has last told."""
        if found := bootentries.installed(self._root):
            return found
        said = self.said()
        if _says_the_contrary(said):
            said = replace(said, queued=False)
        return tuple(filter(None, map(_id_of, said.installed)))

    # ---- inner ----

    def _deployment(self, id: str, kind: Kind, roles: set[Role]) -> Deployment:
        root = self._root if kind is Kind.BOOTED else self.roots.place(id, kind)
        image, _ = parse_origin(self.origin(id))
        digest = self._digest(id)
        return Deployment(STATEROOT, id, 0, root, frozenset(roles), image, digest, self._version(root))

    def _digest(self, id: str) -> str | None:
        origin = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
        with contextlib.suppress(configparser.Error):
            origin.read_string(self.origin(id))
            digest = origin.get("image", "manifest_digest", fallback="").strip()
            if is_digest(digest):
                return digest
        with contextlib.suppress(shape.Misfit):
            # As bootc has it: the manifest as its own JSON has it, which is how nearly all are written.
            raw = bytes(shape.from_json(_ImageInfo, read(self._state / id / f"{id}.imginfo")).manifest)
            return f"sha256:{hashlib.sha256(raw).hexdigest()}"
        return None

    def _version(self, root: Path) -> str | None:
        """As the root says it itself; what the image is labelled with only bootc can tell."""
        if self._versions.get(root) is None:
            if len(self._versions) > 64:
                self._versions.clear()
            self._versions[root] = _version_of(root)
        return self._versions[root]


def _version_of(root: Path) -> str | None:
    try:
        with Root(root) as opened:
            said = parse_os_release(opened.read_text("usr/lib/os-release"))
    except (OSError, Unreadable, TooMuch):
        return None
    return next((said[name] for name in ("OSTREE_VERSION", "IMAGE_VERSION", "VERSION_ID") if said.get(name)), None)


def _says_the_contrary(said: Status) -> bool:
    kept = said.booted.composefs if said.booted is not None else None
    return kept is not None and kept.bootType == "Uki" and kept.bootloader != "grub"


def _id_of(entry: Entry) -> str:
    id = entry.composefs.verity if entry.composefs is not None else ""
    return id if DEPLOYMENT.fullmatch(id) else ""
