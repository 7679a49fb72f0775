# SPDX-License-Identifier: Apache-2.0
"""Copies of roots that were made by somebody who means no good; test_composefs_backend.py has ordinary ones."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from lashd.steps.discover import discover
from lashd.things.bootc import copyroot
from lashd.things.bootc.copyroot import _copied, _copy
from lashd.things.bootc.roots import Kind
from lashd.words.errors import LashdError

UNIT = "[Container]\nImage=q.example/app:1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    for place in ("usr/lib/bootc/bound-images.d", "usr/share/containers/systemd", "etc/containers"):
        (made / place).mkdir(parents=True)
    (made / "usr/share/containers/systemd/app.container").write_text(UNIT)
    bound(made, "app.container", "/usr/share/containers/systemd/app.container")
    return made


def bound(root: Path, name: str, leads: str) -> None:
    (root / "usr/lib/bootc/bound-images.d" / name).symlink_to(leads)


@pytest.mark.parametrize("leads", ["x.container", "x.container/on", "./x.container/../x.container/x", "x" * 255])
def test_links_that_lead_nowhere_hinder_no_others(root: Path, tmp_path: Path, leads: str) -> None:
    """Also such that grow whenever they are followed."""
    bound(root, "x.container", leads)
    copy = tmp_path / "copy"
    ended: list[None] = []
    thread = threading.Thread(target=lambda: ended.append(_copy(root, copy, Kind.STAGED, None, tmp_path)), daemon=True)
    thread.start()
    thread.join(20)
    assert ended
    found = discover(copy)
    assert [str(image.reference) for image in found.images] == ["q.example/app:1"]
    assert [bad.unit for bad in found.bad] == ["x.container"]


def test_too_many_ways(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copyroot, "STEP_LIMIT", 2000)
    for number in range(100):
        bound(root, f"{number}.container", "/usr" + "/../usr" * 20 + f"/{number}")
    with pytest.raises(LashdError, match="stays held"):
        _copy(root, tmp_path / "copy", Kind.STAGED, None, tmp_path)


def test_nothing_is_written_through_a_link(root: Path, tmp_path: Path) -> None:
    """/etc is copied to where the image has a link that leads out of it."""
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    (root / "etc/containers").rmdir()
    (root / "etc").rmdir()
    (root / "etc").write_text("written by the image")
    (root / "usr/etc").symlink_to(victim)
    bound(root, "x.container", "/etc")
    with pytest.raises(FileExistsError):
        _copy(root, tmp_path / "copy", Kind.STAGED, None, tmp_path)
    assert victim.read_text() == "as it was"


def test_links_into_the_etc_of_an_installed_one(root: Path, tmp_path: Path) -> None:
    """It is the one that it has been booted with, wherever in it the link leads, and from there back."""
    etc = tmp_path / "state/etc"
    for place in ("containers/systemd", "app"):
        (etc / place).mkdir(parents=True)
    (etc / "app/other.container").write_text(UNIT.replace("app", "other"))
    (etc / "app/back.container").symlink_to("/usr/share/app/back.container")
    (root / "usr/share/app").mkdir()
    (root / "usr/share/app/back.container").write_text(UNIT.replace("app", "back"))
    for name in ("other", "back"):
        bound(root, f"{name}.container", f"/etc/app/{name}.container")
    _copy(root, tmp_path / "copy", Kind.INSTALLED, etc, tmp_path)
    found = discover(tmp_path / "copy")
    assert (len(found.images), found.bad) == (3, ())


async def test_given_up_in_the_middle(root: Path, tmp_path: Path) -> None:
    """Nobody goes on writing then."""
    copy = tmp_path / "copy"
    for number in range(20_000):
        (root / "usr/share/containers/systemd" / f"{number}.volume").touch()
    copying = asyncio.create_task(_copied(root, copy, Kind.STAGED, None, tmp_path))
    while not (copy / "usr/share/containers/systemd").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    left = len(list((copy / "usr/share/containers/systemd").iterdir()))
    assert left < 20_000
    await asyncio.sleep(0.05)
    assert len(list((copy / "usr/share/containers/systemd").iterdir())) == left
