# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from lashd.things.rootfs import Root
from lashd.things.shortnames import ShortNames, parse_aliases
from lashd.words.errors import ErrorName, LashdError


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def alias(name: str, full: str) -> str:
    return f'[aliases]\n"{name}" = "{full}"\n'


@pytest.mark.parametrize(
    ("files", "meaning"),
    [
        ({}, None),
        ({"etc/containers/registries.conf": alias("x", "q.io/etc")}, "q.io/etc"),
        ({"usr/etc/containers/registries.conf": alias("x", "q.io/usr-etc")}, "q.io/usr-etc"),
        ({"usr/share/containers/registries.conf": alias("x", "q.io/share")}, "q.io/share"),
        (
            {
                "usr/share/containers/registries.conf": alias("x", "q.io/share"),
                "etc/containers/registries.conf": alias("y", "q.io/etc"),
            },
            None,
        ),
        (
            {
                "etc/containers/registries.conf": alias("x", "q.io/etc"),
                "etc/containers/registries.conf.d/2.conf": alias("x", "q.io/two"),
                "etc/containers/registries.conf.d/1.conf": alias("x", "q.io/one"),
                "etc/containers/registries.conf.d/3.txt": alias("x", "q.io/three"),
            },
            "q.io/two",
        ),
        (
            {
                "usr/share/containers/registries.conf.d/1.conf": alias("x", "q.io/share"),
                "etc/containers/registries.conf.d/1.conf": alias("y", "q.io/etc"),
            },
            None,
        ),
        (
            {
                "etc/containers/registries.conf": alias("x", "q.io/etc"),
                "etc/containers/registries.conf.d/1.conf": alias("x", ""),
            },
            None,
        ),
        ({"etc/containers/registries.conf": 'unqualified-search-registries = ["q.io"]\n'}, None),
    ],
)
def test_look_up(tmp_path: Path, files: dict[str, str], meaning: str | None) -> None:
    write(tmp_path, files)
    with Root(tmp_path) as root:
        assert ShortNames(root)("x") == meaning


@pytest.mark.parametrize(
    "text", ["[aliases", "aliases = 3", "[aliases]\nx = 3", alias("x", "x"), alias("x", "q.io/x:v"), "a=" + "[" * 5000]
)
def test_damaged(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|has) "):
        parse_aliases(text)
    write(tmp_path, {"etc/containers/registries.conf.d/1.conf": text})
    with Root(tmp_path) as root, pytest.raises(LashdError, match=r"registries.conf.d/1.conf' (is|has) ") as caught:
        ShortNames(root)("x")
    assert caught.value.name == ErrorName.BOUND_IMAGE_INVALID


def test_hostile_file(tmp_path: Path) -> None:
    (tmp_path / "etc/containers").mkdir(parents=True)
    os.mkfifo(tmp_path / "etc/containers/registries.conf")
    with Root(tmp_path) as root, pytest.raises(LashdError, match=r"registries\.conf' is a FIFO"):
        ShortNames(root)("x")


@pytest.mark.parametrize("text", ["x=" + "9" * 5000, "x=" + "[" * 1500, "x=" + "[" * 50_000])
def test_what_the_parser_gives_up_on(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"etc/containers/registries.conf": text})
    with Root(tmp_path) as root, pytest.raises(LashdError) as caught:
        ShortNames(root)("x")
    assert caught.value.name is ErrorName.BOUND_IMAGE_INVALID
    assert "/etc/containers/registries.conf" in caught.value.message
