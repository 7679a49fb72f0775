# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import bz2
import gzip
import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things.ostree.blob import BlobSource, TarStream
from lashd.words.errors import ErrorName, LashdError
from tests.things.ostree.images import sha256

MEDIA = "application/vnd.oci.image.layer.v1.tar+gzip"
# Compressible and not, larger than every buffer on the way.
DATA = b"".join(random.Random(1).randbytes(1000) + bytes(1000) for _ in range(700))


def zstd(data: bytes, *options: str) -> bytes:
    return subprocess.run(["zstd", "-qc", *options], input=data, capture_output=True, check=True).stdout


def stream(tmp_path: Path, blob: bytes, media: str = MEDIA, limit: int = 10**8) -> TarStream:
    path = tmp_path / "blob"
    path.write_bytes(blob)
    source = BlobSource(os.open(path, os.O_RDONLY | os.O_CLOEXEC), sha256(blob), len(blob), lambda count: None)
    return TarStream(source, media, limit)


def everything(tar: TarStream) -> bytes:
    return b"".join(iter(lambda: tar._take(70_001), b""))


SKIPPABLE = b"\x50\x2a\x4d\x18\x05\x00\x00\x00hello"


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(DATA, id="plain"),
        pytest.param(gzip.compress(DATA, mtime=0), id="gzip"),
        pytest.param(gzip.compress(DATA[:1000]) + gzip.compress(b"") + gzip.compress(DATA[1000:]), id="gzip members"),
        pytest.param(zstd(DATA), id="zstd"),
        pytest.param(zstd(DATA[:5]) + SKIPPABLE + zstd(DATA[5:], "-19") + SKIPPABLE, id="zstd frames, zstd:chunked"),
        pytest.param(SKIPPABLE + zstd(DATA), id="zstd, a skippable frame first"),
    ],
)
def test_the_first_bytes_say_how_it_is_packed(tmp_path: Path, blob: bytes) -> None:
    assert everything(stream(tmp_path, blob)) == DATA


@pytest.mark.parametrize("blob", [b"", gzip.compress(b"", mtime=0), zstd(b"")])
def test_nothing_at_all(tmp_path: Path, blob: bytes) -> None:
    assert everything(stream(tmp_path, blob)) == b""


@pytest.mark.parametrize(
    ("blob", "why"),
    [
        (gzip.compress(DATA, mtime=0)[:-9], "breaks off"),
        (gzip.compress(DATA, mtime=0) + b"rubbish", "damaged"),
        (b"\x1f\x8b rubbish", "damaged"),
        (zstd(DATA)[:-9], "breaks off"),
        (zstd(DATA) + b"rubbish", "damaged"),
        (zstd(DATA)[:100] + b"rubbish" + zstd(DATA)[107:], "damaged"),
        (gzip.compress(DATA, mtime=0)[:200] + b"rubbish" + gzip.compress(DATA, mtime=0)[207:], "damaged"),
    ],
)
def test_damage(tmp_path: Path, blob: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        everything(stream(tmp_path, blob))


@given(st.binary(max_size=200), st.sampled_from([b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b""]))
def test_any_bytes_end(tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bytes) -> None:
    try:
        everything(stream(tmp_path_factory.getbasetemp(), magic + data))
    except ValueError:
        return


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_bomb_stops_early(tmp_path: Path, pack: object) -> None:
    blob = pack(bytes(20_000_000))  # type: ignore[operator]
    tar = stream(tmp_path, blob, limit=3_000_000)
    with pytest.raises(LashdError) as caught:
        everything(tar)
    assert caught.value.name == ErrorName.NO_SPACE
    assert tar.tell() <= 3_000_000


@pytest.mark.parametrize("media", [MEDIA + "+encrypted", "application/json", "text/html"])
def test_what_is_no_layer(tmp_path: Path, media: str) -> None:
    with pytest.raises(ValueError, match="media type"):
        stream(tmp_path, b"", media)


def test_other_compression_is_no_tar(tmp_path: Path) -> None:
    blob = bz2.compress(DATA)
    assert everything(stream(tmp_path, blob)) == blob


def test_headers_have_a_budget_and_content_has_none(tmp_path: Path) -> None:
    tar = stream(tmp_path, bytes(TarStream.HEADER_LIMIT * 3))
    tar.read(TarStream.HEADER_LIMIT)
    with pytest.raises(ValueError, match="header"):
        tar.read(1)
    tar.content(TarStream.HEADER_LIMIT)
    tar.expect_header()
    tar.read(512)
    with pytest.raises(ValueError, match="backwards"):
        tar.seek(0)
