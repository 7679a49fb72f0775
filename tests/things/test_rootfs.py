# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lashd.things import rootfs
from lashd.things.rootfs import FILE_LIMIT, Entry, Root, TooMuch, Unreadable


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("outside")
    (tmp_path / "root/usr/lib").mkdir(parents=True)
    (tmp_path / "root/usr/etc").mkdir()
    (tmp_path / "root/file").write_text("inside")
    return tmp_path / "root"


@pytest.fixture
def root(tree: Path) -> Iterator[Root]:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with Root(tree) as opened:
        yield opened
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"  # noqa: PTH208


@pytest.mark.parametrize(
    "target",
    ["/file", "../../../file", "/usr/../../file", "/usr/lib/../../../../../../file", "//file", "usr/lib/../../file"],
)
def test_links_stay_inside(tree: Path, root: Root, target: str) -> None:
    (tree / "link").symlink_to(target)
    assert root.read_text("link") == root.read_text("/link") == "inside"
    assert root.real_path("link") == "file"
    assert root.link_target("link") == target


@pytest.mark.parametrize("target", ["../secret", "/../secret", "{}/secret", "/proc/self/root/{}/secret", "/dev/null"])
def test_nothing_outside_is_read(tree: Path, root: Root, target: str) -> None:
    (tree / "link").symlink_to(target.format(tree.parent))
    (tree / "usr/etc/through").symlink_to(f"/etc/../{target.format(tree.parent)}")
    for name in ("link", "etc/through"):
        with pytest.raises(Unreadable, match="does not exist in this root"):
            root.read(name)


@pytest.mark.parametrize(
    ("make", "why", "absent"),
    [
        (lambda path: os.mkfifo(path), "is a FIFO", False),
        (lambda path: path.mkdir(), "is a directory", True),
        (lambda path: path.symlink_to(path.name), "leads in a circle", True),
        (lambda path: os.mknod(path, 0o020666, os.makedev(1, 5)), "is a device", False),  # /dev/zero
        (lambda path: os.mknod(path, 0o060660, os.makedev(7, 99)), "is a device", False),
        (lambda path: path.write_bytes(b"a\0b"), "contains a NUL byte", False),
        (lambda path: path.write_bytes(b"\xff"), "is not valid UTF-8", False),
        (lambda path: path.write_bytes(b"x" * (FILE_LIMIT + 1)), "is larger than", False),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 30), "is larger than", False),
        (lambda path: None, "does not exist", True),
        (lambda path: path.symlink_to("/nowhere/at/all"), "does not exist", True),
        (lambda path: path.symlink_to("/file/x"), "part of its path is not a directory", True),
        (lambda path: socket.socket(socket.AF_UNIX).bind(os.fspath(path)), "is a socket", False),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_hostile_files(tree: Path, make: object, why: str, absent: bool) -> None:
    make(tree / "x")  # type: ignore[operator]
    with Root(tree) as root, pytest.raises(Unreadable, match=why) as caught:
        root.read_text("x")
    assert caught.value.absent is absent


def test_limit(tree: Path, root: Root) -> None:
    (tree / "x").write_bytes(b"x" * FILE_LIMIT)
    assert len(root.read("x")) == FILE_LIMIT
    assert root.read("file", limit=6) == b"inside"
    with pytest.raises(Unreadable, match="larger than 5 bytes"):
        root.read("file", limit=5)


def test_a_long_chain_of_links_ends(tree: Path, root: Root) -> None:
    for number in range(100):
        (tree / f"usr/etc/l{number}").symlink_to(f"/etc/l{number + 1}")
    (tree / "usr/etc/l30").unlink()
    (tree / "usr/etc/l30").write_text("end")
    (tree / "usr/etc/round").symlink_to("/etc/round")
    assert root.read_text("etc/l0") == "end"
    for path in ("etc/l31", "etc/round"):
        with pytest.raises(Unreadable) as caught:
            root.read_text(path)
        assert caught.value.number == errno.ELOOP


def test_names_that_are_no_files(root: Root) -> None:
    for name in ("a\0b", "x" * 5000, "x/" * 5000, "file/", "file/x"):
        with pytest.raises(Unreadable):
            root.read(name)
    with pytest.raises(Unreadable):
        root.link_target("file")
    assert root.real_path("") == root.real_path("/") == root.real_path("..") == ""


