# SPDX-License-Identifier: Apache-2.0
"""Other programs that update image-mode hosts by themselves, where they are enabled: whom to expect, and what to do.

Told by the links that `systemctl enable` makes, so no process is asked. That one is enabled does no harm to what lashd
promises: it notices, holds and binds whatever they stage. But they reboot and stage when it suits them.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

# (unit, what it does)
UPDATERS = (
    (
        "bootc-fetch-apply-updates.timer",
        "bootc's own timer upgrades this host and reboots it at any time, also while bound images are missing; such a "
        "reboot is wasted",
    ),
    ("rpm-ostreed-automatic.timer", "rpm-ostree's timer stages updates by itself, and may reboot into them"),
    ("zincati.service", "Zincati stages updates and reboots into them as its own settings say"),
    ("uupd.timer", "uupd upgrades this host and its applications by itself"),
    ("ublue-update.timer", "ublue-update upgrades this host and its applications by itself"),
    ("flightctl-agent.service", "the agent of Flight Control decides what this host runs, and reboots it"),
)
_DIRECTORIES = ("etc/systemd/system", "run/systemd/system", "run/systemd/generator", "usr/lib/systemd/system")
_WANTED_BY = ("timers.target", "multi-user.target", "default.target")


def others(root: Path) -> Iterator[str]:
    """A whole sentence for each that is enabled on the running system below `root`."""
    # The state of the host is asked for often, and what is wanted by somebody is mostly none of these.
    wanted = {name for place in _places(root) for name in _names(place)}
    for unit, does in UPDATERS:
        if unit in wanted and _enabled(root, unit):
            yield (
                f"{unit} is enabled: {does}. If lashd is to decide when, run 'systemctl disable --now {unit}' and give "
                "lashd's settings a time in the section [reboot]."
            )


def _enabled(root: Path, unit: str) -> bool:
    if any(_masks(root / directory / unit) for directory in _DIRECTORIES[:2]):
        return False
    return any((place / unit).is_symlink() for place in _places(root))


def _places(root: Path) -> Iterator[Path]:
    return (root / directory / f"{target}.wants" for directory in _DIRECTORIES for target in _WANTED_BY)


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except OSError:
        return []


def _masks(path: Path) -> bool:
    """Whether systemd takes the file for a mask: a link to /dev/null, or an empty file."""
    try:
        found = path.lstat()
        return str(path.readlink()) == "/dev/null" if stat.S_ISLNK(found.st_mode) else found.st_size == 0
    except OSError:
        return False
