# SPDX-License-Identifier: Apache-2.0
"""Links, odd files and limits in the merged /etc; test_mergedroot_judge.py has what is merged how."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lashd.things import etcmerge
from lashd.things.etcmerge import Unmergeable
from lashd.things.mergedroot import MergedRoot, open_root
from lashd.things.rootfs import FILE_LIMIT, Entry, Unreadable


class Trees:
    def __init__(self, base: Path) -> None:
        self.old, self.new = base / "old", base / "new"
        for path in (self.old / "etc", self.old / "usr/etc", self.new / "usr/lib", self.new / "usr/etc"):
            path.mkdir(parents=True)

    def write(self, path: str, *, before: str = "", now: str = "", new: str = "") -> None:
        """`path` below /etc in the old image, in the running system and in the new image; "" for nowhere."""
        for etc, text in ((self.old / "usr/etc", before), (self.old / "etc", now), (self.new / "usr/etc", new)):
            if text:
                (etc / path).parent.mkdir(parents=True, exist_ok=True)
                (etc / path).write_text(text)


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    (tmp_path / "secret").write_text("outside")
    return Trees(tmp_path)


@pytest.fixture
def root(trees: Trees) -> Iterator[MergedRoot]:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with MergedRoot(trees.new, trees.old) as opened:
        yield opened
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"  # noqa: PTH208


def test_the_rules_in_short(trees: Trees, root: MergedRoot) -> None:
    trees.write("same", before="1", now="1", new="2")
    trees.write("changed", before="1", now="local", new="2")
    trees.write("added", now="local")
    trees.write("removed", before="1", new="2")
    trees.write("d/new", new="2")
    trees.write("d/added", now="local")
    assert [root.read_text(f"etc/{name}") for name in ("same", "changed", "added", "d/new", "/d/../d/added")] == [
        *("2", "local", "local", "2", "local")
    ]
    assert {entry.name for entry in root.list("/etc")} == {"same", "changed", "added", "d"}
    assert set(root.list("etc/d")) == {Entry("new", False, False), Entry("added", False, False)}
    assert root.is_directory("etc/d")
    assert not root.is_directory("etc/same")
    for name in ("removed", "nowhere", "same/below"):
        with pytest.raises(Unreadable) as caught:
            root.read_text(f"etc/{name}")
        assert caught.value.absent


def test_the_unmerged_etc_of_what_is_staged_does_not_count(trees: Trees, root: MergedRoot) -> None:
    """ostree makes it while it stages; the kernel would find it."""
    trees.write("f", before="1", now="local", new="2")
    (trees.new / "etc").mkdir()
    (trees.new / "etc/f").write_text("2")
    (trees.new / "link").symlink_to("etc/f")
    (trees.new / "usr/lib/link").symlink_to("../../etc/f")
    for path in ("etc/f", "/usr/../etc/f", "link", "usr/lib/link", "./etc//f"):
        assert root.read_text(path) == "local"
        assert root.real_path(path) == "etc/f"
    # And where the two differ it is the copy that ostree puts the changes on.
    (trees.new / "etc/only").write_text("copy")
    with open_root(trees.new, trees.old) as again:
        assert again.read_text("etc/only") == "copy"


def test_links_lead_into_the_new_system_and_back(trees: Trees, root: MergedRoot) -> None:
    (trees.new / "usr/lib/unit").write_text("new system's")
    (trees.old / "usr/lib").mkdir()
    (trees.old / "usr/lib/unit").write_text("old system's")
    (trees.old / "etc/absolute").symlink_to("/usr/lib/unit")
    (trees.old / "etc/relative").symlink_to("../usr/lib/unit")
    (trees.old / "etc/directory").symlink_to("/usr/lib")
    (trees.new / "usr/lib/back").symlink_to("/etc/local")
    trees.write("local", now="local")
    assert root.read_text("etc/absolute") == root.read_text("etc/relative") == "new system's"
    assert root.read_text("etc/directory/unit") == "new system's"
    assert root.read_text("etc/directory/back") == "local"
    assert root.real_path("etc/directory/back") == "etc/local"
    assert root.link_target("etc/directory/back") == "/etc/local"
    assert root.link_target("etc/relative") == "../usr/lib/unit"
    with pytest.raises(Unreadable):
        root.link_target("etc/local")


def test_links_lead_into_the_state(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "ostree/deploy/os/deploy")
    (tmp_path / "ostree/deploy/os/var").mkdir()
    (tmp_path / "ostree/deploy/os/var/f").write_text("state")
    (trees.old / "etc/link").symlink_to("/var/f")
    with MergedRoot(trees.new, trees.old) as root:
        assert root.read_text("etc/link") == "state"


@pytest.mark.parametrize("target", ["/../../secret", "../../../../../secret", "/proc/self/root/secret", "{}/secret"])
def test_nothing_leads_out(trees: Trees, root: MergedRoot, target: str) -> None:
    (trees.old / "etc/link").symlink_to(target.format(trees.old.parent))
    with pytest.raises(Unreadable, match="does not exist"):
        root.read_text("etc/link")


def test_circles_end(trees: Trees, root: MergedRoot) -> None:
    (trees.old / "etc/round").symlink_to("/usr/lib/round")
    (trees.new / "usr/lib/round").symlink_to("/etc/round")
    with pytest.raises(Unreadable, match="circle"):
        root.read_text("etc/round")


def test_odd_files_are_neither_opened_nor_waited_for(trees: Trees, root: MergedRoot) -> None:
    trees.write("was", before="1", new="2")
    for name in ("was", "pipe"):
        os.mkfifo(trees.old / "etc" / name)  # ostree copies none
    os.mkfifo(trees.new / "usr/etc/shipped")
    assert [entry.name for entry in root.list("etc")] == ["shipped"]
    for name in ("was", "pipe"):
        with pytest.raises(Unreadable, match="does not exist"):
            root.read_text(f"etc/{name}")
    with pytest.raises(Unreadable, match="FIFO"):
        root.read_text("etc/shipped")


def test_large_files(trees: Trees, root: MergedRoot) -> None:
    large = "x" * (FILE_LIMIT + 1)
    trees.write("large", before=large, now=large, new="2")
    trees.write("last", before="x" * FILE_LIMIT, now="x" * (FILE_LIMIT - 1) + "y", new="2")
    with pytest.raises(Unreadable, match="larger"):
        root.read_text("etc/large")
    assert root.read_text("etc/last")[-1] == "y"


def test_too_many_files(trees: Trees, root: MergedRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcmerge, "NAME_LIMIT", 10)
    for number in range(11):
        trees.write(f"d/{number}", now="x")
    with pytest.raises(Unmergeable, match="too many"):
        list(root.list("etc/d"))


def test_too_deep(trees: Trees, root: MergedRoot) -> None:
    deep = "/".join(["d"] * 200)
    (trees.old / "etc" / deep).mkdir(parents=True)
    (trees.old / "usr/etc" / deep).mkdir(parents=True)
    (trees.old / "etc" / deep / "f").write_text("x")
    with pytest.raises(Unmergeable, match="more than 64 directories"):
        root.read_text("etc/d")


@pytest.mark.parametrize("missing", ["old/etc", "old/usr/etc", "old", "new"])
def test_what_is_not_there_is_an_error(trees: Trees, missing: str) -> None:
    (trees.new.parent / missing).rename(trees.new.parent / "away")
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(OSError, match="No such file"):
        open_root(trees.new, trees.old)
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_is_compared_is_bounded(trees: Trees, root: MergedRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        trees.write(f"d/{number}", before="x" * 100_000, now="x" * 100_000, new="2")
    monkeypatch.setattr(etcmerge, "COMPARED_LIMIT", 300_000)
    assert [root.read_text(f"etc/d/{number}") for number in (0, 1, 2, 0, 1, 2)] == ["2"] * 6
    with pytest.raises(Unmergeable, match="MiB to be compared") as caught:
        root.read_text("etc/d/3")
    assert "'/etc/d/3'" in str(caught.value)
