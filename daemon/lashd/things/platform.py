# SPDX-License-Identifier: Apache-2.0
"""What this machine is, in the words that container images use (GOARCH and variant)."""

from __future__ import annotations

import os

# What the kernel says: what Go, and so every image, calls it, and the variant that containers/image detects.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "armv5tel": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
}


def architecture() -> str:
    """GOARCH of this machine: amd64, arm64, …; the kernel's own word where Go uses the same (s390x, ppc64le)."""
    machine = os.uname().machine
    return _MACHINES.get(machine, (machine, ""))[0]


def variant() -> str:
    """The variant of this machine's architecture (v5 to v8 for arm and arm64), else empty."""
    return _MACHINES.get(os.uname().machine, ("", ""))[1]
