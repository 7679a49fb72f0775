# SPDX-License-Identifier: Apache-2.0
"""Deployments that lie on the disk and that no boot entry names.

A staged one that was lost to a reboot, one whose removal was cut short, or one whose boot entry cannot be read just
now. Whoever removes what no deployment needs must count them.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from lashd.things.ostree.facts import DEPLOYMENT_NAME
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment


def unlisted(sysroot: Path, listed: Collection[Deployment]) -> tuple[Deployment, ...]:
    """Those below `sysroot` that are not among `listed`, without roles or facts.

    Raises StoreDamaged when that is unknown.
    """
    known = {(deployment.stateroot, deployment.key) for deployment in listed}
    found = []
    place = sysroot / "ostree/deploy"
    try:
        for stateroot in sorted(_directories(place)):
            for name in sorted(_directories(place / stateroot / "deploy")):
                match = DEPLOYMENT_NAME.fullmatch(name)
                if match is not None and (stateroot, f"{match['checksum']}.{int(match['serial'])}") not in known:
                    root = place / stateroot / "deploy" / name
                    found.append(Deployment(stateroot, match["checksum"], int(match["serial"]), root))
    except OSError as error:
        raise LashdError(
            ErrorName.STORE_DAMAGED,
            f"{error.filename} cannot be read ({error.strerror}), so it is unknown which deployments there are.",
        ) from error
    return tuple(found)


def _directories(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
