# SPDX-License-Identifier: Apache-2.0
"""A layer read again: whatever is not as it was put there is found, and a sound layer is never called damaged."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lashd.things.layer_tree import Damaged, Tree
from lashd.things.layers import LayerProblem, read_layer, read_layers
from lashd.things.store import Store, StoredLayer
from tests.support.images import build, files, layer
from tests.support.stores import make_store, put, stored

NAME = "quay.io/edge/agent:v1"
LONG = "deep/" + "l" * 150
BIG = os.urandom(1024) * 3000  # more than one piece

Entry = tuple[str, bytes, bytes | str]  # name, type, content or target


def archive(entries: list[Entry], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, kind, value in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755 if kind == tarfile.DIRTYPE else 0o644
            if isinstance(value, bytes):
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
            else:
                info.linkname = value
                tar.addfile(info)
    return stream.getvalue()


EVERYTHING: list[Entry] = [
    ("deep", tarfile.DIRTYPE, ""),
    (LONG, tarfile.REGTYPE, b"long name"),
    ("deep/link", tarfile.SYMTYPE, "t" * 300),
    ("hard", tarfile.LNKTYPE, LONG),
    ("empty", tarfile.REGTYPE, b""),
    ("tümlaut", tarfile.REGTYPE, b"x"),
    ("usr/lib", tarfile.DIRTYPE, ""),
    ("lib", tarfile.SYMTYPE, "usr/lib"),
    ("up", tarfile.SYMTYPE, "../../../usr/lib"),
    ("lib/through", tarfile.REGTYPE, b"through a link of the same layer"),
    ("up/and", tarfile.REGTYPE, b"and through one that leads to the root and no further"),
    ("./dot/file", tarfile.REGTYPE, b"dot"),
    ("fifo", tarfile.FIFOTYPE, ""),
    ("device", tarfile.CHRTYPE, ""),
    (".wh.gone", tarfile.REGTYPE, b""),
    ("usr/.wh.below", tarfile.REGTYPE, b""),
    ("opaque/.wh..wh..opq", tarfile.REGTYPE, b""),
    ("opaque/new", tarfile.REGTYPE, b"new"),
    ("outside", tarfile.SYMTYPE, "/etc/passwd"),
    ("big", tarfile.REGTYPE, BIG),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def top(store: Store) -> StoredLayer:
    chain = store.index().chain(stored(store, NAME))
    assert chain is not None
    return chain[0]


def diff(store: Store) -> Path:
    return store.root / "overlay" / top(store).id / "diff"


def filled(store: Store, tar: bytes, compression: str = "gzip") -> StoredLayer:
    put(store, build([layer(tar, compression=compression)]), NAME)
    return top(store)


@pytest.mark.parametrize(
    ("tar", "compression"),
    [
        (archive(EVERYTHING), "gzip"),
        (archive(EVERYTHING), "zstd"),
        (archive(EVERYTHING), "none"),
        (archive(EVERYTHING, tarfile.GNU_FORMAT), "gzip"),
        (archive([("short", tarfile.REGTYPE, b"ustar")], tarfile.USTAR_FORMAT), "gzip"),
        (archive([("./", tarfile.DIRTYPE, ""), ("/absolute", tarfile.REGTYPE, b"1")]), "gzip"),
        (archive([(os.fsdecode(b"caf\xe9/\xff"), tarfile.REGTYPE, b"latin")], tarfile.GNU_FORMAT), "gzip"),
        (archive([(".wh.a", tarfile.REGTYPE, b""), ("a", tarfile.REGTYPE, b"replaced")]), "gzip"),
        (archive([("padded", tarfile.REGTYPE, b"1")]) + b"\0" * 3_000_000, "gzip"),
        (archive([("end", tarfile.REGTYPE, b"1")])[:1024], "gzip"),
        (archive([]), "gzip"),
        (b"", "gzip"),
    ],
    ids=[
        *("pax", "zstd", "uncompressed", "gnu", "ustar", "root entry", "not utf-8", "whiteout and file"),
        *("padding", "no end blocks", "no entries", "no bytes"),
    ],
)
def test_a_sound_layer_has_no_problem(tar: bytes, compression: str, store: Store) -> None:
    assert read_layer(store.root, filled(store, tar, compression)) is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def move_out(path: Path) -> None:
    """The same content, reached through a link that leads out of the layer."""
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def move_directory_out(path: Path) -> None:
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def copy_over(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("path", "harm"),
    [
        ("big", flip),
        ("big", lambda path: os.truncate(path, len(BIG) - 1)),
        ("big", lambda path: os.truncate(path, 0)),
        ("big", lambda path: path.write_bytes(BIG + b"1")),
        ("big", Path.unlink),
        ("big", make_fifo),
        ("big", move_out),
        ("big", lambda path: relink(path, "/dev/zero")),
        ("big", lambda path: (path.unlink(), path.mkdir())),
        ("empty", Path.unlink),
        ("empty", lambda path: path.write_bytes(b"1")),
        ("empty", lambda path: relink(path, "big")),
        (LONG, flip),
        ("hard", copy_over),
        ("hard", Path.unlink),
        ("deep/link", Path.unlink),
        ("deep/link", lambda path: relink(path, "elsewhere")),
        ("deep/link", lambda path: (path.unlink(), path.write_text("file"))),
        ("usr/lib/through", flip),
        ("lib", lambda path: relink(path, "lib")),
        ("opaque", move_directory_out),
        ("opaque/new", Path.unlink),
        ("gone", Path.unlink),
        ("usr/below", Path.unlink),
        ("fifo", Path.unlink),
        ("device", Path.unlink),
        ("usr/lib/and", Path.unlink),
    ],
)
def test_damage_is_found(path: str, harm: Callable[[Path], object], store: Store) -> None:
    one = filled(store, archive(EVERYTHING))
    harm(diff(store) / path)
    problem = read_layer(store.root, one)
    assert problem is not None
    assert problem.damaged
    assert problem.sentence.startswith(f"The layer {one.id} is damaged: ")
    assert problem.sentence.endswith(".")


def test_a_layer_directory_that_is_gone_is_damage(store: Store) -> None:
    one = filled(store, archive(EVERYTHING))
    diff(store).rename(diff(store).with_name("other"))
    problem = read_layer(store.root, one)
    assert problem is not None
    assert problem.damaged


@pytest.mark.parametrize("keep", [0, 40, -8])
def test_a_truncated_description_is_damage(keep: int, store: Store) -> None:
    one = filled(store, archive(EVERYTHING))
    split = store.root / "overlay-layers" / f"{one.id}.tar-split.gz"
    split.write_bytes(split.read_bytes()[:keep])
    problem = read_layer(store.root, one)
    assert problem is not None


def without_description(store: Store, one: StoredLayer) -> StoredLayer:
    (store.root / "overlay-layers" / f"{one.id}.tar-split.gz").unlink()
    return one


def with_line(line: bytes) -> Callable[[Store, StoredLayer], StoredLayer]:
    def act(store: Store, one: StoredLayer) -> StoredLayer:
        split = store.root / "overlay-layers" / f"{one.id}.tar-split.gz"
        split.write_bytes(gzip.compress(line + gzip.decompress(split.read_bytes())))
        return one

    return act


@pytest.mark.parametrize(
    "change",
    [
        without_description,
        lambda store, one: replace(one, uncompressed_digest=None, toc_digest="sha256:" + "0" * 64),
        lambda store, one: replace(one, uncompressed_digest="sha512:" + "0" * 128),
        with_line(b'{"type":1,"name":"../../../../../../etc/passwd","size":10}\n'),
        with_line(b'["list"]\n'),
        with_line(b'{"type":2,"payload":"' + b"A" * (65 * 1024 * 1024) + b'"}\n'),
    ],
    ids=["no description", "no digest", "other digest", "upwards", "no entry", "endless line"],
)
def test_what_cannot_be_read_again_is_not_called_sound(
    change: Callable[[Store, StoredLayer], StoredLayer], store: Store
) -> None:
    problem = read_layer(store.root, change(store, filled(store, archive([("a", tarfile.REGTYPE, b"1")]))))
    assert problem is not None
    assert not problem.damaged
    assert "cannot be verified" in problem.sentence


def test_sparse_files_cannot_be_verified(store: Store, tmp_path: Path) -> None:
    """containers-storage keeps too little of such an archive; skopeo cannot give it back either."""
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.write(b"a" * 4096)
        file.truncate(3 << 20)
    argv = ["tar", "-C", str(tmp_path), "--sparse", "--format=pax", "-c", "sparse"]
    one = filled(store, subprocess.run(argv, capture_output=True, check=True).stdout)
    assert diff(store).joinpath("sparse").stat().st_size == 3 << 20
    problem = read_layer(store.root, one)
    assert problem == LayerProblem(problem.sentence, damaged=False)


names = st.text(st.sampled_from("abü.-"), min_size=1, max_size=30).filter(lambda name: not name.startswith("."))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.lists(names, min_size=1, max_size=3).map("/".join).map(lambda name: "f/" + name),
        st.binary(max_size=1500),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_any_tree_is_sound_until_one_byte_changes(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes], data: st.DataObject
) -> None:
    tree = {name: value for name, value in tree.items() if not any(other.startswith(f"{name}/") for other in tree)}
    store = make_store(tmp_path_factory.mktemp("any"))
    put(store, build([files(tree)]), NAME)
    assert read_layer(store.root, top(store)) is None
    full = sorted(name for name, value in tree.items() if value)
    if full:
        flip(diff(store) / data.draw(st.sampled_from(full)))
        assert read_layer(store.root, top(store)).damaged


# ---- several layers ----


async def test_several_layers_are_read_and_the_bad_one_is_named(store: Store) -> None:
    put(store, build([files({f"f{number}": bytes([number])}) for number in range(6)]), NAME)
    chain = store.index().chain(stored(store, NAME))
    bad = chain[2]
    flip(store.root / "overlay" / bad.id / "diff/f3")
    assert set(await read_layers(store.root, [*chain, *chain])) == {bad.id}


async def test_reading_ends_soon_when_it_is_cancelled(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = filled(store, archive([("big", tarfile.REGTYPE, BIG)]))
    reading, pieces = threading.Event(), 0
    whole = Tree.content

    def slowly(self: Tree, name: str, size: int):  # type: ignore[no-untyped-def]
        nonlocal pieces
        for piece in whole(self, name, size):
            pieces += 1
            reading.set()
            threading.Event().wait(0.1)
            yield piece

    monkeypatch.setattr(Tree, "content", slowly)
    task = asyncio.create_task(read_layers(store.root, [one]))
    await asyncio.to_thread(reading.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pieces < len(BIG) >> 20
    seen = pieces
    await asyncio.sleep(0.2)
    assert pieces == seen, "the thread has ended"


def test_no_descriptor_is_left_open(store: Store) -> None:
    one = filled(store, archive(EVERYTHING))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert read_layer(store.root, one) is None
    flip(diff(store) / "big")
    for _ in range(3):
        assert read_layer(store.root, one) is not None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_tree_is_not_left_by_dots(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "tree/way").symlink_to("..")
    (tmp_path / "tree/loop").symlink_to("loop")
    with Tree(tmp_path / "tree") as tree:
        for name in ("way/secret", "loop/secret", "./way/./secret"):
            with pytest.raises(Damaged):
                b"".join(tree.content(name, 6))
