# SPDX-License-Identifier: Apache-2.0
"""Real inotify on real directories that come, go and are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lashd.things import inotify
from lashd.things.inotify import Watcher, way_to


class Told:
    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.times = 0

    def __call__(self) -> None:
        self.times += 1
        self.event.set()

    async def within(self, seconds: float = 1.0) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.event.wait()
        told = self.event.is_set()
        self.event.clear()
        return told

    async def quiet(self) -> None:
        while await self.within(5 * inotify.SETTLE_SECONDS):
            pass


@asynccontextmanager
async def watching(*directories: Path) -> AsyncIterator[tuple[Watcher, Told]]:
    told = Told()
    watcher = Watcher(directories, told)
    watcher.start()
    try:
        yield watcher, told
    finally:
        watcher.close()


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda base: write(base / "a/b/new"),
        lambda base: write(base / "a/b/old", "longer"),
        lambda base: (base / "a/b/old").unlink(),
        lambda base: (base / "a/b/old").rename(base / "a/b/other"),
        lambda base: (base / "a/b/old").rename(base / "gone"),
        lambda base: os.utime(base / "a/b"),
        lambda base: (base / "a/b").rename(base / "a/c"),
        lambda base: (base / "a").rename(base / "c"),
        lambda base: shutil.rmtree(base / "a"),
        lambda base: write(base / "far/away/x/new"),
    ],
)
async def test_what_is_told(tmp_path: Path, change: Callable[[Path], object]) -> None:
    write(tmp_path / "a/b/old")
    async with watching(tmp_path / "a/b", tmp_path / "far/away/x") as (_, told):
        assert not await told.within(0.1)
        change(tmp_path)
        assert await told.within()


async def test_what_is_not_told(tmp_path: Path) -> None:
    write(tmp_path / "a/b/old")
    async with watching(tmp_path / "a/b") as (_, told):
        write(tmp_path / "a/other")
        write(tmp_path / "b/other")
        write(tmp_path / "a/c/b/old")
        assert not await told.within(0.2)


async def test_links_are_followed_and_noticed_when_they_are_swapped(tmp_path: Path) -> None:
    """As libostree swaps loader -> loader.0, loader.1."""
    for name in ("loader.0", "loader.1"):
        (tmp_path / name / "entries").mkdir(parents=True)
    link = tmp_path / "loader"
    link.symlink_to("loader.0")
    async with watching(link, link / "entries") as (_, told):
        write(tmp_path / "loader.1/entries/one")
        assert not await told.within(0.1)
        new = tmp_path / "new"
        new.symlink_to("loader.1")
        new.rename(link)
        assert await told.within()
        await told.quiet()
        write(tmp_path / "loader.1/entries/two")
        assert await told.within()
        await told.quiet()
        write(tmp_path / "loader.0/entries/three")
        assert not await told.within(0.1)


async def test_many_changes_are_told_together(tmp_path: Path) -> None:
    async with watching(tmp_path) as (_, told):
        for number in range(500):
            write(tmp_path / str(number))
        await told.quiet()
        assert 1 <= told.times < 20


async def test_an_overflow_is_a_change(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 20000:
        pytest.skip("the queue is too long to be filled in a test")
    write(tmp_path / "a/b/x")
    async with watching(tmp_path / "a/b") as (_, told):
        # All of it while the loop stands still, and what fits into the queue does not matter.
        for number in range(limit // 2 + 100):
            (tmp_path / f"other{number % 2}").touch()
            (tmp_path / f"other{number % 2}").unlink()
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "a/b").mkdir(parents=True)
        assert await told.within()
        await told.quiet()
        write(tmp_path / "a/b/y")
        assert await told.within()


@pytest.mark.parametrize("call", ["inotify_init1", "inotify_add_watch"])
async def test_a_failing_inotify_is_said_once_and_tried_again(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Callable[..., int]:
            return getattr(real, name) if name != call else self._fail

        def _fail(self, *_: object) -> int:
            inotify.ctypes.set_errno(28)
            return -1

    real = inotify._libc
    monkeypatch.setattr(inotify, "_libc", Broken())
    async with watching(tmp_path / "a") as (watcher, told):
        watcher.renew()
        assert not watcher.works
        assert len([record for record in caplog.records if "noticed late" in record.message]) == 1
        monkeypatch.setattr(inotify, "_libc", real)
        watcher.renew()
        assert watcher.works
        write(tmp_path / "a/x")
        assert await told.within()


def test_the_way(tmp_path: Path) -> None:
    (tmp_path / "real/x").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/../real")
    (tmp_path / "loop").symlink_to("loop")
    base = str(tmp_path)
    assert way_to(tmp_path / "link/x/y/z")[-5:] == [
        (base, "link"),
        (base, "real"),
        (base, "real"),
        (f"{base}/real", "x"),
        (f"{base}/real/x", "y"),
    ]
    assert way_to(tmp_path / "real/x")[-1] == (f"{base}/real/x", None)
    assert len(way_to(tmp_path / "loop/x")) < 100
    write(tmp_path / "file")
    assert way_to(tmp_path / "file/x")[-1] == (base, "file")


def seen(targets: list[Path]) -> list[object]:
    """What a reader of the directories would see."""
    found: list[object] = []
    for target in targets:
        try:
            found.append((target.stat().st_ino, sorted((each.name, each.stat().st_ino) for each in os.scandir(target))))
        except OSError:
            found.append(None)
    return found


@pytest.mark.parametrize("seed", range(6))
async def test_a_reader_that_looks_when_told_never_ends_with_a_stale_view(tmp_path: Path, seed: int) -> None:
    """Random creation, removal, renaming and links in a small tree, at random speed."""
    chance = random.Random(seed)
    names = ("a", "b", "c")
    targets = [tmp_path / "a/b/c", tmp_path / "a/b", tmp_path / "b/a", tmp_path / "c"]
    view: list[object] = seen(targets)

    def place() -> Path:
        return tmp_path.joinpath(*(chance.choice(names) for _ in range(chance.randint(1, 4))))

    def change() -> None:
        with contextlib.suppress(OSError):
            match chance.randint(0, 5):
                case 0 | 1:
                    place().mkdir(parents=True)
                case 2:
                    place().rename(place())
                case 3:
                    place().symlink_to(chance.choice([place(), "b", "../a", tmp_path]))
                case 4:
                    victim = place()
                    victim.unlink() if victim.is_symlink() or victim.is_file() else shutil.rmtree(victim)
                case 5:
                    write(place())

    def look() -> None:
        nonlocal view
        view = seen(targets)

    watcher = Watcher(targets, look)
    watcher.start()
    try:
        for _ in range(150):
            for _ in range(chance.randint(1, 8)):
                change()
            await asyncio.sleep(chance.choice([0, 0, 0, 0.001, 0.03]))
        for _ in range(50):
            await asyncio.sleep(2 * inotify.SETTLE_SECONDS)
            if view == seen(targets):
                break
        assert view == seen(targets)
        # And nothing is left that would keep it busy.
        before = watcher._watches
        await asyncio.sleep(5 * inotify.SETTLE_SECONDS)
        assert watcher._watches == before
    finally:
        watcher.close()


async def test_directories_that_depend_on_what_there_is(tmp_path: Path) -> None:
    told = Told()
    watcher = Watcher(lambda: [tmp_path, *(path for path in tmp_path.iterdir() if path.is_dir())], told)
    watcher.start()
    try:
        (tmp_path / "below").mkdir()
        assert await told.within()
        await told.quiet()
        write(tmp_path / "below/file")
        assert await told.within()
    finally:
        watcher.close()
