# SPDX-License-Identifier: Apache-2.0
"""Object paths: stable keys, never an index."""

from __future__ import annotations

import hashlib
import re

from lashd.bus.contract import ROOT

NONE = "/"  # what a property of type `o` says when there is no such object


def deployment_path(key: str) -> str:
    """The object of the deployment `<checksum>.<serial>`; `/` for no deployment."""
    return f"{ROOT}/deployment/{_escape(key)}" if key else NONE


def image_path(normalised: str) -> str:
    """The object of a bound image, by its normalised reference; `/` for none."""
    if not normalised:
        return NONE
    # A reference is too long and too colourful for a path; 128 bits of a hash are stable and do not collide.
    return f"{ROOT}/image/{hashlib.sha256(normalised.encode()).hexdigest()[:32]}"


def job_path(number: int) -> str:
    """The object of a job; `/` for no job (0)."""
    return f"{ROOT}/job/{number}" if number else NONE


def _escape(key: str) -> str:
    # As systemd escapes object paths: `.` becomes `_2e`.
    return re.sub(r"[^A-Za-z0-9]", lambda match: "".join(f"_{byte:02x}" for byte in match[0].encode()), key)
