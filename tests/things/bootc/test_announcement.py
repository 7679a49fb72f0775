# SPDX-License-Identifier: Apache-2.0
"""bootc's word that a reboot is wanted is heard when what it has staged may boot."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.things.bootc.announcement import announce, settle
from lashd.words.config import Settings, settings_from

OURS = "bootc: Reboot required for image: sha256:1"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("root/run", "own"):
        (tmp_path / name).mkdir(parents=True)
    return settings_from({"paths": {"root": tmp_path / "root", "run": tmp_path / "own"}})


@pytest.fixture
def note(settings: Settings) -> Path:
    return settings.paths.root / "run/reboot-required"


def test_aside_while_it_is_held(settings: Settings, note: Path) -> None:
    settle(settings, staged=True, held=True)
    note.write_text(OURS)
    for _ in range(2):
        settle(settings, staged=True, held=True)
        assert not note.exists()
    settle(settings, staged=True, held=False)
    assert note.read_text() == OURS
    settle(settings, staged=True, held=True)
    assert not note.exists()


def test_aside_on_another_filesystem(settings: Settings, note: Path) -> None:
    """To a service with a sandbox its directory in /run is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        apart = replace(settings, paths=replace(settings.paths, run=Path(elsewhere)))
        assert note.parent.stat().st_dev != apart.paths.run.stat().st_dev
        note.write_text(OURS)
        settle(apart, staged=True, held=True)
        assert not note.exists()
        settle(apart, staged=True, held=False)
        assert note.read_text() == OURS
        assert not any(apart.paths.run.iterdir())


def test_the_newer_one_counts(settings: Settings, note: Path) -> None:
    note.write_text(OURS)
    settle(settings, staged=True, held=True)
    note.write_text(OURS + "2")
    settle(settings, staged=True, held=False)
    assert note.read_text() == OURS + "2"
    assert list(settings.paths.run.iterdir()) == []


def test_what_it_was_about_is_gone(settings: Settings, note: Path) -> None:
    note.write_text(OURS)
    settle(settings, staged=True, held=True)
    settle(settings, staged=False, held=False)
    settle(settings, staged=True, held=False)
    assert not note.exists()
    # A rollback is announced with nothing staged.
    note.write_text(OURS)
    settle(settings, staged=False, held=False)
    assert note.exists()


def test_anybody_elses_stays(settings: Settings, note: Path) -> None:
    note.write_text("*** System restart required ***\n")
    settle(settings, staged=True, held=True)
    assert note.exists()
    note.unlink()
    os.mkfifo(note)
    settle(settings, staged=True, held=True)
    assert note.exists()


def test_what_lashd_has_staged_itself_is_announced_like_bootcs(settings: Settings, note: Path) -> None:
    announce(settings, "sha256:2")
    settle(settings, staged=True, held=True)
    assert not note.exists()
    settle(settings, staged=True, held=False)
    assert note.read_text() == "bootc: Reboot required for image: sha256:2"


def test_where_nothing_is_ever_held_it_is_seen_at_once(settings: Settings, note: Path) -> None:
    announce(replace(settings, gate=replace(settings.gate, policy="off")), "sha256:2")
    assert note.read_text() == "bootc: Reboot required for image: sha256:2"
