# SPDX-License-Identifier: Apache-2.0
"""The `ostree` host backend: a host with ostree and without bootc, or a sysroot in a directory."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

from lashd.things.host import Arrived, Fetched, Staging, nobody
from lashd.things.ostree import names, nextroot
from lashd.things.ostree.asking import Asking
from lashd.things.ostree.checkouts import unlisted
from lashd.things.ostree.client import Worker, require_root
from lashd.things.ostree.commitroot import CommitRoot
from lashd.things.ostree.deployments import find_sysroot
from lashd.things.ostree.facts import parse_origin, read, staged_arguments, staged_initrds, staged_locked
from lashd.things.ostree.fetch import ImageFetch, OpenProxy
from lashd.things.ostree.image import check_signature_rule
from lashd.things.ostree.lockfile import (
    NOTE,
    STAGED,
    Lock,
    disown_key,
    noted_commit,
    own_key,
    put_back,
    read_lock,
    remove_lock,
    write_lock,
)
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.files import sync_filesystem
from lashd.words.model import Deployment, HostImage, Owed, Role
from lashd.words.progress import Report


class OstreeBackend(Asking):
    """See HostBackend. Raises UnsupportedHost when there is no ostree sysroot."""

    kind = "ostree"
    pruned = False

    def __init__(self, settings: Settings, open_proxy: OpenProxy | None = None) -> None:
        super().__init__(settings, open_proxy)
        self._sysroot = find_sysroot(settings)
        self._worker = Worker(settings, booted=self._sysroot.booted)

    async def require(self) -> None:
        """All that it takes is the repository."""

    def deployments(self) -> tuple[Deployment, ...]:
        return self._sysroot.deployments()

    def unlisted(self) -> tuple[Deployment, ...]:
        return unlisted(self._settings.host.sysroot, self.deployments())

    def watched(self) -> tuple[Path, ...]:
        # Also what bootc tells by: the time of its own directory, and on another kind of host its note.
        bootc = (self._settings.paths.composefs_run, self._settings.store.parent)
        return (self._settings.paths.ostree_run, *bootc, *self._sysroot.watched())

    async def make_readable(self) -> None:
        """Each is a directory of its own."""

    def staging(self, deployment: Deployment) -> Staging:
        origin = read(deployment.root.with_name(deployment.root.name + ".origin")).decode("utf-8", "replace")
        if Role.STAGED not in deployment.roles:
            entry = self._sysroot.boot_entry(deployment)
            return Staging(origin, entry.arguments, entry.initrds)
        # Should it have been replaced just now, whoever asks is told so soon.
        note = read(self._settings.paths.ostree_run / STAGED)
        return Staging(origin, staged_arguments(note), staged_initrds(note))

    def holds(self, deployment: Deployment) -> bool:
        try:
            present = read_lock(self._settings.paths.ostree_run)
        except OSError:
            return False
        return present is not None and present.deployment == deployment.key

    def nextroot(self) -> str | None:
        return nextroot.prepared(self._settings.paths.ostree_run, self.deployments())

    def take_down(self) -> None:
        nextroot.take_down_outside(self._settings.paths.ostree_run)

    def space(self) -> int:
        found = os.statvfs(self._sysroot.repository)
        return found.f_bavail * found.f_frsize

    async def fetch(
        self,
        image: HostImage,
        *,
        expected_digest: str | None,
        report: Report,
        arrived: Arrived = nobody,
        by_digest: bool = False,
    ) -> Fetched:
        """As in HostBackend; `by_digest` asks for `expected_digest`, whatever the name means now."""
        check_signature_rule(image, self._settings.paths.root)
        fetch = ImageFetch(
            self._settings,
            image,
            sysroot=self._sysroot,
            worker=self._worker,
            open_proxy=self._open_proxy,
            report=report,
            free=self.space,
        )
        commit, digest, dropped = await fetch.run(expected_digest, by_digest=by_digest)
        arrived(partial(CommitRoot, self._sysroot.repository, commit))
        # libostree syncs objects, but not the refs that name them.
        await asyncio.to_thread(sync_filesystem, self._sysroot.repository)
        following = self.deployments()
        changed = not following or following[0].digest != digest
        return Fetched(commit, digest, changed, dropped)

    async def stage(self, fetched: Fetched, image: HostImage) -> Deployment:
        staged = self._staged()
        if staged is not None and staged.checksum == fetched.checksum and staged.image == image:
            await self.hold(staged)
            return self._by_key(staged.key)
        key = await self._worker.change(
            "deploy",
            commit=fetched.checksum,
            origin=names.format_origin_image(image.reference, image.transport, image.signature),
            stateroot="" if self._sysroot.booted else self._settings.host.stateroot,
        )
        return self._by_key(key)

    async def restage(self, owed: Owed, report: Report) -> Deployment:
        commit = owed.checksum
        if self._sysroot.commit(commit).timestamp is None:
            commit = await self._fetch_again(owed, report)
        key = await self._worker.change(
            "restage", commit=commit, origin=owed.origin, stateroot=owed.stateroot, kargs=owed.kargs
        )
        return self._by_key(key)

    async def _fetch_again(self, owed: Owed, report: Report) -> str:
        image, _ = parse_origin(owed.origin)
        if image is None or not owed.digest:
            raise LashdError(
                ErrorName.NOT_FOUND,
                f"The commit {owed.checksum} of the deployment that a reboot has lost is gone, and its origin names no "
                "image to fetch it from; stage it again by hand.",
            )
        return (await self.fetch(image, expected_digest=owed.digest, report=report, by_digest=True)).checksum

    async def recover(self) -> None:
        # A soft reboot keeps what a gate that was killed left.
        put_back(self._settings.paths.ostree_run)
        present = read_lock(self._settings.paths.ostree_run)
        # Killed between holding and staging. What somebody else stages next is not ours to hold by accident.
        if present is not None and present.ours and self._staged() is None:
            remove_lock(self._settings.paths.ostree_run)
        self._recover_key()

    async def hold(self, deployment: Deployment) -> None:
        require_root()
        self._require_staged(deployment)
        write_lock(self._settings.paths.ostree_run, Lock(deployment.key))

    async def release(self, deployment: Deployment) -> None:
        self._require_staged(deployment)
        await self._worker.change("release", key=deployment.key)

    async def discard(self, deployment: Deployment) -> None:
        await self._worker.change("remove", key=deployment.key, stateroot=deployment.stateroot)

    async def roll_back(self, to: Deployment, *, drop_staged: bool = False) -> bool:
        changed: bool = await self._worker.change(
            "set-first", key=to.key, stateroot=to.stateroot, drop_staged=drop_staged
        )
        return changed

    async def prune(self, keep: tuple[Fetched, ...] = ()) -> int:
        freed = await self._worker.change("prune", keep=[fetched.checksum for fetched in keep])
        return int(freed["bytes"])

    def _recover_key(self) -> None:
        run, staged = self._settings.paths.ostree_run, self._staged()
        commit = noted_commit(run)
        if staged is not None and staged.checksum == commit and staged_locked(read(run / STAGED)):
            present = read_lock(run)
            if present is None or present.is_for(staged.key):
                own_key(run)
                write_lock(run, Lock(staged.key))
        (run / NOTE).unlink(missing_ok=True)
        if staged is None:
            disown_key(run)

    def _staged(self) -> Deployment | None:
        return next((one for one in self.deployments() if Role.STAGED in one.roles), None)

    def _require_staged(self, deployment: Deployment) -> None:
        staged = self._staged()
        if staged is None:
            raise LashdError(ErrorName.NOTHING_STAGED)
        if staged.key != deployment.key:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                f"The deployment {deployment.key} is no longer the staged one ({staged.key} is); nothing was changed.",
            )

    def _by_key(self, key: str) -> Deployment:
        for deployment in self.deployments():
            if deployment.key == key:
                return deployment
        raise LashdError(
            ErrorName.HOST_COMMAND_FAILED,
            f"ostree deployed {key}, but the deployment cannot be found; look at 'ostree admin status'.",
        )
