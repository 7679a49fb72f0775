# SPDX-License-Identifier: Apache-2.0
"""The `bootc` host backend, where bootc owns an ostree sysroot.

What there is, and who holds it, is on the disk as on any ostree host, so nothing is ever asked of bootc that takes its
lock. An upgrade is left to bootc, which fetches and stages in one go. A rollback is not: bootc's drops whatever has
been staged by the time it gets the lock, without a word, and refuses some that libostree can do. lashd's hold is the
lock file and not `--download-only`: that key in ostree's note is nobody's by name, and any plain `bootc upgrade` takes
it away, but leaves the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial

from lashd.things.bootc.announcement import announce
from lashd.things.bootc.driver import Driver, argv_for
from lashd.things.bootc.outcome import outcome
from lashd.things.host import Arrived, Fetched, nobody
from lashd.things.ostree import names
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.ostree.commitroot import CommitRoot
from lashd.things.ostree.fetch import OpenProxy
from lashd.things.ostree.lockfile import STAGING, Lock, read_lock, remove_lock, write_lock
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage, Owed, Role
from lashd.words.progress import Event, Report

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05  # between two looks whether bootc has staged; a few stat(2)


def _follows(staged: Deployment, image: HostImage) -> bool:
    """Whatever word the origin has for the signature: bootc writes that in its own spelling."""
    there = staged.image
    return there is not None and (there.transport, there.reference) == (image.transport, image.reference)


def _tell_failure(upgrade: asyncio.Task[None]) -> None:
    if not upgrade.cancelled() and (error := upgrade.exception()) is not None:
        log.warning("bootc has staged the new system and failed afterwards: %s", error)


class BootcBackend(OstreeBackend):
    """See HostBackend. Raises UnsupportedHost when there is no ostree sysroot."""

    kind = "bootc"
    pruned = True

    def __init__(self, settings: Settings, open_proxy: OpenProxy | None = None) -> None:
        super().__init__(settings, open_proxy)
        self._driver = Driver(settings)
        self._rest: asyncio.Task[None] | None = None  # a bootc that has staged, and cleans up

    async def fetch(
        self,
        image: HostImage,
        *,
        expected_digest: str | None,
        report: Report,
        arrived: Arrived = nobody,
        by_digest: bool = False,
    ) -> Fetched:
        """As in HostBackend; bootc stages what it fetches at once, so this does, too, held from its first instant on.

        `by_digest` (what was lost is staged again) is nothing that bootc can do; lashd fetches that itself.
        """
        if by_digest or not (self._is_followed(image) or image.transport == "registry"):
            return await super().fetch(
                image, expected_digest=expected_digest, report=report, arrived=arrived, by_digest=by_digest
            )
        await self._cleaned_up()
        run = self._settings.paths.ostree_run
        before = self._staged()
        if read_lock(run) is None:
            write_lock(run, Lock(before.key if before is not None else STAGING))
        try:
            await self._until_staged(image, before, report, partial(self._look_for, image, expected_digest, arrived))
        except LashdError as error:
            if error.name not in (ErrorName.BOUND_IMAGE_INVALID, ErrorName.BOUND_IMAGE_MISSING):
                raise
            # What bootc does not understand, or cannot fetch, lashd may; versions after 1.16.9 look before they stage.
            log.warning("%s lashd stages it without bootc.", error.message)
            return await super().fetch(image, expected_digest=expected_digest, report=report, arrived=arrived)
        finally:
            self._hold_what_came(before)
        return outcome(self.deployments(), image, expected_digest)

    async def stage(self, fetched: Fetched, image: HostImage) -> Deployment:
        staged = self._staged()
        if staged is not None and staged.checksum == fetched.checksum and _follows(staged, image):
            await self.hold(staged)
            return self._by_key(staged.key)
        return self._announced(await super().stage(fetched, image))

    async def restage(self, owed: Owed, report: Report) -> Deployment:
        return self._announced(await super().restage(owed, report))

    async def release(self, deployment: Deployment) -> None:
        await self._cleaned_up()
        await super().release(deployment)

    async def discard(self, deployment: Deployment) -> None:
        await self._cleaned_up()
        await super().discard(deployment)

    async def roll_back(self, to: Deployment, *, drop_staged: bool = False) -> bool:
        await self._cleaned_up()
        return await super().roll_back(to, drop_staged=drop_staged)

    async def prune(self, keep: tuple[Fetched, ...] = ()) -> int:
        await self._cleaned_up()
        return await super().prune(keep)

    async def recover(self) -> None:
        if await self._driver.running():
            # What it stages in the end is noticed and held like anybody's; until then its lock on nothing is no
            # leftover. But somebody has to read its progress: it would wait for that, with its lock, for ever.
            if self._rest is None or self._rest.done():
                self._rest = asyncio.create_task(self._driver.adopt(), name="bootc of a daemon before this one")
            return
        await super().recover()

    # ---- inner ----

    def _announced(self, staged: Deployment) -> Deployment:
        """Who waits for bootc's word that a reboot is worth it gets it for what bootc has not staged, too."""
        with contextlib.suppress(OSError):
            announce(self._settings, staged.digest)
        return staged

    async def _cleaned_up(self) -> None:
        """Wait for a bootc of ours that has staged: it holds the sysroot's lock for as long as it cleans up."""
        if self._rest is not None:
            await asyncio.wait([self._rest])

    async def _until_staged(
        self, image: HostImage, before: Deployment | None, report: Report, look: Callable[[], bool]
    ) -> None:
        """Have bootc upgrade, until it has staged something new or ended; its clean-up is not waited for.

        `look` is called every now and then, until it answers that there is nothing more to see.

        Raises what its words mean when it ends without having staged anything.
        """
        followed = self._is_followed(image)
        subject = f"The {'upgrade' if followed else 'switch'} to the newest {image.reference} by bootc"
        argv = argv_for(image, followed=followed)
        # As bootc names it when it looks for it in the store of bound images.
        name = image.reference if image.transport == "registry" else f"{image.transport}:{image.reference}"
        listening = looking = True

        def heard(event: Event) -> None:
            if listening:
                report(event)

        upgrade = asyncio.create_task(self._driver.change(argv, subject, heard, image=name), name="bootc upgrade")
        try:
            while not (await asyncio.wait([upgrade], timeout=_LOOK_SECONDS))[0] and not self._came(before):
                looking = looking and not look()
        except BaseException:
            upgrade.cancel()
            await asyncio.wait([upgrade])
            raise
        finally:
            listening = False
        if upgrade.done() and not self._came(before):
            upgrade.result()
            return
        # What is staged is bound from now on, whatever becomes of the rest.
        self._rest = upgrade
        upgrade.add_done_callback(_tell_failure)

    def _look_for(self, image: HostImage, digest: str | None, arrived: Arrived) -> bool:
        """Tell `arrived` once bootc has brought `image` into the repository; whether that was to be told.

        bootc writes the image's ref together with the commit that it names, and begins to stage only then.
        """
        commit = self._sysroot.resolve(names.image_ref(image.transport, image.reference))
        if digest is None or commit is None or self._sysroot.commit(commit).digest != digest:
            return False
        arrived(partial(CommitRoot, self._sysroot.repository, commit))
        return True

    def _came(self, before: Deployment | None) -> bool:
        """Whether something else is staged than `before`."""
        staged = self._staged()
        return staged is not None and (before is None or staged.name != before.name)

    def _is_followed(self, image: HostImage) -> bool:
        """Whether `bootc upgrade` would fetch `image`: what is staged says what to follow, else what is booted."""
        for role in (Role.STAGED, Role.BOOTED):
            found = next((one for one in self.deployments() if role in one.roles), None)
            if found is not None and found.image is not None:
                return found.image == image
        return False

    def _hold_what_came(self, before: Deployment | None) -> None:
        """Whatever bootc has left staged is ours to hold; libostree takes the lock away when it replaces another."""
        run, staged = self._settings.paths.ostree_run, self._staged()
        present = read_lock(run)
        if staged is not None:
            if self._came(before) or present is None:
                write_lock(run, Lock(staged.key))
        elif present == Lock(STAGING):
            remove_lock(run)
