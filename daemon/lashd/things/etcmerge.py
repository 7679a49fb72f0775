# SPDX-License-Identifier: Apache-2.0
"""The /etc that a staged deployment will have once ostree has merged the local changes into it.

ostree does that at the very end of a shutdown: it compares the old deployment's `etc` with its `usr/etc`, and repeats
on the new `etc` what was added, changed and removed there. Here the same is worked out name by name, for what is
asked for, without writing anything. The rules are libostree's own (`merge_configuration_from`), its odd ones too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lashd.things.rootfs import FILE_LIMIT, Entry, openat2

# So many names are looked at for one view, and so deep: far more than what a host says of its containers.
NAME_LIMIT = 20_000
DEPTH_LIMIT = 64
# So many bytes of each side are compared for one view: a tenth of a second.
COMPARED_LIMIT = 64 * 1024 * 1024
_BLOCK = 64 * 1024


class Unmergeable(Exception):
    """It cannot be told what ostree will make of something in /etc, so that nothing can be told of what depends on it.

    The message is a whole sentence without its full stop.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"The local changes of '/etc/{path}' cannot be followed into the new system: {why}")


@dataclass(frozen=True, slots=True)
class Node:
    """One name below `etc`, as it will be. `path` is without leading `/`, empty for `etc` itself; `kind` as S_IFMT.

    `local` and `new` say where it is taken from: the old system's `etc`, or the `etc` that came with the new one. Only
    a directory can come from both; with `original` its names are compared with those of the old system's `usr/etc`.
    """

    path: str
    kind: int
    local: bool = False
    new: bool = False
    original: bool = False

    @property
    def link(self) -> bool:
        return stat.S_ISLNK(self.kind)

    @property
    def directory(self) -> bool:
        return stat.S_ISDIR(self.kind)

    @property
    def merged(self) -> bool:
        return self.local and (self.new or self.original)


