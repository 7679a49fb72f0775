# SPDX-License-Identifier: Apache-2.0
"""The boot entries of bootc's composefs backend: which deployments are installed, and in which order they boot.

bootc writes them itself, to /boot with GRUB and to the EFI system partition with systemd-boot; they are exchanged as a
whole (`loader/entries.staged` becomes `loader/entries`). Where that partition is not mounted nothing is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lashd.words import files

# Below the running root; where there are entries in several, the first counts.
PLACES = ("boot", "efi", "boot/efi")
ENTRIES = "loader/entries"
MENU = "grub2/user.cfg"  # GRUB with unified kernel images

_ID = r"(?P<id>[0-9a-f]{128}|[0-9a-f]{64})"
# The kernel's argument; a question mark says that files need no fs-verity.
_ARGUMENT = re.compile(rf"composefs=\??{_ID}")
# What the root is mounted from: the usual one, and one whose changes are not kept.
_SOURCE = re.compile(rf"(?:composefs:|transient:composefs=){_ID}")
# A unified kernel image, whose arguments are in it, is called by the id.
_KERNEL = re.compile(rf"(?:^|[/_-]){_ID}\.efi$")
_CHAINLOADER = re.compile(rf"^\s*chainloader\s+\S*?{_ID}\.efi\s*$", re.MULTILINE)
_LIMIT = 1024 * 1024


def directories(root: Path) -> tuple[Path, ...]:
    """Directories in which something changes when the entries do; they need not exist."""
    return tuple(root / place / name for place in PLACES for name in ("loader", ENTRIES, "grub2"))


def installed(root: Path) -> tuple[str, ...]:
    """The ids of the deployments that have a boot entry, the one that boots next first; empty when none is found."""
    for place in PLACES:
        if found := _from_entries(root / place / ENTRIES) or _from_menu(root / place / MENU):
            return found
    return ()


def booted(root: Path) -> str:
    """The id of the running deployment; empty when it cannot be told.

    Its kernel was told, but a soft reboot starts another one under the same kernel: what counts is what is mounted.
    """
    try:
        words = (root / "proc/cmdline").read_text("ascii", "replace").split()
    except OSError:
        return ""
    told = next((found["id"] for word in words if (found := _ARGUMENT.fullmatch(word))), "")
    return (_mounted(root) or told) if told else ""


def _mounted(root: Path) -> str:
    """The id that the root is mounted from, as bootc calls it; empty when it is called otherwise."""
    try:
        lines = (root / "proc/1/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):  # of several on one mountpoint the last one is seen
        before, _, after = line.partition(" - ")
        if before.split(" ")[4:5] == ["/"]:
            found = _SOURCE.fullmatch([*after.split(" "), ""][1])
            return found["id"] if found else ""
    return ""


def _from_entries(directory: Path) -> tuple[str, ...]:
    """As bootc sorts them: by sort-key where there are any, for systemd-boot, and else by file name, for GRUB.

    bootc gives both to each, and they agree.
    """
    found = list(_entries(directory))
    if all(key for key, _, _ in found) and len({key for key, _, _ in found}) == len(found):
        found.sort()
    else:
        found.sort(key=lambda one: one[1], reverse=True)
    return tuple(dict.fromkeys(id for _, _, id in found))


def _entries(directory: Path) -> Iterator[tuple[str, str, str]]:
    """Sort-key, file name and id of each that is bootc's."""
    try:
        paths = [path for path in directory.iterdir() if path.suffix == ".conf"]
    except OSError:
        return
    for path in paths:
        fields: dict[str, str] = {}
        for line in _text(path).splitlines():
            key, _, value = line.strip().replace("\t", " ", 1).partition(" ")
            fields[key] = value.strip()
        words = fields.get("options", "").split()
        kernel = fields.get("uki") or fields.get("efi") or ""
        named = next((found for word in words if (found := _ARGUMENT.fullmatch(word))), None) or _KERNEL.search(kernel)
        if named is not None:
            yield fields.get("sort-key", ""), path.name, named["id"]


def _from_menu(path: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(found["id"] for found in _CHAINLOADER.finditer(_text(path))))


def _text(path: Path) -> str:
    try:
        return files.read_regular(path, _LIMIT)[0].decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
