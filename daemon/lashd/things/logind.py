# SPDX-License-Identifier: Apache-2.0
"""logind's inhibitors: who blocks a reboot, and one of our own while something must not be interrupted lightly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from lashd.words.errors import LashdError
from lashd.words.run import Completed, run, started
from lashd.words.text import one_line

log = logging.getLogger(__name__)

NAME = "org.freedesktop.login1"
# `block-weak` (systemd 257) lets root reboot all the same; a reboot that nobody asked for just now honours it too.
BLOCKING = ("block", "block-weak")
_TIMEOUT = 10.0
_Mode = Literal["block", "delay"]


@dataclass(frozen=True, slots=True)
class Inhibitor:
    """Somebody who blocks a reboot: the name and the reason that he gave, made fit to be shown, and his user id."""

    who: str
    why: str
    uid: int

    @property
    def sentence(self) -> str:
        reason = f": {self.why}" if self.why else ", without a reason"
        user = f"user {self.uid}" if self.uid else "root"
        return f"{self.who or 'Somebody'} ({user}) blocks the reboot{reason}."


class Unanswered(Exception):
    """logind is there and cannot be understood, so nobody knows whether something blocks; the text is a sentence."""


async def blockers(busctl: str = "busctl") -> tuple[Inhibitor, ...]:
    """Who blocks a reboot now; nobody where there is no logind. Raises Unanswered."""
    try:
        answer = await _call(busctl, NAME, "/org/freedesktop/login1", f"{NAME}.Manager", "ListInhibitors")
        if answer.status == 0:
            return parse(answer.stdout)
        if not await _is_there(busctl):
            # Without it nothing can inhibit, and `systemctl reboot` speaks to systemd itself.
            log.info("logind is not on the bus, so nothing is known to block a reboot")
            return ()
        why = answer.stderr.strip()
    except (LashdError, ValueError) as error:
        why = str(error)
    raise Unanswered(f"logind does not say whether something blocks the reboot: {one_line(why)}.")


def parse(answer: bytes) -> tuple[Inhibitor, ...]:
    """The blocking ones of what busctl prints for ListInhibitors, `a(ssssuu)`. Raises ValueError."""
    try:
        document = json.loads(answer)
        [rows] = document["data"]
        found = []
        for what, who, why, mode, uid, _pid in rows:
            if "shutdown" in what.split(":") and mode in BLOCKING:
                found.append(Inhibitor(one_line(who), one_line(why), int(uid)))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("its answer is not a list of inhibitors") from error
    return tuple(found)


@contextlib.asynccontextmanager
async def inhibited(
    why: str, *, what: str = "shutdown:sleep", mode: _Mode = "delay", program: str = "systemd-inhibit"
) -> AsyncIterator[bool]:
    """Inhibit `what` (logind's words, with colons) until the block is left; the value is whether that worked.

    A child holds the inhibitor, and it ends with the daemon, however that ends. Where there is no logind nothing is
    inhibited: the log says so, and that is no error.
    """
    # The child of the child says when the inhibitor is there, and waits for the end of its input, which never comes:
    # both are ended together.
    argv = [program, f"--what={what}", "--who=lashd", f"--why={why}", f"--mode={mode}", "sh", "-c", "echo; read x"]
    async with contextlib.AsyncExitStack() as stack:
        works = False
        try:
            process = await stack.enter_async_context(started(argv, stdin=asyncio.subprocess.PIPE))
            assert process.stdout is not None
            assert process.stderr is not None
            async with asyncio.timeout(_TIMEOUT):
                works = bool(await process.stdout.readline())
                if not works:
                    said = (await process.stderr.read(4096)).decode(errors="replace")
                    log.info("No %s inhibitor could be taken: %s", mode, one_line(said))
        except TimeoutError:
            log.warning("No %s inhibitor could be taken within %.0f seconds", mode, _TIMEOUT)
        except LashdError as error:
            log.info("No %s inhibitor could be taken: %s", mode, error)
        yield works


async def _is_there(busctl: str) -> bool:
    bus = "org.freedesktop.DBus"
    try:
        answer = await _call(busctl, bus, "/org/freedesktop/DBus", bus, "NameHasOwner", "s", NAME)
        return answer.status == 0 and json.loads(answer.stdout)["data"] == [True]
    except (LashdError, ValueError, TypeError, KeyError, RecursionError):
        return False


async def _call(busctl: str, *words: str) -> Completed:
    # A little less than ours, so that it is busctl that says what it waited for.
    return await run(
        [busctl, "--system", "--json=short", f"--timeout={_TIMEOUT - 2:.0f}", "call", *words], timeout=_TIMEOUT
    )
