# SPDX-License-Identifier: Apache-2.0
"""Moments in which the worker must not be ended: libostree has frozen a filesystem, and nobody else would thaw it.

Standard library only: the worker uses it.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Neither a polite request to end nor the end of the parent reaches this process in here; both count afterwards."""
    blocked = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
    try:
        yield
    finally:
        # A parent that has gone meanwhile is not missed: what is left to do is to say so to nobody, and to end.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
