# SPDX-License-Identifier: Apache-2.0
"""Everything that touches bootc, and nothing else does; docs/bootc.md lists what is assumed of it."""

from __future__ import annotations

import os

from lashd.words.config import Settings

BOOTC = "usr/bin/bootc"


def is_there(settings: Settings) -> bool:
    """Whether the running system has a bootc to manage it with."""
    return settings.booted_sysroot and os.access(settings.paths.root / BOOTC, os.X_OK)
