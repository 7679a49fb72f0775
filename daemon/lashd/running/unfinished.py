# SPDX-License-Identifier: Apache-2.0
"""What is said of a shutdown whose gate did not come to its end: what that means, and what is to be done."""

from __future__ import annotations

import re

from lashd.words.model import Deployment

NOT_FINISHED = "gate-not-finished"
GATE_FAILED = "gate-failed"

_BEGIN = {
    NOT_FINISHED: "The gate was ended before it had decided",
    GATE_FAILED: "The gate failed before it had decided",
}
_DETAILS = "'journalctl -b -1 -u lashd-gate' has the details."
_KEY = re.compile(rb"(?<![0-9a-f.])[0-9a-f]{64}\.[0-9]{1,9}(?![0-9a-f.])")


def named(note: bytes) -> str:
    """Key of the deployment that ostree's note of what is staged names, empty when none is found.

    As packaging/libexec/hold finds it: by nothing that can fail.
    """
    found = _KEY.search(note)
    return found[0].decode("ascii") if found else ""


def sentence(code: str, staged: str, first: Deployment | None, *, comes_back: bool, why: str = "") -> str:
    """What `code` (one of the two above) means for the deployment `staged`, as it is called; empty when none is.

    `first`: what is first in the boot order and not running; `comes_back`: what is lost is staged again; `why`: a whole
    sentence.
    """
    parts = [_BEGIN[code]]
    if staged:
        parts[0] += f", so that the deployment {staged} was not let through"
    if first is not None:
        parts[0] += (
            f"; that {shown(first)}, which was first in the boot order, has its bound images could not be looked at, "
            "or the boot order could not be put right, in time"
        )
    parts[0] += f"; {_DETAILS}"
    if why:
        parts.append(why)
    if staged and comes_back:
        parts.append("It is staged again by itself; 'lashctl discard' gives it up.")
    elif staged:
        parts.append("It has to be staged again by hand.")
    if first is not None:
        parts.append("Should that be running now, 'lashctl status' says what it lacks.")
    return " ".join(parts)


def shown(deployment: Deployment) -> str:
    return deployment.version or deployment.key[:12]
