# SPDX-License-Identifier: Apache-2.0
"""What is left to do once a host has come up well: give back the right to reboot, clean up, let go of barred units."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from lashd.words import files
from lashd.words.errors import LashdError
from lashd.words.run import run

log = logging.getLogger(__name__)

# Between two looks while the boot still goes on, or something is missing.
LOOK_SECONDS = 10.0
_TIMEOUT = 20.0
_COMING_UP = ("initializing", "starting", "")
# Who judges a boot where it is installed; a boot that it calls bad is about to be rolled back.
_JUDGE = "greenboot-healthcheck.service"


class Aftercare:
    """`complete` says whether all images of the booted deployment are there, and `checksum` names it, empty for none.

    `steady` is called once, as soon as the boot is a good one. `collect` is called for each new deployment, from its
    first good boot on, until it answers that it came to its end. `mend` is called before both.
    """

    def __init__(
        self,
        state: Path,
        *,
        checksum: Callable[[], str],
        complete: Callable[[], bool],
        steady: Callable[[], Awaitable[None]],
        collect: Callable[[], Awaitable[bool]] | None,
        mend: Callable[[], Awaitable[None]],
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._noted = state / "good-boot"
        self._checksum = checksum
        self._complete = complete
        self._steady = steady
        self._collect = collect
        self._mend = mend
        self._seconds = look_seconds

    async def run(self) -> None:
        """Returns when nothing is left to do in this boot."""
        await self._until(self._good)
        await self._safely(self._mend())
        await self._safely(self._steady())
        await self._until(self._clean_up)

    async def _until(self, done: Callable[[], Awaitable[bool]]) -> None:
        for _ in itertools.count():
            if await done():
                return
            await asyncio.sleep(self._seconds)

    async def _good(self) -> bool:
        try:
            return bool(self._checksum()) and self._complete() and await came_up()
        except (LashdError, OSError) as error:
            log.debug("Whether this boot is a good one cannot be told yet: %s", error)
            return False

    async def _clean_up(self) -> bool:
        checksum = self._checksum()
        if self._collect is None or await asyncio.to_thread(self._last) == checksum:
            return True
        try:
            if not await self._collect():
                return False
        except LashdError as error:
            log.debug("Cleaning up waits: %s", error)
            return False
        try:
            await asyncio.to_thread(self._note, checksum)
        except OSError as error:
            # It is done once more at the next boot, and not now again and again.
            log.warning("That this system was cleaned up after cannot be noted: %s", error)
        return True

    def _last(self) -> str:
        try:
            return files.read_small(self._noted, 256).decode("ascii", "replace").strip()
        except (OSError, ValueError):
            return ""

    def _note(self, checksum: str) -> None:
        self._noted.parent.mkdir(parents=True, exist_ok=True)
        files.write_durably(self._noted, f"{checksum}\n".encode())

    async def _safely(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (LashdError, OSError) as error:
            log.warning("After this boot not all could be done: %s", error)


async def came_up(systemctl: str = "systemctl") -> bool:
    """Whether the boot has come to its end, and whoever judges boots has not called it a bad one.

    Without systemd there is nothing to wait for. Raises Timeout.
    """
    try:
        done = await run([systemctl, "is-system-running"], timeout=_TIMEOUT)
    except LashdError as error:
        if error.retryable:
            raise
        return True
    if done.stdout.decode(errors="replace").strip() in _COMING_UP:
        return False
    return not await has_failed(_JUDGE, systemctl)


async def has_failed(unit: str, systemctl: str = "systemctl") -> bool:
    """Whether systemd says that `unit` has failed. Raises Timeout, or HostCommandFailed without systemd."""
    return (await run([systemctl, "is-failed", "--quiet", unit], timeout=_TIMEOUT)).status == 0
