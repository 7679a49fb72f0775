# SPDX-License-Identifier: Apache-2.0
"""One layer's tar, read entry by entry into a tree of the image, with every file's content handed on as it comes.

Nothing is unpacked to disk by name, so no name in the tar can lead anywhere; what is refused is refused because such
an image would not mean here what it means elsewhere. Rules as in the OCI image specification; where that is silent, as
containers-storage unpacks. Standard library only. Everything wrong with the input is a ValueError with half a
sentence that continues "the layer cannot be imported: ".
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from lashd.things.ostree.blob import TarStream
from lashd.things.ostree.layertree import (
    Dropped,
    Folder,
    Leaf,
    LowerLink,
    Node,
    Objects,
    Owner,
    Whiteout,
    Xattrs,
    is_utf8,
)
from lashd.things.ostree.tree import OPAQUE, WHITEOUT

ENTRY_LIMIT = 4_000_000
DEPTH_LIMIT = 256
_PATH_LIMIT = 4096
_NAME_LIMIT = 255
_LINK_HOPS = 40
_XATTR_LIMIT = 64 * 1024
_CHUNK = 1024 * 1024
_XATTR_KEY = "SCHILY.xattr."
# Labels are this host's policy, not the image's; overlayfs' own marks would act on a host that boots from overlayfs.
_XATTRS_DROPPED = ("security.selinux", "trusted.overlay.")


def read_layer(stream: TarStream, objects: Objects) -> Folder:
    """The layer's tree, in the image's own layout. Writes every file of it into `objects`."""
    root = Folder()
    for count, (tar, member) in enumerate(_members(stream)):
        if count > ENTRY_LIMIT:
            raise ValueError(f"it has more than {ENTRY_LIMIT} entries")
        _add(root, member, stream, objects)
        stream.seek(tar.offset)
        stream.expect_header()
    return root


def _members(stream: TarStream) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    try:
        # The path of least memory: members are not collected in the TarFile, as iterating it would do.
        tar = tarfile.TarFile(fileobj=_as_file(stream), encoding="utf-8", errors="surrogateescape")
        member = tar.firstmember  # type: ignore[attr-defined]
        while member is not None:
            yield tar, member
            start = stream.tell()
            try:
                member = tarfile.TarInfo.fromtarfile(tar)
            except tarfile.HeaderError:
                # A block of zeros ends an archive; many end without one. Both look like a bad header to tarfile.
                if stream.tell() - start <= tarfile.BLOCKSIZE and not any(stream.last_block):
                    return
                raise
    except tarfile.TarError as error:
        # Some tools write an empty layer as no bytes at all.
        if stream.tell():
            raise ValueError(f"it is not a sound tar archive ({error})") from error
    except (IndexError, KeyError, OverflowError, RecursionError, TypeError) as error:
        raise ValueError(f"it is not a sound tar archive ({error!r})") from error


def _as_file(stream: TarStream) -> Any:
    return stream


def _add(root: Folder, member: tarfile.TarInfo, stream: TarStream, objects: Objects) -> None:
    path = _path(member.name)
    if not path:
        if member.isdir():
            root.owner = _owner(member)
        return
    if any(part.startswith(WHITEOUT * 2) and part != OPAQUE for part in path):
        return  # bookkeeping of aufs, never content
    parent = _parent(root, path[:-1])
    name = path[-1]
    if member.isdir() and not name.startswith(WHITEOUT):
        known = parent.children.get(name)
        if not isinstance(known, Folder):
            known = parent.children[name] = Folder()
        known.owner = _owner(member)
        return
    parent.children[name] = _leaf(root, member, name, stream, objects)


def _leaf(root: Folder, member: tarfile.TarInfo, name: str, stream: TarStream, objects: Objects) -> Node:
    if name.startswith(WHITEOUT):
        if name != OPAQUE and name[len(WHITEOUT) :] in ("", ".", ".."):
            raise ValueError(f"it has a whiteout of nothing, {_shown(member.name)}")
        return Whiteout()
    if member.islnk():
        return _hard_link(root, member)
    if member.issym():
        return _symbolic_link(member, objects)
    if member.isreg():
        return Leaf(objects.file(_owner(member), member.size, _content(member, stream)))
    kinds = {tarfile.CHRTYPE: "character device", tarfile.BLKTYPE: "block device", tarfile.FIFOTYPE: "FIFO"}
    return Dropped(kinds.get(member.type, "entry of an unknown kind"))


def _content(member: tarfile.TarInfo, stream: TarStream) -> Iterator[bytes]:
    """The file's bytes in pieces, the holes of a sparse file filled."""
    at = 0
    known: Any = member.sparse
    spans = known if known is not None else [(0, member.size)]
    # The old format pads its map with empty spans.
    for start, size in [*(span for span in spans if span[1]), (member.size, 0)]:
        if start < at or size < 0 or start + size > member.size:
            raise ValueError(f"the map of the sparse file {_shown(member.name)} is damaged")
        yield from _pieces(start - at, stream.hole)
        yield from _pieces(size, stream.content)
        at = start + size


