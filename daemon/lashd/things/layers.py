# SPDX-License-Identifier: Apache-2.0
"""Read a layer again, every byte of it, and compare it with the digest it was stored under.

For each layer containers-storage keeps what a tar archive has beside the contents of files (`<id>.tar-split.gz`: JSON
lines, one for each piece of raw archive and one for each entry). With the files below the layer's `diff` that is the
whole archive again: its digest proves the contents, its headers say what else must be there.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lashd.things.layer_tree import CHUNK, Damaged, Tree, Unverifiable
from lashd.things.store_index import StoredLayer

# A line holds one piece of raw archive, in base64: some headers and the padding of a file. Far beyond any honest one.
_LINE_LIMIT = 64 * 1024 * 1024
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True, slots=True)
class LayerProblem:
    """What is wrong with a layer: a whole sentence. Not `damaged`: nothing is known to be wrong, but neither right."""

    sentence: str
    damaged: bool = True


class _Stopped(Exception):
    """Nobody waits for the answer any more."""


async def read_layers(store_root: Path, layers: Iterable[StoredLayer]) -> dict[str, LayerProblem]:
    """Read `layers`, as many at once as there are processors. Returns layer id → problem of those that are not sound.

    When it is cancelled, the reading ends within one piece of a file before this does.
    """
    stop = threading.Event()
    free = asyncio.Semaphore(os.cpu_count() or 1)

    async def read(layer: StoredLayer) -> tuple[str, LayerProblem | None]:
        async with free:
            reading = asyncio.create_task(asyncio.to_thread(read_layer, store_root, layer, stop))
            try:
                return layer.id, await asyncio.shield(reading)
            except asyncio.CancelledError:
                stop.set()
                await asyncio.wait([reading])
                raise

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(layer)) for layer in {layer.id: layer for layer in layers}.values()]
    return {layer_id: problem for layer_id, problem in (task.result() for task in tasks) if problem is not None}


def read_layer(store_root: Path, layer: StoredLayer, stop: threading.Event | None = None) -> LayerProblem | None:
    """Read one layer. Returns None when it is sound, else what is wrong with it.

    Blocks for as long as the reading takes: call it in a thread, and set `stop` to end it early. Follows no link out of
    the layer, and opens nothing but regular files.
    """
    try:
        wanted = layer.uncompressed_digest or ""
        if not wanted.startswith("sha256:"):
            raise Unverifiable("the store does not know the digest of its content")
        found, why_not = _read(store_root, layer, stop or threading.Event())
        if found == wanted:
            return None
        if why_not:
            raise Unverifiable(why_not)
        raise Damaged(f"its content has the digest {found}, not {wanted}")
    except Unverifiable as reason:
        return LayerProblem(f"The layer {layer.id} cannot be verified: {reason}.", damaged=False)
    except _Stopped:
        return LayerProblem(f"The layer {layer.id} was not read to its end.", damaged=False)
    except (Damaged, OSError, EOFError, ValueError, zlib.error) as reason:
        # Bad gzip, bad JSON, a disk that cannot read.
        return LayerProblem(f"The layer {layer.id} is damaged: {reason}.")


def _read(store_root: Path, layer: StoredLayer, stop: threading.Event) -> tuple[str, str]:
    """The digest of the layer's archive, and why its entries could not be compared (empty when they were)."""
    split = store_root / "overlay-layers" / f"{layer.id}.tar-split.gz"
    if not split.exists():
        raise Unverifiable(f"{split.name} is not there")
    with Tree(store_root / "overlay" / layer.id / "diff") as tree:
        archive = _Archive(_pieces(split, tree), stop)
        try:
            _compare_entries(archive, tree)
            why_not = ""
        except (tarfile.TarError, ValueError) as error:
            # Not an archive as Python reads it: an empty one, or with sparse files, of which the store keeps too
            # little to put them together again. The digest of what follows may still be right.
            why_not = f"its archive is not understood ({error})"
        return archive.digest(), why_not


class _Archive(io.RawIOBase):
    """The archive as a stream that can be read once, from its pieces; knows the digest of what has been read."""

    def __init__(self, pieces: Iterator[bytes], stop: threading.Event) -> None:
        self._pieces = pieces
        self._stop = stop
        self._rest = memoryview(b"")
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        assert size >= 0
        while not self._rest:
            if self._stop.is_set():
                raise _Stopped
            try:
                piece = next(self._pieces)
            except StopIteration:
                return b""
            self._hash.update(piece)
            self._rest = memoryview(piece)
        found, self._rest = self._rest[:size], self._rest[size:]
        return bytes(found)

    def digest(self) -> str:
        """Read what is left, and return the digest of the whole."""
        while self.read(CHUNK):
            pass
        return f"sha256:{self._hash.hexdigest()}"


def _pieces(split: Path, tree: Tree) -> Iterator[bytes]:
    with gzip.open(split, "rb") as lines:
        while line := lines.readline(_LINE_LIMIT + 1):
            if len(line) > _LINE_LIMIT:
                raise Unverifiable(f"{split.name} has a line that is too long")
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise Unverifiable(f"{split.name} has a line that is no entry")
            if entry.get("type") == 2:
                yield base64.b64decode(entry.get("payload") or "", validate=True)
            elif entry.get("type") == 1 and entry.get("size"):
                yield from tree.content(_entry_name(entry), int(entry["size"]))


def _entry_name(entry: dict[str, Any]) -> str:
    # Names that are not UTF-8 are kept as bytes, in base64.
    if raw := entry.get("name_raw"):
        return os.fsdecode(base64.b64decode(raw))
    return str(entry.get("name", ""))


def _compare_entries(archive: _Archive, tree: Tree) -> None:
    """Walk through the archive and look for everything that has no content to be compared: links, directories, …"""
    with tarfile.open(fileobj=archive, mode="r|", bufsize=CHUNK, encoding="utf-8", errors="surrogateescape") as tar:
        while (entry := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else all of them would be kept
            _compare_entry(entry, tree)


def _compare_entry(entry: tarfile.TarInfo, tree: Tree) -> None:
    directory, _, base = entry.name.rstrip("/").rpartition("/")
    if base == _OPAQUE:
        # Kept as an attribute of the directory, under a name that depends on how the store is mounted.
        _expect(tree.look(directory), stat.S_ISDIR, directory)
        return
    if base.startswith(_WHITEOUT):
        # A whiteout proper, or what the same layer put in its place.
        tree.look(f"{directory}/{base.removeprefix(_WHITEOUT)}")
        return
    found = tree.look(entry.name)
    if entry.islnk():
        target = tree.look(entry.linkname)
        if (found.st_dev, found.st_ino) != (target.st_dev, target.st_ino):
            raise Damaged(f"{entry.name!r} is not the same file as {entry.linkname!r}")
    elif entry.issym():
        if not stat.S_ISLNK(found.st_mode) or tree.link_target(entry.name) != entry.linkname:
            raise Damaged(f"{entry.name!r} does not link to {entry.linkname!r}")
    elif entry.isdir():
        _expect(found, stat.S_ISDIR, entry.name)
    elif entry.isreg():
        _expect(found, stat.S_ISREG, entry.name)
        if not entry.size and found.st_size:
            raise Damaged(f"{entry.name!r} has {found.st_size} bytes, not 0")


def _expect(found: os.stat_result, is_kind: Any, name: str) -> None:
    if not is_kind(found.st_mode):
        raise Damaged(f"{name!r} is another kind of file than it was")
