# SPDX-License-Identifier: Apache-2.0
"""The tar pass alone, without ostree: whatever the bytes say, it ends, and says no in one way only."""

from __future__ import annotations

import random
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from lashd.things.ostree.blob import BlobSource, TarStream
from lashd.things.ostree.layertree import Folder, Leaf, Owner
from lashd.things.ostree.layout import LayerWriter, moved, to_ostree
from lashd.things.ostree.tarfilter import read_layer
from lashd.things.ostree.tree import Directory, LayerFacts, merge
from lashd.words.errors import LashdError
from tests.things.ostree.images import (
    Entry,
    file,
    folder,
    hardlink,
    opaque,
    sha256,
    special,
    symlink,
    tar,
    whiteout,
)


class Memory:
    """Objects that only count."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def file(self, owner: Owner, size: int, content: Iterable[bytes]) -> str:
        data = b"".join(content)
        assert len(data) == size
        name = f"{len(self.content):064x}"
        self.content[name] = data
        return name

    def symlink(self, owner: Owner, target: str) -> str:
        return "f" * 64


class Nowhere:
    def describe(self, owner: Owner) -> None:
        pass

    def file(self, name: str, checksum: str) -> None:
        assert "/" not in name
        assert name not in ("", ".", "..")

    def directory(self, name: str) -> Nowhere:
        self.file(name, "")
        return self


def read(data: bytes, path: Path, limit: int = 10**7) -> tuple[Folder, Memory]:
    path.write_bytes(data)
    with path.open("rb") as blob:
        source = BlobSource(blob.fileno(), sha256(data), len(data), lambda count: None)
        objects = Memory()
        return read_layer(TarStream(source, "", limit), objects), objects


RICH = (
    folder("./"),
    folder("usr", xattrs={"user.a": "1"}),
    file("usr/" + "n" * 200, "x" * 700, xattrs={"security.capability": "\x01\x00"}),
    symlink("usr/l", "y" * 300),
    hardlink("usr/h", "usr/" + "n" * 200),
    special("usr/c"),
    file("etc/ü\udcff", "1"),
    file("var/lib/x", "2"),
    whiteout("usr/gone"),
    opaque("usr/d"),
    hardlink("etc/lower", "usr/lower"),
    symlink("lib", "usr/lib"),
    file("lib/through", "3"),
)


def test_damaged_archives_are_refused_or_read(tmp_path: Path) -> None:
    pick = random.Random(3)
    whole = tar(RICH)
    read_count = 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(pick.choice([1, 1, 2, 5])):
            at = pick.randrange(len(data))
            kind = pick.random()
            if kind < 0.6:
                data[at] = pick.choice([0, 0x2F, 0x2E, 0x30, 0x37, 0x80, 0xFF, pick.randrange(256)])
                _mend_checksum(data, at)
            elif kind < 0.8:
                del data[at : at + pick.choice([1, 100, 512, 1024])]
            else:
                data[at:at] = pick.randbytes(pick.choice([1, 512]))
        try:
            root, _ = read(bytes(data), tmp_path / "blob")
            to_ostree(root)
            facts = LayerWriter("0" * 64).write(root, Nowhere())
        except (ValueError, LashdError):
            continue
        read_count += 1
        assert LayerFacts.unpack(facts.pack()) == facts
    assert read_count > 100


def _mend_checksum(data: bytearray, at: int) -> None:
    """So that the damage gets past the header's checksum."""
    start = at - at % 512
    block = data[start : start + 512]
    if len(block) == 512 and block[257:262] == b"ustar":
        block[148:156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(block)


def test_a_sparse_file_is_filled(tmp_path: Path) -> None:
    directory = tmp_path / "in"
    directory.mkdir()
    path = directory / "sparse"
    with path.open("wb") as out:
        out.seek(1_000_000)
        out.write(b"middle")
        out.truncate(3_000_000)
    for form in ("gnu", "posix"):
        argv = ["tar", "--sparse", f"--format={form}", "-cf", tmp_path / "out.tar", "-C", directory, "sparse"]
        subprocess.run(argv, check=True)
        root, objects = read((tmp_path / "out.tar").read_bytes(), tmp_path / "blob")
        leaf = root.children["sparse"]
        assert isinstance(leaf, Leaf)
        assert objects.content[leaf.checksum] == path.read_bytes()
        # Its holes take space too.
        with pytest.raises(LashdError, match="unpacks to more"):
            read((tmp_path / "out.tar").read_bytes(), tmp_path / "blob", 1_000_000)


def test_extended_headers_share_one_budget(tmp_path: Path) -> None:
    """Many long headers before one file are one attack."""
    whole = tar([Entry("x" * 900_000)])
    assert whole[156:157] == tarfile.XHDTYPE
    long_header = whole[: 512 + 900_096]
    with pytest.raises(ValueError, match="header"):
        read(long_header * 6 + whole, tmp_path / "blob", 10**8)


def test_where_things_go() -> None:
    assert moved(("etc", "a")) == "usr/etc/a"
    assert moved(("var", "lib")) == "usr/share/factory/var/lib"
    assert moved(("usr", "etc")) == "usr/etc"
    assert moved(("etcetera",)) == "etcetera"


@pytest.mark.parametrize("data", [b"", b"x", b"x\x9c", LayerFacts().pack()[:-2]])
def test_a_damaged_description(data: bytes) -> None:
    with pytest.raises(ValueError, match="description"):
        LayerFacts.unpack(data)


def test_what_no_layer_touches_is_never_read() -> None:
    """The merge of a large image costs what has changed."""
    opened = []

    def load(contents: str) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
        opened.append(contents)
        return {
            "below": ({}, {"usr": ("below/usr", "m"), "big": ("below/big", "m")}),
            "below/usr": ({"a": "1"}, {"huge": ("below/huge", "m")}),
            "over": ({}, {"usr": ("over/usr", "n")}),
            "over/usr": ({"b": "2"}, {"new": ("over/new", "n")}),
        }[contents]

    root = Directory("m", "below")
    merge(root, Directory("n", "over"), LayerFacts(), load)
    assert sorted(opened) == ["below", "below/usr", "over", "over/usr"]
    usr = root.open(load)[1]["usr"]
    assert (usr.meta, usr.known[0]) == ("n", {"a": "1", "b": "2"})
    assert usr.known[1]["new"].contents == "over/new"
