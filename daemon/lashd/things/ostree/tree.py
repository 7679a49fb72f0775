# SPDX-License-Identifier: Apache-2.0
"""Layers laid over each other, as trees of object checksums. Pure: objects are read through a callback.

A layer's commit is a tree in which whiteouts are still ordinary files (`.wh.NAME`, `.wh..wh..opq`), so that one commit
serves every image that has the layer; only the merge acts on them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"

# Names and checksums of a tree object: files, and directories as (contents, metadata).
Load = Callable[[str], tuple[dict[str, str], dict[str, tuple[str, str]]]]

# The image's /etc and /var lie below /usr in an ostree tree. What removes /usr from the image must not remove them.
_FOREIGN = (("usr", "etc"), ("usr", "share", "factory", "var"))


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What a layer says beyond its tree. All paths are of the ostree tree, without a leading slash.

    `implied` are directories that the layer names only as parents: they must not change what is below.
    `links` are (path, target): hard links to a file of a lower layer. `dropped` are entries ostree cannot hold,
    ready to be shown. `plain`: no whiteouts and no links.
    """

    implied: frozenset[str] = frozenset()
    links: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    plain: bool = True

    def pack(self) -> bytes:
        fields = [sorted(self.implied), self.links, self.dropped, self.plain]
        return zlib.compress(json.dumps(fields).encode())

    @classmethod
    def unpack(cls, data: bytes) -> LayerFacts:
        """Raises ValueError for what `pack` did not make."""
        try:
            implied, links, dropped, plain = json.loads(zlib.decompress(data))
            return cls(frozenset(implied), tuple((path, target) for path, target in links), tuple(dropped), plain)
        except (zlib.error, TypeError, RecursionError) as error:
            raise ValueError("a layer's description is damaged") from error


class Directory:
    """A directory, opened only when something in it is looked at. `contents` is its tree object while untouched."""

    __slots__ = ("_dirs", "_files", "contents", "meta")

    def __init__(self, meta: str | None = None, contents: str | None = None) -> None:
        self.meta = meta
        self.contents = contents
        self._files: dict[str, str] = {}
        self._dirs: dict[str, Directory] = {}

    def open(self, load: Load) -> tuple[dict[str, str], dict[str, Directory]]:
        """Its files and directories, free to be changed."""
        if self.contents is not None:
            self._files, dirs = load(self.contents)
            self._dirs = {name: Directory(meta, contents) for name, (contents, meta) in dirs.items()}
            self.contents = None
        return self._files, self._dirs

    @property
    def known(self) -> tuple[dict[str, str], dict[str, Directory]]:
        """Its files and directories, once it has been opened (`contents` is None then)."""
        return self._files, self._dirs

    def replace(self, files: dict[str, str], dirs: dict[str, Directory]) -> None:
        self.contents = None
        self._files, self._dirs = files, dirs


def find(root: Directory, path: str, load: Load) -> str | Directory | None:
    """The file's checksum or the directory at `path`, without following links; None when there is nothing."""
    node: Directory | str | None = root
    for name in path.split("/") if path else ():
        if not isinstance(node, Directory):
            return None
        files, dirs = node.open(load)
        node = dirs.get(name) or files.get(name)
    return node


def merge(below: Directory, layer: Directory, facts: LayerFacts, load: Load) -> None:
    """Lay `layer` over `below`, which becomes the result.

    Raises ValueError when the layer links to a file that no layer below it has.
    """
    # A hard link means the file as the layers below have it, whatever else this layer does to that name.
    targets = [(path, _target(below, path, target, load)) for path, target in facts.links]
    _overlay(below, layer, (), facts, load)
    for path, checksum in targets:
        _put(below, tuple(path.split("/")), checksum, load)


def _target(below: Directory, path: str, target: str, load: Load) -> str:
    found = find(below, target, load)
    if not isinstance(found, str):
        raise ValueError(f"'/{path}' is a hard link to '/{target}', which no layer below has as a file")
    return found


def _overlay(target: Directory, layer: Directory, path: tuple[str, ...], facts: LayerFacts, load: Load) -> None:
    if target.meta is None or "/".join(path) not in facts.implied:
        target.meta = layer.meta
    over_files, over_dirs = layer.open(load)
    files, dirs = target.open(load)
    if OPAQUE in over_files:
        _clear(target, path, load)
        files, dirs = target.open(load)
    for name in over_files:
        if name.startswith(WHITEOUT) and name != OPAQUE:
            _remove(target, path, name[len(WHITEOUT) :], load)
    for name, checksum in over_files.items():
        if not name.startswith(WHITEOUT):
            dirs.pop(name, None)
            files[name] = checksum
    for name, over in over_dirs.items():
        files.pop(name, None)
        if name not in dirs and facts.plain:
            dirs[name] = over
        else:
            _overlay(dirs.setdefault(name, Directory()), over, (*path, name), facts, load)


def _remove(directory: Directory, path: tuple[str, ...], name: str, load: Load) -> None:
    files, dirs = directory.open(load)
    files.pop(name, None)
    if name in dirs:
        _clear(dirs[name], (*path, name), load)
        if not any(dirs[name].open(load)):
            del dirs[name]


def _clear(directory: Directory, path: tuple[str, ...], load: Load) -> None:
    """Empty `directory`, but for what came there from the image's /etc and /var (unless all of / is emptied)."""
    _, dirs = directory.open(load)
    kept = {}
    for foreign in _FOREIGN:
        depth = len(path)
        if not path or foreign[:depth] != path or len(foreign) == depth or foreign[depth] not in dirs:
            continue
        name = foreign[depth]
        if depth + 1 < len(foreign):
            _clear(dirs[name], foreign[: depth + 1], load)
            if not any(dirs[name].open(load)):
                continue
        kept[name] = dirs[name]
    directory.replace({}, kept)


def _put(root: Directory, path: tuple[str, ...], checksum: str, load: Load) -> None:
    node = root
    for name in path[:-1]:
        files, dirs = node.open(load)
        if name not in dirs:
            raise ValueError(f"the parent of '/{'/'.join(path)}' is gone")
        node = dirs[name]
    files, dirs = node.open(load)
    dirs.pop(path[-1], None)
    files[path[-1]] = checksum


# A deployed root needs these as mount points and ways in, whether or not the image has them.
MOUNT_POINTS = ("boot", "dev", "proc", "run", "sys", "sysroot", "var")


def complete(root: Directory, *, meta: str, sticky: str, ostree_link: str, load: Load) -> None:
    """Add what a deployed root needs. `meta` and `sticky` are metadata objects (0755 and 1777, both root's)."""
    root.meta = root.meta or meta
    files, dirs = root.open(load)
    for name in MOUNT_POINTS:
        if name not in dirs:
            files.pop(name, None)
            dirs[name] = Directory(meta)
    if "tmp" not in dirs and "tmp" not in files:
        dirs["tmp"] = Directory(sticky)
    if "ostree" not in dirs and "ostree" not in files:
        files["ostree"] = ostree_link


def kernels(root: Directory, load: Load) -> Iterator[str]:
    """Versions of the kernels that the tree carries where ostree looks for them."""
    modules = find(root, "usr/lib/modules", load)
    if isinstance(modules, Directory):
        for version, directory in modules.open(load)[1].items():
            if "vmlinuz" in directory.open(load)[0]:
                yield version
