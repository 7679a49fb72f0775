# SPDX-License-Identifier: Apache-2.0
"""The root of a prepared soft reboot: known by libostree's note, and taken down with everything in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.things.ostree.nextroot import PREPARED, UNKNOWN, prepared, take_down
from lashd.words.model import Deployment
from tests.conftest import REPOSITORY
from tests.support.staged import backing
from tests.things.ostree.conftest import needs_root


@pytest.fixture
def deployments(tmp_path: Path) -> list[Deployment]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return [Deployment("os", letter * 64, 0, tmp_path / name) for letter, name in (("a", "one"), ("b", "two"))]


def note(run: Path, root: Path) -> None:
    (run / PREPARED).write_bytes(backing(root))


def test_which_one_is_prepared(deployments: list[Deployment], tmp_path: Path) -> None:
    assert prepared(tmp_path, deployments) is None
    note(tmp_path, deployments[1].root)
    assert prepared(tmp_path, deployments) == deployments[1].name
    assert prepared(tmp_path, deployments[:1]) == UNKNOWN
    deployments[1].root.rmdir()
    assert prepared(tmp_path, deployments) == UNKNOWN


def test_the_same_commit_in_two_stateroots(deployments: list[Deployment], tmp_path: Path) -> None:
    twins = [deployments[0], replace(deployments[0], stateroot="other", root=deployments[1].root)]
    for one in twins:
        note(tmp_path, one.root)
        assert prepared(tmp_path, twins) == one.name
    assert len({one.name for one in twins}) == 2


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"x"])
def test_a_note_that_says_nothing(deployments: list[Deployment], tmp_path: Path, content: bytes) -> None:
    (tmp_path / PREPARED).write_bytes(content)
    assert prepared(tmp_path, deployments) == UNKNOWN
    (tmp_path / PREPARED).unlink()
    (tmp_path / PREPARED).mkdir()
    assert prepared(tmp_path, deployments) == UNKNOWN


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A tree of mounts on a directory with an awkward name, and one beside it that must stay."""
    top, beside = tmp_path / "next root\\", tmp_path / "next root\\2"
    for place in (top, beside):
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    for name in ("etc", "sysroot", "sysroot/deep"):
        (top / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top / name], check=True)
    # Mounted over itself, as composefs and its backing are.
    subprocess.run(["mount", "--bind", top / "etc", top / "etc"], check=True)
    yield top
    for place in (top, beside):
        while subprocess.run(["umount", "-R", "-l", place], capture_output=True).returncode == 0:
            pass


@needs_root
@pytest.mark.parametrize("busy", [True, False])
def test_it_is_taken_down_whole(mounted: Path, tmp_path: Path, busy: bool) -> None:
    (tmp_path / PREPARED).touch()
    (mounted / "sysroot/deep/file").touch()
    held = (mounted / "sysroot/deep/file").open() if busy else None
    try:
        take_down(tmp_path, mounted)
    finally:
        if held:
            held.close()
    assert not (tmp_path / PREPARED).exists()
    assert list(mounted.iterdir()) == []
    assert not mounted.is_mount()
    assert mounted.with_name(mounted.name + "2").is_mount()
    # Nothing there is no mistake.
    take_down(tmp_path, mounted)
    take_down(tmp_path, tmp_path / "nowhere")


_OUTSIDE = """
import pathlib, sys
from lashd.things.ostree.nextroot import take_down_outside
run, mounted, system = map(pathlib.Path, sys.argv[1:])
take_down_outside(run, mounted, system)
assert pathlib.Path("/proc/self/ns/mnt").readlink() != system.readlink()
"""


@needs_root
def test_it_is_taken_down_from_a_namespace_of_its_own(mounted: Path, tmp_path: Path) -> None:
    """As the daemon does it, whose mounts are a copy of the system's."""
    (tmp_path / PREPARED).touch()
    system = Path(f"/proc/{os.getpid()}/ns/mnt")
    argv = ["unshare", "--mount", "--propagation", "private", "--", sys.executable, "-c", _OUTSIDE]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "daemon")}
    subprocess.run([*argv, tmp_path, mounted, system], check=True, env=environment)
    assert not mounted.is_mount()
    assert mounted.with_name(mounted.name + "2").is_mount()
    assert not (tmp_path / PREPARED).exists()
