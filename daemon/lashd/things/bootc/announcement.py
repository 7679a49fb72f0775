# SPDX-License-Identifier: Apache-2.0
"""/run/reboot-required, by which bootc tells others (kured) that a reboot brings up what it has staged.

bootc writes it whenever it has staged something, also when that is held, and never takes it back. A reboot would then
bring up the old system again, and what is staged would be lost. So while it is held the file waits elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from lashd.words import files
from lashd.words.config import Settings

_OF_BOOTC = b"bootc: "
_LIMIT = 64 * 1024


def settle(settings: Settings, *, staged: bool, held: bool) -> None:
    """Put bootc's announcement aside while what is staged is held, and back when it is not. Raises OSError.

    Anybody else's file of this name stays where it is.
    """
    note = settings.paths.root / "run/reboot-required"
    aside = settings.paths.run / "reboot-required"
    if held:
        if _is_of_bootc(note):
            _move(note, aside)
    elif not staged:
        aside.unlink(missing_ok=True)
    elif aside.exists():
        if note.exists():
            aside.unlink()
        else:
            _move(aside, note)


def announce(settings: Settings, digest: str | None) -> None:
    """Say it of what lashd has staged without bootc; it is seen once that is not held. Raises OSError."""
    settings.paths.run.mkdir(parents=True, exist_ok=True)
    aside = settings.paths.run / "reboot-required"
    files.write_durably(aside, _OF_BOOTC + f"Reboot required for image: {digest or 'unknown'}".encode())
    if settings.gate.policy == "off":
        # Nothing is ever held then, and nobody looks after the file.
        settle(settings, staged=True, held=False)


def _move(source: Path, target: Path) -> None:
    # Not by renaming it: in the daemon's sandbox /run/lashd is a mount of its own.
    try:
        content = files.read_small(source, _LIMIT)
    except ValueError as error:
        raise OSError(f"{source}: {error}") from error
    files.write_durably(target, content)
    source.unlink(missing_ok=True)


def _is_of_bootc(note: Path) -> bool:
    try:
        return files.read_small(note, _LIMIT).startswith(_OF_BOOTC)
    except (OSError, ValueError):
        return False