def _pieces(size: int, get: Callable[[int], bytes]) -> Iterator[bytes]:
    while size > 0:
        data = get(min(size, _CHUNK))
        size -= len(data)
        yield data


def _hard_link(root: Folder, member: tarfile.TarInfo) -> Node:
    target = _path(member.linkname)
    found = _find(root, target)
    if isinstance(found, Leaf | LowerLink | Dropped):
        return found
    if found is None:
        return LowerLink(target)
    raise ValueError(f"{_shown(member.name)} is a hard link to {_shown(member.linkname)}, which is no file")


def _symbolic_link(member: tarfile.TarInfo, objects: Objects) -> Node:
    target = member.linkname
    if not target or "\0" in target or len(target) > _PATH_LIMIT:
        raise ValueError(f"the target of the link {_shown(member.name)} cannot be one")
    if not is_utf8(target):
        return Dropped("link to a name that is not UTF-8")
    return Leaf(objects.symlink(_owner(member), target), target)


def _path(name: str) -> tuple[str, ...]:
    if "\0" in name or len(name) > _PATH_LIMIT:
        raise ValueError(f"the name {_shown(name)} cannot be one")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ValueError(f"the name {_shown(name)} leads upwards")
    if len(parts) > DEPTH_LIMIT:
        raise ValueError(f"the name {_shown(name)} is nested deeper than {DEPTH_LIMIT} directories")
    if any(len(part.encode("utf-8", "surrogateescape")) > _NAME_LIMIT for part in parts):
        raise ValueError(f"the name {_shown(name)} has a part of more than {_NAME_LIMIT} bytes")
    return parts


def _parent(root: Folder, path: tuple[str, ...]) -> Folder:
    """The directory at `path`, made where it is missing; links of this layer in it are followed within the image."""
    todo = list(reversed(path))
    trail = [root]
    hops = 0
    while todo:
        part = todo.pop()
        if part == "..":
            trail = trail[:-1] or [root]
            continue
        node = trail[-1].children.get(part)
        if node is None:
            node = trail[-1].children[part] = Folder()
        if isinstance(node, Leaf) and node.link is not None:
            hops += 1
            if hops > _LINK_HOPS:
                raise ValueError(f"{_shown('/'.join(path))} leads through too many links")
            if node.link.startswith("/"):
                trail = [root]
            todo.extend(part for part in reversed(node.link.split("/")) if part not in ("", "."))
            continue
        if not isinstance(node, Folder):
            raise ValueError(f"{_shown('/'.join(path))} is a directory and something else at once")
        trail.append(node)
        if len(trail) > DEPTH_LIMIT + 1:
            raise ValueError(f"{_shown('/'.join(path))} is nested deeper than {DEPTH_LIMIT} directories")
    return trail[-1]


def _find(root: Folder, path: tuple[str, ...]) -> Node | None:
    node: Node | None = root
    for part in path:
        node = node.children.get(part) if isinstance(node, Folder) else None
    return node


def _owner(member: tarfile.TarInfo) -> Owner:
    for number in (member.uid, member.gid):
        if not 0 <= number < 2**32 - 1:
            raise ValueError(f"{_shown(member.name)} belongs to {number}, which is no user or group")
    return Owner(member.mode & 0o7777, member.uid, member.gid, _xattrs(member))


def _xattrs(member: tarfile.TarInfo) -> Xattrs:
    found = {}
    for key, value in member.pax_headers.items():
        name = key.removeprefix(_XATTR_KEY)
        if name == key or name.startswith(_XATTRS_DROPPED):
            continue
        raw, data = name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape")
        if not raw or b"\0" in raw or len(raw) > _NAME_LIMIT or len(data) > _XATTR_LIMIT:
            raise ValueError(f"{_shown(member.name)} has an attribute that no file can have")
        # libostree does not see an attribute without a value when it reads a file back: the object would look damaged.
        if data:
            found[raw] = data
    # libostree sorts the attributes it reads back from disk: any other order would not match its checksum.
    return tuple(sorted(found.items()))


def _shown(name: str) -> str:
    return repr(name[:200].encode("utf-8", "surrogateescape"))[1:]
