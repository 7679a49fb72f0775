# SPDX-License-Identifier: Apache-2.0
"""The `bootc-composefs` host backend, where bootc keeps deployments as EROFS images, without ostree.

What there is, and who holds it, is read from files; what changes deployments is left to bootc, because boot entries,
state directories and the note of what is staged are its own. lashd's hold is the flag in that note
(lashd.things.composefs). bootc fetches no bound image there, and its clean-up removes them all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from lashd.things import composefs
from lashd.things.bootc import BOOTC
from lashd.things.bootc.asked import Asked
from lashd.things.bootc.copyroot import copy_root
from lashd.things.bootc.deployments import READY, ComposefsSysroot
from lashd.things.bootc.driver import Driver, argv_for
from lashd.things.bootc.outcome import outcome
from lashd.things.bootc.roots import Kind
from lashd.things.host import Arrived, Fetched, Staging, nobody
from lashd.things.ostree import nextroot
from lashd.things.ostree.asking import Asking
from lashd.things.ostree.client import require_root
from lashd.things.ostree.facts import parse_origin
from lashd.things.ostree.fetch import OpenProxy
from lashd.things.ostree.image import check_signature_rule
from lashd.words import files
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage, Owed, Role
from lashd.words.progress import Report
from lashd.words.run import run, writable

log = logging.getLogger(__name__)

SERVICE = "bootc-finalize-staged.service"
_UNITS = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system")
_HELP_SECONDS = 10.0
_LINK_SECONDS = 30.0
_AGAIN_SECONDS = 30.0  # before it is tried again to read a deployment that could not be read
# As bootc makes it, whose store is where all of its others look for it.
_LINK = (
    '[ -e "$0/ostree/bootc" ] || { mkdir -p "$0/composefs/bootc" "$0/ostree" && ln -s ../composefs/bootc "$0/ostree"; }'
)


class ComposefsBackend(Asking):
    """See HostBackend. Raises UnsupportedHost where bootc, or something that it needs here, is missing."""

    kind = "bootc-composefs"
    pruned = True

    def __init__(self, settings: Settings, open_proxy: OpenProxy | None = None) -> None:
        super().__init__(settings, open_proxy)
        if why := _missing(settings):
            raise LashdError(ErrorName.UNSUPPORTED_HOST, composefs.refusal(settings, why))
        self._run = settings.paths.composefs_run
        self._ready = settings.paths.run / READY
        self._sysroot = ComposefsSysroot(settings)
        self._driver = Driver(settings)
        self._asked = Asked(settings, self._sysroot, self._driver)
        self._reading = asyncio.Lock()
        self._rest: asyncio.Task[None] | None = None  # reads what a bootc says that another daemon has started
        self._unread: dict[tuple[str, Kind], float] = {}  # could not be read, and when that was tried

    async def require(self) -> None:
        bootc = os.fspath(self._settings.paths.root / BOOTC)
        done = await run([bootc, "internals", "cfs", "mount", "--help"], timeout=_HELP_SECONDS)
        if done.status != 0:
            why = "This bootc cannot mount a deployment ('bootc internals cfs mount')."
            raise LashdError(ErrorName.UNSUPPORTED_HOST, composefs.refusal(self._settings, why))

    # ---- looking ----

    def deployments(self) -> tuple[Deployment, ...]:
        return self._sysroot.deployments()

    def unlisted(self) -> tuple[Deployment, ...]:
        try:
            return self._sysroot.unlisted()
        except OSError as error:
            raise LashdError(
                ErrorName.STORE_DAMAGED,
                f"{error.filename} cannot be read ({error.strerror}), so it is unknown which deployments there are.",
            ) from error

    def watched(self) -> tuple[Path, ...]:
        return (*self._sysroot.watched(), self._settings.store.parent)

    def staging(self, deployment: Deployment) -> Staging:
        return Staging(self._sysroot.origin(deployment.checksum))

    def holds(self, deployment: Deployment) -> bool:
        note = self._sysroot.note()
        return note is not None and note.ours and note.deployment == deployment.checksum

    def nextroot(self) -> str | None:
        try:
            return nextroot.UNKNOWN if nextroot.mounted() else None
        except OSError:
            return nextroot.UNKNOWN

    def take_down(self) -> None:
        nextroot.take_down_outside(self._settings.paths.ostree_run)

    def space(self) -> int:
        found = os.statvfs(self._settings.host.sysroot)
        return found.f_bavail * found.f_frsize

    async def make_readable(self) -> None:
        async with self._reading:
            await self._asked.ask()
            wanted = dict(self._wanted())
            await asyncio.to_thread(self._sysroot.roots.keep_only, frozenset(wanted))
            for (id, kind), etc in wanted.items():
                if not self._sysroot.roots.has(id, kind):
                    await self._read(id, kind, etc)

    # ---- changing ----

    async def fetch(
        self, image: HostImage, *, expected_digest: str | None, report: Report, arrived: Arrived = nobody
    ) -> Fetched:
        """As in HostBackend; bootc stages what it fetches at once, so this does, too. `arrived` is never told: what the
        image binds can be read once it is staged, and that is a moment after it is there."""
        require_root()
        check_signature_rule(image, self._settings.paths.root)
        followed = self._is_followed(image)
        if not followed and image.transport != "registry":
            raise LashdError(
                ErrorName.UNSUPPORTED_HOST,
                f"On a host of bootc's composefs backend only bootc can fetch a host image, and this host does not "
                f"follow {image.reference}; use 'bootc switch'.",
            )
        before = self._sysroot.note()
        # As bootc names it when it looks for it in the store of bound images.
        name = image.reference if image.transport == "registry" else f"{image.transport}:{image.reference}"
        subject = f"The {'upgrade' if followed else 'switch'} to the newest {image.reference} by bootc"
        try:
            await self._driver.change(argv_for(image, followed=followed), subject, report, image=name)
        except LashdError as error:
            staged = self._sysroot.note()
            if staged is None or (before is not None and staged.deployment == before.deployment):
                raise
            log.warning("bootc has staged the new system and failed afterwards: %s", error.message)
        finally:
            self._hold()
        await self.make_readable()
        return outcome(self.deployments(), image, expected_digest)

    async def stage(self, fetched: Fetched, image: HostImage) -> Deployment:
        for deployment in self.deployments():
            if Role.STAGED in deployment.roles and deployment.checksum == fetched.checksum:
                await self.hold(deployment)
                return next((one for one in self.deployments() if one.key == deployment.key), deployment)
        raise LashdError(ErrorName.NOTHING_STAGED, f"What bootc has staged ({fetched.checksum}) is staged no more.")

    async def restage(self, owed: Owed, report: Report) -> Deployment:
        """As in HostBackend, while the host's image still is what was lost: bootc stages nothing but the newest."""
        if self._sysroot.note() is not None:
            raise LashdError(ErrorName.BUSY, "Something is staged already, so what was lost is not staged again.")
        image, _ = parse_origin(owed.origin)
        newest = await self.check(image) if image is not None and self._is_followed(image) else ""
        if image is None or not newest or newest != owed.digest:
            raise LashdError(
                ErrorName.NOT_FOUND,
                f"The deployment {owed.checksum} that a reboot has lost is not the newest of the image that this host "
                "follows, and bootc can stage no other; 'lashctl upgrade' stages the newest.",
            )
        return await self.stage(await self.fetch(image, expected_digest=newest, report=report), image)

    async def recover(self) -> None:
        done = await run(
            writable(self._settings.host.sysroot, ["sh", "-c", _LINK, os.fspath(self._settings.host.sysroot)]),
            timeout=_LINK_SECONDS,
        )
        if done.status != 0:
            log.warning("The link to the bound image store could not be made: %s", done.stderr.strip())
        if await self._driver.running():
            # Somebody has to read its progress: it would wait for that, with its lock, for ever.
            self._rest = asyncio.create_task(self._driver.adopt(), name="bootc of a daemon before this one")
        if self._sysroot.note() is None:
            self._ready.unlink(missing_ok=True)
        await self.make_readable()

    async def hold(self, deployment: Deployment) -> None:
        require_root()
        self._require_staged(deployment)
        self._ready.unlink(missing_ok=True)
        note = self._hold()
        if note is not None and note.deployment == deployment.checksum and not note.locked:
            raise LashdError(
                ErrorName.UNSUPPORTED_HOST,
                f"{self._run / composefs.STAGED} has no flag 'finalization_locked' that could hold what is staged; "
                "this bootc is too old for lashd, or too new. It is kept back at shutdown all the same.",
            )

    async def release(self, deployment: Deployment) -> None:
        require_root()
        self._require_staged(deployment)
        # The flag stays until the gate has looked itself.
        note = self._hold()
        if note is None or note.deployment != deployment.checksum:
            self._require_staged(deployment)
        elif note.foreign:
            raise LashdError(
                ErrorName.HELD,
                f"Somebody else than lashd has locked the deployment {deployment.key}, for example 'bootc upgrade "
                "--download-only'; 'bootc upgrade --from-downloaded' takes that away.",
            )
        else:
            self._settings.paths.run.mkdir(parents=True, exist_ok=True)
            files.write_durably(self._ready, f"{deployment.checksum}\n".encode())

    async def discard(self, deployment: Deployment) -> None:
        """With `bootc delete-deployment`, which old versions do not know: UnsupportedHost then."""
        require_root()
        if Role.BOOTED in deployment.roles:
            raise LashdError(ErrorName.INVALID_ARGUMENT, "The booted deployment cannot be removed.")
        subject = f"Removing the deployment {deployment.key}"
        await self._driver.change(["delete-deployment", deployment.checksum], subject)
        if Role.STAGED in deployment.roles:
            self._ready.unlink(missing_ok=True)

    async def roll_back(self, to: Deployment, *, drop_staged: bool = False) -> bool:
        """As in HostBackend, with `bootc rollback`, which exchanges the first two in the boot order, and drops what is
        staged."""
        require_root()
        staged = next((one for one in self.deployments() if Role.STAGED in one.roles), None)
        if staged is not None and not drop_staged:
            raise LashdError(ErrorName.WOULD_DROP_STAGED)
        if not self._sysroot.order_is_known():
            raise LashdError(
                ErrorName.UNSUPPORTED_HOST,
                "Which deployment boots next cannot be told, because the EFI system partition with the boot entries is "
                "not mounted; nothing was changed. Mount it at /boot, /efi or /boot/efi, and try again.",
            )
        order = self._sysroot.order()
        if order[:1] == (to.checksum,):
            if staged is not None:
                await self.discard(staged)
            return staged is not None
        if not {Role.ROLLBACK, Role.BOOTED} & to.roles:
            raise LashdError(
                ErrorName.UNSUPPORTED_HOST,
                f"bootc can roll back to the deployment before the running one only, and {to.key} is another.",
            )
        await self._driver.change(["rollback"], f"The rollback to {to.version or to.key} by bootc")
        await self._asked.ask(anew=True)
        if self._sysroot.order()[:1] != (to.checksum,):
            raise LashdError(
                ErrorName.HOST_COMMAND_FAILED,
                f"bootc ended well, but {to.version or to.key} does not boot next; look at 'bootc status'.",
            )
        if staged is not None and self._sysroot.note() is not None:
            await self.discard(staged)  # with GRUB and unified kernel images bootc leaves it
        return True

    async def prune(self, keep: tuple[Fetched, ...] = ()) -> int:
        """bootc removes what no deployment needs with each upgrade, and offers no other way."""
        return 0

    # ---- inner ----

    def _hold(self) -> composefs.Note | None:
        """Set the flag of whatever is staged. What is then, None also when it cannot be understood."""
        try:
            return composefs.hold(self._run)
        except (OSError, composefs.Unreadable) as error:
            log.warning("%s cannot be held by its flag: %s", self._run / composefs.STAGED, error)
            return None

    def _wanted(self) -> list[tuple[tuple[str, Kind], Path | None]]:
        """Which copies of roots are needed, each with the /etc that it has been booted with, if it has."""
        wanted: list[tuple[tuple[str, Kind], Path | None]] = []
        everything = self.deployments()
        staged = any(Role.STAGED in one.roles for one in everything)
        for one in everything:
            if Role.STAGED in one.roles:
                wanted.append(((one.checksum, Kind.STAGED), None))
            elif Role.BOOTED not in one.roles:
                wanted.append(((one.checksum, Kind.INSTALLED), self._sysroot.etc(one.checksum)))
            elif staged:
                wanted.append(((one.checksum, Kind.BOOTED), None))
        return wanted

    async def _read(self, id: str, kind: Kind, etc: Path | None) -> None:
        last = self._unread.get((id, kind))
        if last is not None and time.monotonic() - last < _AGAIN_SECONDS:
            return
        try:
            await copy_root(self._settings, self._sysroot.roots, id, kind, etc)
            self._unread.pop((id, kind), None)
        except LashdError as error:
            self._unread[id, kind] = time.monotonic()
            log.warning("%s", error.message)

    def _is_followed(self, image: HostImage) -> bool:
        """Whether `bootc upgrade` would fetch `image`: what is staged says what to follow, else what is booted."""
        for role in (Role.STAGED, Role.BOOTED):
            found = next((one for one in self.deployments() if role in one.roles), None)
            if found is not None and found.image is not None:
                return found.image == image
        return False

    def _require_staged(self, deployment: Deployment) -> None:
        note = self._sysroot.note()
        if note is None:
            raise LashdError(ErrorName.NOTHING_STAGED)
        if note.deployment != deployment.checksum:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                f"The deployment {deployment.key} is no longer the staged one ({note.deployment}.0 is); nothing was "
                "changed.",
            )


def _missing(settings: Settings) -> str:
    """What this host lacks to be managed, as a whole sentence; empty when it lacks nothing."""
    root = settings.paths.root
    if not os.access(root / BOOTC, os.X_OK):
        return f"There is no {root / BOOTC}."
    if not any((root / place / SERVICE).exists() for place in _UNITS):
        return f"There is no {SERVICE}, so this bootc does not finalise at shutdown what it has staged."
    if not ComposefsSysroot(settings).booted:
        return "The kernel's command line does not say which deployment is booted."
    return ""
