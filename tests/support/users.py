# SPDX-License-Identifier: Apache-2.0
"""Programs run as somebody else."""

from __future__ import annotations

_MAY_READ = "-all,+dac_read_search"


def as_user(uid: int) -> list[str]:
    """The beginning of a command line that runs the rest as user and group `uid`.

    It may read everything, and nothing more: the checkout may lie in a home that nobody else can enter.
    """
    caps = [f"--{kind}={_MAY_READ}" for kind in ("inh-caps", "bounding-set")] + ["--ambient-caps=+dac_read_search"]
    user = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--securebits=+no_setuid_fixup"]
    return ["setpriv", *user, *caps, "--"]
