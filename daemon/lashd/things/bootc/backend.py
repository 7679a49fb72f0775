# SPDX-License-Identifier: Apache-2.0
"""The `bootc` host backend, where bootc owns an ostree sysroot.

What there is, and who holds it, is on the disk as on any ostree host, so nothing is ever asked of bootc that takes its
lock. What changes the host through bootc's own verbs is left to bootc: `upgrade` (which fetches and stages in one go)
and `rollback`. lashd's hold is the lock file and not `--download-only`: that key in ostree's note is nobody's by name,
and any plain `bootc upgrade` takes it away, but leaves the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lashd.things.bootc.driver import Driver
from lashd.things.host import Fetched
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.ostree.fetch import OpenProxy
from lashd.things.ostree.lockfile import STAGING, Lock, read_lock, remove_lock, write_lock
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.files import sync_filesystem
from lashd.words.model import Deployment, HostImage, Role
from lashd.words.progress import Report


class BootcBackend(OstreeBackend):
    """See HostBackend. Raises UnsupportedHost when there is no ostree sysroot."""

    kind = "bootc"

    def __init__(
        self,
        settings: Settings,
        open_proxy: OpenProxy | None = None,
        make_driver: Callable[[Settings], Driver] = Driver,
    ) -> None:
        super().__init__(settings, open_proxy)
        self._driver = make_driver(settings)

    async def fetch(
        self, image: HostImage, *, expected_digest: str | None, report: Report, by_digest: bool = False
    ) -> Fetched:
        """As in HostBackend; bootc stages what it fetches at once, so this does, too, held from its first instant on.

        `by_digest` (what was lost is staged again) is nothing that bootc can do; lashd fetches that itself.
        """
        if by_digest or not self._is_followed(image):
            return await super().fetch(image, expected_digest=expected_digest, report=report, by_digest=by_digest)
        run = self._settings.paths.ostree_run
        before = self._staged()
        if read_lock(run) is None:
            write_lock(run, Lock(before.key if before is not None else STAGING))
        await self._driver.adopt(report)
        subject = f"The upgrade to the newest {image.reference} by bootc"
        try:
            await self._driver.change(["upgrade", "--quiet"], subject, report, image=image.reference)
        finally:
            await self._hold_what_came(before)
        await asyncio.to_thread(sync_filesystem, self._sysroot.repository)
        return self._fetched(image, expected_digest)

    async def stage(self, fetched: Fetched, image: HostImage) -> Deployment:
        staged = self._staged()
        if staged is not None and staged.checksum == fetched.checksum:
            await self.hold(staged)
            return self._by_key(staged.key)
        return await super().stage(fetched, image)

    async def roll_back(self, to: Deployment, *, drop_staged: bool = False) -> bool:
        staged = self._staged()
        if staged is not None and not drop_staged:
            raise LashdError(ErrorName.WOULD_DROP_STAGED)
        order = [one.name for one in self.deployments() if Role.STAGED not in one.roles]
        if staged is None and order[:1] == [to.name]:
            return False
        if Role.ROLLBACK not in to.roles or order[:1] == [to.name] or len(order) != 2:
            # bootc exchanges the first two, whichever they are; only here that is certainly what is wanted.
            return await super().roll_back(to, drop_staged=drop_staged)
        await self._driver.change(["rollback"], "The rollback by bootc")
        first = next((one.name for one in self.deployments()), "")
        if first != to.name:
            raise LashdError(
                ErrorName.HOST_COMMAND_FAILED,
                f"bootc reported a rollback, but {first or 'nothing'} boots next instead of {to.name}; look at "
                "'bootc status'.",
            )
        return True

    async def recover(self) -> None:
        # What it stages in the end is noticed and held like anybody's; until then its lock on nothing is no leftover.
        if not await self._driver.running():
            await super().recover()

    # ---- inner ----

    def _is_followed(self, image: HostImage) -> bool:
        """Whether `bootc upgrade` would fetch `image`: what is staged says what to follow, else what is booted."""
        for role in (Role.STAGED, Role.BOOTED):
            found = next((one for one in self.deployments() if role in one.roles), None)
            if found is not None and found.image is not None:
                return found.image == image
        return False

    async def _hold_what_came(self, before: Deployment | None) -> None:
        """Whatever bootc has left staged is ours to hold; libostree takes the lock away when it replaces another."""
        run, staged = self._settings.paths.ostree_run, self._staged()
        present = read_lock(run)
        if staged is not None:
            if before is None or staged.name != before.name or present is None:
                write_lock(run, Lock(staged.key))
        elif present == Lock(STAGING):
            remove_lock(run)

    def _fetched(self, image: HostImage, expected_digest: str | None) -> Fetched:
        following = next(iter(self.deployments()), None)
        if following is None or following.digest is None:
            raise LashdError(
                ErrorName.HOST_COMMAND_FAILED,
                "bootc ended well, but no deployment with an image can be found; look at 'bootc status'.",
            )
        if expected_digest and following.digest != expected_digest:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                f"The newest image of {image.reference} was {expected_digest} a moment ago, and bootc has staged "
                f"{following.digest}; it stays held. Look at the new image and ask again with its digest.",
                retryable=True,
            )
        return Fetched(following.checksum, following.digest, Role.STAGED in following.roles)
