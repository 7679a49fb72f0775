# SPDX-License-Identifier: Apache-2.0
"""`bootc status`, for what no file that can be read tells: the boot order, where the boot partition is not mounted.

It takes bootc's lock, and waits for whoever has it. So it is asked seldom, for a bounded time, and never while a bootc
is seen to be at work; what it last said stays in lashd's run directory, also for the gate.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time

from lashd.things.bootc import BOOTC
from lashd.things.bootc.deployments import STATUS, ComposefsSysroot
from lashd.things.bootc.driver import Driver
from lashd.things.bootc.status import read_status
from lashd.words import files
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.run import run

log = logging.getLogger(__name__)

LIMIT_SECONDS = 20.0
AGAIN_SECONDS = 60.0


class Asked:
    def __init__(self, settings: Settings, sysroot: ComposefsSysroot, driver: Driver) -> None:
        self._settings = settings
        self._sysroot = sysroot
        self._driver = driver
        self._before: tuple[object, float] = (None, 0.0)

    async def ask(self, *, anew: bool = False) -> None:
        """See that what bootc has last said is true, if it is needed; `anew`: also when nothing seems to have changed.

        Never raises LashdError: without an answer what was said before counts.
        """
        if self._sysroot.has_entries() or await self._driver.running() or self._is_locked():
            return
        now, state = time.monotonic(), self._state()
        known, at = self._before
        if not anew and known == state and now - at < AGAIN_SECONDS:
            return
        self._before = (state, now)
        try:
            argv = [os.fspath(self._settings.paths.root / BOOTC), "status", "--format=json"]
            done = await run(argv, timeout=LIMIT_SECONDS)
            if done.status != 0:
                why = done.stderr.strip().splitlines()[-1:] or ["it does not say why"]
                raise LashdError(ErrorName.HOST_COMMAND_FAILED, f"'bootc status' failed: {why[0]}")
            read_status(done.stdout)
            self._settings.paths.run.mkdir(parents=True, exist_ok=True)
            files.write_durably(self._settings.paths.run / STATUS, done.stdout)
        except (LashdError, OSError) as error:
            log.warning("The order of the boot entries is not known for certain: %s", error)

    def _state(self) -> object:
        """What changes with each change of the deployments, the order excepted."""
        note = self._sysroot.note()
        with contextlib.suppress(OSError):
            found = (self._settings.host.sysroot / "state/deploy").stat()
            return (note.deployment if note else "", found.st_mtime_ns)
        return None

    def _is_locked(self) -> bool:
        """Whether somebody has bootc's lock for himself alone."""
        try:
            descriptor = os.open(self._settings.host.sysroot / "composefs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False
