# SPDX-License-Identifier: Apache-2.0
"""What a reboot is judged by, and how the outside is reached for it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from lashd.steps.window import now_here
from lashd.things import fleetlock, logind, rebooting
from lashd.things.rebooting import Going


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the next boot would bring, now. Identities are names of deployments (`Deployment.name`)."""

    booted: str = ""  # identity of the booted deployment
    target: str = ""  # of the one that would be booted next, empty when that is the booted one
    ready: bool = False  # verified and declared ready, nothing holds it back, and no job runs that changes the host
    finalised: bool = False  # it has its boot entry already (no staged deployment)


@dataclass(frozen=True, slots=True)
class Ways:
    """How the outside is reached."""

    blockers: Callable[[], Awaitable[tuple[logind.Inhibitor, ...]]] = logind.blockers
    pre_reboot: Callable[[fleetlock.Client], Awaitable[None]] = fleetlock.pre_reboot
    steady_state: Callable[[fleetlock.Client], Awaitable[None]] = fleetlock.steady_state
    start: Callable[[str], Awaitable[None]] = rebooting.start
    look: Callable[[str], Awaitable[Going]] = rebooting.look
    ostree_version: Callable[[str], Awaitable[tuple[int, ...]]] = rebooting.ostree_version
    now: Callable[[], datetime] = now_here
    monotonic: Callable[[], float] = time.monotonic
