# SPDX-License-Identifier: Apache-2.0
"""Memory that was freed and is kept by the C library for what may come, given back to the host."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)


def give_back() -> None:
    """For moments in which nothing is to be done: it takes milliseconds. Does nothing where the C library cannot."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