@dataclass(slots=True)
class _Tree:
    """One of the three, by the descriptor of its top directory; -1 when there is none."""

    top: int
    known: dict[str, os.stat_result | None] = field(default_factory=dict)

    def look(self, path: str) -> os.stat_result | None:
        """lstat(2) of `path`, or None; what is on the way to it is known not to be a link."""
        if path not in self.known:
            try:
                self.known[path] = os.stat(path, dir_fd=self.top, follow_symlinks=False) if self.top >= 0 else None
            except (FileNotFoundError, NotADirectoryError):
                self.known[path] = None
        return self.known[path]

    def names(self, path: str) -> Iterator[str]:
        directory = openat2(self.top, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    yield entry.name
        finally:
            os.close(directory)


class EtcMerge:
    """`new` is the root of the staged deployment, `old` that of the deployment whose local changes it will get."""

    def __init__(self, new: Path, old: Path) -> None:
        """Raises OSError when one of them, or the old one's `etc` or `usr/etc`, cannot be entered."""
        self._trees: list[_Tree] = []
        try:
            self._original = self._tree(old / "usr/etc")
            self._local = self._tree(_followed(old / "etc"))
            self._new = self._new_tree(new)
        except OSError:
            self.close()
            raise
        self._nodes: dict[str, Node | None] = {}
        self._looked_at = 0
        self._compared = 0
        self.top = Node("", stat.S_IFDIR, local=True, new=True, original=True)

    def close(self) -> None:
        for tree in self._trees:
            if tree.top >= 0:
                os.close(tree.top)
                tree.top = -1

    def find(self, path: str) -> Node:
        """What `path`, which is without links, will be. Raises Unmergeable, and OSError when nothing is there."""
        node = self.top
        for part in filter(None, path.split("/")):
            if not node.directory:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            found = self.child(node, part)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = found
        return node

    def child(self, parent: Node, name: str) -> Node | None:
        """What `name` will be in the directory `parent`; None: nothing. Raises Unmergeable."""
        path = f"{parent.path}/{name}" if parent.path else name
        if path not in self._nodes:
            self._looked_at += 1
            if self._looked_at > NAME_LIMIT:
                raise Unmergeable(path, "there are too many files")
            if path.count("/") > DEPTH_LIMIT:
                raise Unmergeable(path, f"it lies in more than {DEPTH_LIMIT} directories")
            try:
                self._nodes[path] = self._merge(parent, path)
            except OSError as error:
                raise Unmergeable(path, error.strerror or str(error)) from error
        return self._nodes[path]

    def entries(self, node: Node) -> Iterator[Entry]:
        """The names that the directory `node` will have, in no order. Raises Unmergeable, OSError."""
        for tree in self._sources(node):
            for name in tree.names(node.path):
                if tree is self._new and node.local and self._local.look(_join(node.path, name)) is not None:
                    continue  # had already
                child = self.child(node, name)
                if child is not None:
                    yield Entry(name, child.link, child.directory)

    def open(self, node: Node, flags: int) -> int:
        """A descriptor for `node`, of a directory that is merged from two in one of them. Raises OSError."""
        (tree, *_) = self._sources(node)
        return openat2(tree.top, node.path, flags)

    # -- the rules --------------------------------------------------------------------------------------------------

    def _merge(self, parent: Node, path: str) -> Node | None:
        new = self._new.look(path) if parent.new else None
        if not parent.local:
            return _taken(path, new, new=True)
        local = self._local.look(path)
        if not parent.merged:
            return _copied(path, local)
        original = self._original.look(path) if parent.original else None
        if local is None:
            # Removed, or unknown to the old system.
            return _taken(path, new, new=True) if original is None else None
        same_type = original is not None and _type(original) == _type(local)
        if original is not None and same_type:
            if stat.S_ISDIR(local.st_mode):
                return self._merge_directory(path, original, local, new)
            if not self._differ(path, original, local):
                return _taken(path, new, new=True)
        return self._put_over(path, original, local, new)

    def _merge_directory(
        self, path: str, original: os.stat_result, local: os.stat_result, new: os.stat_result | None
    ) -> Node | None:
        """A directory that the old system had, and has."""
        if new is not None and stat.S_ISDIR(new.st_mode):
            return Node(path, stat.S_IFDIR, local=True, new=True, original=True)
        if _attributes(original) != _attributes(local):
            # It counts as changed itself. The new system has none, so all of it is copied, changed or not.
            return _copied(path, local)
        node = Node(path, stat.S_IFDIR, local=True, original=True)
        if new is None:
            # It comes into being with the first thing that is copied into it.
            return node if next(self.entries(node), None) is not None else None
        if not self._is_changed(path):
            return _taken(path, new, new=True)
        # ostree fails, or writes to wherever a link leads: which of them is nothing to rely on.
        raise Unmergeable(path, "it is a directory, and none in the new system")

    def _put_over(
        self, path: str, original: os.stat_result | None, local: os.stat_result, new: os.stat_result | None
    ) -> Node | None:
        """What was added or changed is copied over what the new system has."""
        if new is None or not stat.S_ISDIR(new.st_mode):
            return _copied(path, local)
        if not stat.S_ISDIR(local.st_mode):
            raise Unmergeable(path, "it is a directory in the new system")
        if original is None:
            # Added with all that is in it, each file by itself.
            return Node(path, stat.S_IFDIR, local=True, new=True)
        # It counts as one change, and where a directory is already ostree copies none.
        return _taken(path, new, new=True)

    def _differ(self, path: str, original: os.stat_result, local: os.stat_result) -> bool:
        """As ostree's own comparison, which leaves extended attributes and times out."""
        if _attributes(original) != _attributes(local):
            return True
        if stat.S_ISLNK(local.st_mode):
            texts = (os.readlink(path, dir_fd=tree.top) for tree in (self._original, self._local))
            return next(texts) != next(texts)
        if not stat.S_ISREG(local.st_mode):
            return False
        if original.st_size != local.st_size:
            return True
        # What is too large to be used is too large to be compared: nobody can want it to be the local one.
        return local.st_size > FILE_LIMIT or not self._same_content(path)

    def _same_content(self, path: str) -> bool:
        files: list[int] = []
        try:
            for tree in (self._original, self._local):
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
                files.append(openat2(tree.top, path, flags))
            if not all(stat.S_ISREG(os.fstat(file).st_mode) for file in files):
                raise Unmergeable(path, "it is being replaced just now")
            size = 0
            while size <= FILE_LIMIT:
                one, other = (os.pread(file, _BLOCK, size) for file in files)
                if one != other:
                    return False
                if not one:
                    return True
                size += len(one)
                self._compared += len(one)
                if self._compared > COMPARED_LIMIT:
                    raise Unmergeable(path, f"there are more than {COMPARED_LIMIT >> 20} MiB to be compared")
            return False
        finally:
            for file in files:
                os.close(file)

    def _is_changed(self, path: str) -> bool:
        """Whether anything below the directory `path` was added, changed or removed in the old system."""
        waiting = [path]
        while waiting:
            here = waiting.pop()
            names = {name for tree in (self._original, self._local) for name in tree.names(here)}
            for name in names:
                self._looked_at += 1
                inside = _join(here, name)
                original, local = self._original.look(inside), self._local.look(inside)
                if self._looked_at > NAME_LIMIT or original is None or local is None:
                    return True
                if _type(original) != _type(local) or self._differ(inside, original, local):
                    return True
                if stat.S_ISDIR(local.st_mode):
                    waiting.append(inside)
        return False

    # -- the trees --------------------------------------------------------------------------------------------------

    def _sources(self, node: Node) -> list[_Tree]:
        wanted = ((node.local, self._local), (node.new, self._new))
        return [tree for is_source, tree in wanted if is_source and tree.top >= 0]

    def _tree(self, path: Path) -> _Tree:
        self._trees.append(_Tree(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)))
        return self._trees[-1]

    def _new_tree(self, root: Path) -> _Tree:
        """ostree makes the new `etc` while it stages, as a copy of `usr/etc`. An empty one it makes anew."""
        for place in ("etc", "usr/etc"):
            try:
                tree = self._tree(root / place)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if next(tree.names(""), None) is not None or place == "usr/etc":
                return tree
        return _Tree(-1)


def _followed(etc: Path) -> Path:
    """Where the running root was copied (lashd.things.bootc.roots), its `etc` is a link to the real one."""
    return etc.readlink() if etc.is_symlink() and etc.readlink().is_absolute() else etc


def _taken(path: str, found: os.stat_result | None, *, new: bool) -> Node | None:
    return None if found is None else Node(path, stat.S_IFMT(found.st_mode), new=new, local=not new)


def _copied(path: str, local: os.stat_result | None) -> Node | None:
    """A copy of what the old system has; ostree copies files, links and directories, and leaves out all else."""
    if local is None or _type(local) == "special":
        return None
    return _taken(path, local, new=False)


def _type(found: os.stat_result) -> str:
    """The types that ostree tells apart."""
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(found.st_mode), "special")


def _attributes(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mode, found.st_uid, found.st_gid


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
