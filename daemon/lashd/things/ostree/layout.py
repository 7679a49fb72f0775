# SPDX-License-Identifier: Apache-2.0
"""From the image's layout to ostree's: /etc to /usr/etc, /var to the factory, mount points emptied, the rest as it is.

Standard library only.
"""

from __future__ import annotations

from typing import Protocol

from lashd.things.ostree.layertree import Folder, Leaf, LowerLink, Owner, Whiteout, is_utf8
from lashd.things.ostree.tree import OPAQUE, WHITEOUT, LayerFacts

# Mounted over on a running host: content there would never be seen. /sysroot has ostree's own objects in images that
# were made from an ostree commit; files elsewhere are hard links to them.
_HIDDEN = ("boot", "dev", "proc", "run", "sys", "sysroot", "tmp")
_DROPPED_SHOWN = 1000
_IMPLIED = Owner(0o755)


class Sink(Protocol):
    """A directory of the ostree tree that is being written."""

    def describe(self, owner: Owner) -> None: ...

    def file(self, name: str, checksum: str) -> None: ...

    def directory(self, name: str) -> Sink: ...


def to_ostree(root: Folder) -> None:
    """Rearrange a layer's tree. Raises ValueError when the image's top level cannot be an operating system's."""
    for name in _HIDDEN:
        hidden = root.children.get(name)
        if isinstance(hidden, Folder):
            hidden.children.clear()
    _move_top(root, "etc", ("usr",))
    variable = root.children.get("var")
    _move_top(root, "var", ("usr", "share", "factory"))
    if isinstance(variable, Folder):
        root.children["var"] = Folder(variable.owner)


def _move_top(root: Folder, name: str, below: tuple[str, ...]) -> None:
    moving = {key: root.children.pop(key) for key in (name, WHITEOUT + name) if key in root.children}
    if not moving:
        return
    parent = root
    for part in below:
        node = parent.children.setdefault(part, Folder())
        if not isinstance(node, Folder):
            raise ValueError(f"its /{'/'.join(below)} is not a directory")
        parent = node
    for key, node in moving.items():
        there = parent.children.get(key)
        if isinstance(there, Folder) and isinstance(node, Folder):
            _lay_over(there, node)
        else:
            parent.children[key] = node


def _lay_over(there: Folder, node: Folder) -> None:
    there.owner = node.owner or there.owner
    for name, child in node.children.items():
        known = there.children.get(name)
        if isinstance(known, Folder) and isinstance(child, Folder):
            _lay_over(known, child)
        else:
            there.children[name] = child


def moved(path: tuple[str, ...]) -> str:
    """Where `to_ostree` puts the file at `path` of the image."""
    below = {"etc": ("usr",), "var": ("usr", "share", "factory")}.get(path[0] if path else "", ())
    return "/".join((*below, *path))


class LayerWriter:
    """Writes a layer's tree into a sink and learns what the tree cannot say. `empty` is an empty file's checksum."""

    def __init__(self, empty: str) -> None:
        self._empty = empty
        self._implied: set[str] = set()
        self._links: list[tuple[str, str]] = []
        self._dropped: list[str] = []
        self._dropped_count = 0
        self._whiteouts = False

    def write(self, root: Folder, sink: Sink) -> LayerFacts:
        self._write(root, (), sink)
        dropped = self._dropped
        if self._dropped_count > len(dropped):
            dropped = [*dropped, f"and {self._dropped_count - len(dropped)} more"]
        plain = not self._links and not self._whiteouts
        return LayerFacts(frozenset(self._implied), tuple(self._links), tuple(dropped), plain)

    def _write(self, folder: Folder, path: tuple[str, ...], sink: Sink) -> None:
        if folder.owner is None:
            self._implied.add("/".join(path))
        sink.describe(folder.owner or _IMPLIED)
        for name, node in folder.children.items():
            here = (*path, name)
            if not is_utf8(name):
                self._drop(here, "name that is not UTF-8")
            elif isinstance(node, Folder):
                self._write(node, here, sink.directory(name))
            elif isinstance(node, Leaf):
                sink.file(name, node.checksum)
            elif isinstance(node, Whiteout):
                self._white_out(sink, name)
            elif isinstance(node, LowerLink):
                self._links.append(("/".join(here), moved(node.target)))
            else:
                self._drop(here, node.what)
                # Whatever was there below is hidden all the same.
                self._white_out(sink, WHITEOUT + name)

    def _white_out(self, sink: Sink, name: str) -> None:
        if name == OPAQUE or is_utf8(name):
            self._whiteouts = True
            sink.file(name, self._empty)

    def _drop(self, path: tuple[str, ...], what: str) -> None:
        self._dropped_count += 1
        if self._dropped_count <= _DROPPED_SHOWN:
            shown = "/".join(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            self._dropped.append(f"/{shown} ({what})")
