# SPDX-License-Identifier: Apache-2.0
"""What the judge cannot show: other users' units, /etc in usr/etc, hostile files (test_quadlet_judge has the rest)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lashd.things import quadlet
from lashd.things.quadlet import Quadlets, Unusable, drop_in_directories, extension, image_unit_of
from lashd.things.rootfs import Root

UNIT = "[Container]\nImage={}\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def image(root: Path, name: str) -> str:
    with Root(root) as opened:
        return Quadlets(opened).unit(name).value("Image")


def problem(root: Path, name: str) -> str:
    with Root(root) as opened:
        quadlets = Quadlets(opened)
        try:
            image_unit_of(quadlets.unit(name), quadlets)
        except Unusable as error:
            return str(error)
    return ""


@pytest.mark.parametrize("etc", ["etc", "usr/etc"])
def test_places(tmp_path: Path, etc: str) -> None:
    write(
        tmp_path,
        {
            f"{etc}/containers/systemd/users/a.container": UNIT.format("q.io/no"),
            f"{etc}/containers/systemd/users2/a.container": UNIT.format("q.io/no"),
            f"{etc}/containers/systemd/b.container": UNIT.format("q.io/etc"),
            f"{etc}/containers/systemd/container.d/1.conf": "[Container]\nPull=never\n",
            "run/containers/systemd/a.container": UNIT.format("q.io/no"),
            "usr/share/containers/systemd/users/a.container": UNIT.format("q.io/share"),
            "usr/share/containers/systemd/b.container": UNIT.format("q.io/no"),
        },
    )
    assert image(tmp_path, "a.container") == "q.io/share"
    assert image(tmp_path, "b.container") == "q.io/etc"
    with Root(tmp_path) as root:
        assert Quadlets(root).unit("a.container").value("Pull") == "never"
    assert "no unit 'c.container'" in problem(tmp_path, "c.container")


def test_directories_by_links(tmp_path: Path) -> None:
    """An absolute link means a place in the root; the same directory counts once."""
    write(tmp_path, {"usr/lib/mine/a.container": UNIT.format("q.io/a"), "usr/lib/mine/x.txt": ""})
    base = tmp_path / "usr/share/containers/systemd"
    base.mkdir(parents=True)
    (base / "one").symlink_to("/usr/lib/mine")
    (base / "two").symlink_to("/usr/lib/mine")
    (base / "three").symlink_to("/")
    assert image(tmp_path, "a.container") == "q.io/a"


def test_name_of(tmp_path: Path) -> None:
    write(tmp_path, {"usr/lib/a": UNIT.format("q.io/a")})
    base = tmp_path / "usr/share/containers/systemd"
    base.mkdir(parents=True)
    (base / "a.container").symlink_to("/usr/lib/a")
    (base / "dangling.container").symlink_to("/usr/lib/b")
    with Root(tmp_path) as root:
        assert Quadlets(root).name_of("usr/lib/a") == "a.container"
        assert Quadlets(root).name_of("usr/lib/b") is None


@pytest.mark.parametrize(
    ("name", "directories"),
    [
        ("a.container", "a.container.d container.d"),
        ("a-b-c.image", "a-b-c.image.d a-b-.image.d a-.image.d image.d"),
        ("a-b@c-d.container", "a-b@c-d.container.d a-b@.container.d a-@.container.d a-.container.d container.d"),
        ("a@.container", "a@.container.d container.d"),
    ],
)
def test_drop_in_directories(name: str, directories: str) -> None:
    assert list(drop_in_directories(name)) == directories.split()


def test_extension() -> None:
    assert [extension(name) for name in ("a.b.c", ".c", "a", "a.")] == [".c", ".c", "", "."]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"a.container": "[Container]\nRootfs=/x\n"}, "runs from a directory"),
        ({"a.container": UNIT.format("q.io/a") + "Rootfs=/x\n"}, "both an image"),
        ({"a.container": "[Container]\n"}, r"section [Container] names no image"),
        ({"a.container": UNIT.format("x.build"), "x.build": "[Build]\n"}, "built on the host by 'x.build'"),
        ({"a.container": UNIT.format("x.image")}, "'x.image', which is not in Quadlet's directories"),
        ({"a.container": UNIT.format("x.image"), "x.image": "[Image]\n"}, "section [Image] names no image"),
        ({"a.container": UNIT.format("x.image"), "x.image": "no\n"}, "x.image' has a line that is no section"),
        ({"a.container": UNIT.format("x y.image"), "x y.image": UNIT}, "no unit of the name 'x y.image'"),
    ],
)
def test_problems(tmp_path: Path, files: dict[str, str], why: str) -> None:
    write(tmp_path, {f"usr/share/containers/systemd/{name}": text for name, text in files.items()})
    assert why in problem(tmp_path, "a.container")


def test_hostile_drop_in(tmp_path: Path) -> None:
    write(tmp_path, {"usr/share/containers/systemd/a.container": UNIT.format("q.io/a")})
    drop_in = tmp_path / "usr/share/containers/systemd/a.container.d/1.conf"
    drop_in.parent.mkdir()
    os.mkfifo(drop_in)
    assert "its drop-in '/usr/share/containers/systemd/a.container.d/1.conf' is a FIFO" in problem(
        tmp_path, "a.container"
    )


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = "usr/share/containers/systemd"
    write(tmp_path, {f"{base}/{letter}.container": UNIT.format("q.io/a") for letter in "abc"})
    write(tmp_path, {f"{base}/container.d/{number}.conf": "[Container]\n#" + "x" * 40 for number in range(5)})
    assert image(tmp_path, "c.container") == "q.io/a"
    monkeypatch.setattr(quadlet, "_SIZE_LIMIT", 700)
    with Root(tmp_path) as root:
        quadlets = Quadlets(root)
        assert quadlets.unit("a.container").value("Image") == "q.io/a"
        with pytest.raises(Unusable, match="characters together"):
            quadlets.unit("b.container")
    monkeypatch.setattr(quadlet, "_ENTRY_LIMIT", 3)
    with Root(tmp_path) as root:
        assert "more than 3 entries" in Quadlets(root).problem


def test_drop_ins_of_one_directory_go_before_those_of_the_next(tmp_path: Path) -> None:
    base = "usr/share/containers/systemd"
    write(tmp_path, {f"{base}/a-b.container": UNIT.format("q.io/a")})
    for place in ("a-.container.d", "container.d", "one/a-b.container.d", "two/a-b.container.d"):
        write(tmp_path, {f"{base}/{place}/1.conf": f"[Container]\nPull={place}\n"})
    # Of one name the first counts: by directory, and in that by how much it is about just this unit.
    for place in ("a-.container.d", "container.d", "one/a-b.container.d", "two/a-b.container.d"):
        with Root(tmp_path) as root:
            assert Quadlets(root).unit("a-b.container").value("Pull") == place
        (tmp_path / base / place / "1.conf").unlink()


def test_a_unit_is_made_once(tmp_path: Path) -> None:
    write(tmp_path, {"usr/share/containers/systemd/a.container": UNIT.format("q.io/a")})
    with Root(tmp_path) as root:
        quadlets = Quadlets(root)
        assert quadlets.unit("a.container") is quadlets.unit("a.container")
        for _ in range(2):
            with pytest.raises(Unusable, match=r"no unit 'b\.container'"):
                quadlets.unit("b.container")