def test_etc_of_a_deployment(tree: Path, root: Root) -> None:
    """Before a deployment is booted its /etc is usr/etc; afterwards etc is, and what it has counts."""
    (tree / "usr/etc/only").write_text("usr/etc")
    (tree / "usr/etc/both").write_text("usr/etc")
    (tree / "usr/etc/first").symlink_to("/etc/second")
    (tree / "usr/etc/d").mkdir()
    (tree / "usr/etc/d/x").write_text("")
    (tree / "link").symlink_to("/etc/first")
    (tree / "usr/etc/second").symlink_to("../etc/both")
    assert root.read_text("etc/both") == root.read_text("link") == "usr/etc"
    assert root.real_path("/etc/first") == "usr/etc/both"
    assert [e.name for e in root.list("etc/d")] == ["x"]
    (tree / "etc").mkdir()  # an empty one is none
    with Root(tree) as before:
        assert before.read_text("etc/both") == before.read_text("link") == "usr/etc"
    (tree / "etc/both").write_text("etc")
    with Root(tree) as after:
        assert after.read_text("etc/both") == "etc"
        for removed in ("etc/only", "etc/d/x", "link"):
            with pytest.raises(Unreadable) as caught:
                after.read_text(removed)
            assert caught.value.absent
        (tree / "etc/first").symlink_to("/etc/second")
        (tree / "etc/second").symlink_to("both")
        assert after.read_text("link") == "etc"
        assert after.real_path("link") == "etc/both"


def test_list(tree: Path, root: Root) -> None:
    (tree / "link").symlink_to("usr")
    assert sorted(root.list("/"), key=lambda entry: entry.name) == [
        Entry("file", link=False, directory=False),
        Entry("link", link=True, directory=False),
        Entry("usr", link=False, directory=True),
    ]
    assert root.is_directory("link")
    assert not root.is_directory("file")
    os.mkfifo(tree / "fifo")
    for name in ("file", "fifo", "nowhere"):
        with pytest.raises(Unreadable):
            list(root.list(name))


def test_root_that_is_the_host(tmp_path: Path) -> None:
    with Root(Path("/")) as host:
        assert host.real_path("/proc/..") == ""
        assert host.real_path("/usr/bin") == "usr/bin"
    with pytest.raises(FileNotFoundError):
        Root(tmp_path / "nowhere")


def test_var_is_that_of_the_stateroot(tmp_path: Path) -> None:
    deployment = tmp_path / "ostree/deploy/os/deploy/x.0"
    for path in (deployment / "usr", deployment / "var", tmp_path / "ostree/deploy/os/var/lib"):
        path.mkdir(parents=True)
    (deployment / "var/shadowed").write_text("of the image")
    (deployment / "opt").symlink_to("var/lib")
    (tmp_path / "ostree/deploy/os/var/lib/f").write_text("state")
    (tmp_path / "ostree/deploy/os/var/lib/back").symlink_to("../../usr/f")
    (tmp_path / "ostree/deploy/os/var/out").symlink_to("../../../../../secret")
    (deployment / "usr/f").write_text("image")
    with Root(deployment) as root:
        assert root.read_text("var/lib/f") == root.read_text("/opt/f") == "state"
        assert root.read_text("opt/back") == "image"
        assert {entry.name for entry in root.list("var")} == {"lib", "out"}
        assert root.real_path("opt/f") == "var/lib/f"
        for path in ("var/shadowed", "var/out"):
            with pytest.raises(Unreadable, match="does not exist"):
                root.read_text(path)


def test_what_is_spent_on_one_root_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a" * 1000)
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("/d" + "/../d" * 500)
    for work in (
        lambda root: root.read_text("a"),
        lambda root: root.read_text("a", price=10),
        lambda root: list(root.list("/")),
        lambda root: root.real_path("l"),
        lambda root: root.spend(100),
    ):
        monkeypatch.setattr(rootfs, "BUDGET", 30_000)
        with Root(tmp_path) as root:
            for _ in range(2):
                work(root)
        with Root(tmp_path) as root, pytest.raises(TooMuch):
            [work(root) for _ in range(8_000)]
