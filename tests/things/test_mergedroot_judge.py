# SPDX-License-Identifier: Apache-2.0
"""Ours against the judge: what ostree itself makes of the same local changes when it deploys."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lashd.things.etcmerge import Unmergeable
from lashd.things.mergedroot import MergedRoot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="deploys with ostree: root only")


@dataclass(frozen=True)
class File:
    text: str
    mode: int = 0o644
    owner: int = 0


@dataclass(frozen=True)
class Link:
    target: str


@dataclass(frozen=True)
class Directory:
    names: tuple[tuple[str, Any], ...] = ()
    mode: int = 0o755

    def get(self, name: str) -> Tree:
        return dict(self.names).get(name)


Tree = File | Link | Directory | None
Case = tuple[Tree, Tree, Tree]  # as the old image has it, as it is now, as the new image has it


def directory(mode: int = 0o755, **names: Tree) -> Directory:
    return Directory(tuple((name, tree) for name, tree in names.items() if tree is not None), mode)


A, B = File("a"), File("b")
ALL = [
    *(None, A, B, File("a", mode=0o600), File("a", owner=1), Link("x"), Link("/y")),
    *(directory(), directory(k=A), directory(k=B), directory(k=A, m=A), directory(m=B), directory(0o700, k=A)),
]


def write(path: Path, tree: Tree) -> None:
    match tree:
        case File():
            path.write_text(tree.text)
            path.chmod(tree.mode)
            os.chown(path, tree.owner, 0)
        case Link():
            path.symlink_to(tree.target)
        case Directory():
            path.mkdir(exist_ok=True)
            for name, below in tree.names:
                write(path / name, below)
            path.chmod(tree.mode)


def read(path: Path) -> object:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return Link(os.fspath(path.readlink()))
    if stat.S_ISDIR(mode):
        return {entry.name: read(entry) for entry in path.iterdir()}
    return path.read_text()


def view(root: MergedRoot, path: str) -> object:
    names = {}
    for entry in root.list(path):
        inside = f"{path}/{entry.name}"
        if entry.link:
            names[entry.name] = Link(root.link_target(inside))
        else:
            names[entry.name] = view(root, inside) if entry.directory else root.read_text(inside)
    return names


def is_uncertain(case: Case) -> bool:
    """A directory that was and is one, and is something else in the new image: ostree mostly fails."""
    before, now, new = case
    if not (isinstance(before, Directory) and isinstance(now, Directory)):
        return False
    if isinstance(new, File | Link):
        return True
    names = dict(before.names).keys() & dict(now.names).keys()
    below = new or Directory()
    return any(is_uncertain((before.get(name), now.get(name), below.get(name))) for name in names)


@dataclass
class Judge:
    base: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def sysroot(self) -> Path:
        return self.base / "sysroot"

    def prepare(self) -> None:
        self.sysroot.mkdir()
        self.run("admin", "init-fs", "--modern", str(self.sysroot))
        self.run("config", f"--repo={self.sysroot}/ostree/repo", "set", "sysroot.bootloader", "none")
        self.run("config", f"--repo={self.sysroot}/ostree/repo", "set", "core.fsync", "false")

    def run(self, *argv: str) -> str:
        environment = os.environ | {"OSTREE_SYSROOT_DEBUG": "mutable-deployments"}
        done = subprocess.run(["ostree", *argv], capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise ValueError(done.stderr)
        return done.stdout

    def root(self, etc: Tree, path: Path) -> Path:
        modules = path / "usr/lib/modules/1"
        modules.mkdir(parents=True)
        (modules / "vmlinuz").write_text("kernel")
        (modules / "initramfs.img").write_text("initramfs")
        (path / "usr/lib/os-release").write_text("ID=test\nPRETTY_NAME=test\n")
        write(path / "usr/etc", etc)
        return path

    def deploy(self, root: Path, stateroot: str) -> Path:
        """Raises ValueError when ostree fails."""
        repository = f"--repo={self.sysroot}/ostree/repo"
        commit = self.run("commit", repository, "--branch=test", f"--tree=dir={root}").strip()
        self.run("admin", "deploy", f"--sysroot={self.sysroot}", f"--os={stateroot}", commit)
        return self.sysroot / f"ostree/deploy/{stateroot}/deploy/{commit}.0"

    def merge(self, before: Tree, now: Tree, new: Tree) -> tuple[MergedRoot, Path]:
        """Our view, before ostree has deployed, and the directory where it has. Raises ValueError when ostree fails."""
        name = f"s{next(self.numbers)}"
        self.run("admin", "os-init", f"--sysroot={self.sysroot}", name)
        old = self.deploy(self.root(before, self.base / f"{name}-old"), name)
        shutil.rmtree(old / "etc")
        write(old / "etc", now)
        root = self.root(new, self.base / f"{name}-new")
        self.last = root, old
        merged = MergedRoot(root, old)
        try:
            return merged, self.deploy(root, name) / "etc"
        except ValueError:
            merged.close()
            raise

    def compare(self, cases: Iterable[Case]) -> int:
        """Merge all `cases` at once, each under a name of its own. Answers how many of them can be merged."""
        named = {f"c{number}": case for number, case in enumerate(cases) if not is_uncertain(case)}
        good = {name: case for name, case in named.items() if not self.fails(case)}
        merged, etc = self.merge(*(directory(**{n: case[which] for n, case in good.items()}) for which in range(3)))
        with merged:
            found, real = view(merged, "etc"), read(etc)
        assert isinstance(found, dict)
        assert isinstance(real, dict)
        for name, case in good.items():
            assert found.get(name) == real.get(name), case
        return len(good)

    def fails(self, case: Case) -> bool:
        """Whether we say that it cannot be merged: there is a directory where something else was put locally."""
        before, now, new = case
        if isinstance(new, Directory):
            if isinstance(now, File | Link) and now != before:
                return True
            if isinstance(now, Directory) and (before is None or isinstance(before, Directory)):
                names = dict(now.names).keys()
                below = before or Directory()
                return any(self.fails((below.get(name), now.get(name), new.get(name))) for name in names)
        return False


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    # In memory: ostree syncs whole filesystems.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        made = Judge(Path(base))
        made.prepare()
        yield made


def test_every_combination(judge: Judge) -> None:
    assert judge.compare(itertools.product(ALL, repeat=3)) > 1000


def trees() -> st.SearchStrategy[Tree]:
    leaves = st.sampled_from([A, B, File("a", mode=0o600), Link("x"), Link("/y")])
    modes = st.sampled_from([0o755, 0o755, 0o755, 0o700])
    return st.recursive(
        leaves,
        lambda below: st.builds(
            lambda names, mode: Directory(tuple(sorted(names.items())), mode),
            st.dictionaries(st.sampled_from("kmn"), below, max_size=3),
            modes,
        ),
        max_leaves=8,
    )


@given(cases=st.lists(st.tuples(*[st.none() | trees()] * 3), min_size=20, max_size=60))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_whole_trees(judge: Judge, cases: list[Case]) -> None:
    judge.compare(cases)


@pytest.mark.parametrize(
    "case",
    [
        (A, B, directory(k=A)),
        (None, Link("x"), directory()),
        (directory(k=A), directory(k=B), A),
        (directory(k=A), directory(k=A, m=A), A),
    ],
)
def test_what_ostree_cannot_merge(judge: Judge, case: Case) -> None:
    with pytest.raises(ValueError, match="/etc merge"):
        judge.merge(*(directory(c=tree) for tree in case))
    with MergedRoot(*judge.last) as merged, pytest.raises(Unmergeable):
        view(merged, "etc")
