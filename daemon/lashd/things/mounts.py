# SPDX-License-Identifier: Apache-2.0
"""Which layers of a containers-storage are mounted, in whatever mount namespace.

Everything that is in use by a process lies in the mount namespace of some process; containers have their own.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lashd.words import files
from lashd.words.errors import ErrorName, LashdError

# The process has ended, or is just ending.
_GONE = (errno.ENOENT, errno.ESRCH, errno.EINVAL)

_OCTAL = re.compile(rb"\\([0-7]{3})")
_LOWER = re.compile(r"(?:[^:\\]|\\.)+")
_SHORT = re.compile(r"(?:^|/)l/([A-Z0-9]{26})(?:/|$)|^([A-Z0-9]{26})(?:/|$)")
_LAYER = re.compile(r"(?:^|(?P<overlay>.*)/)(?P<id>[0-9a-f]{64})(?:/|$)")
_BOUND = re.compile(r"/overlay/([0-9a-f]{64})/diff(?:/|$)")
# A descriptor or a directory of whoever mounted it.
_PRIVATE = re.compile(r"(?:/proc/(?:self|[0-9]+)/fd/|/dev/fd/)?[0-9]+|(?:\.\.?|diff)(?:/.*)?")
_LOWER_LIMIT = 64 * 1024  # bytes
_T = TypeVar("_T")
_KEYS = ("lowerdir", "lowerdir+", "datadir+", "upperdir")


class _Untold(Exception):
    """The directory is named in a way that only who mounted it understands."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo(5): what of its filesystem is mounted, where, and its own options as (key, value)."""

    root: str
    point: str
    kind: str
    source: str
    options: tuple[tuple[str, str], ...]


def mounted_layers(overlay: Path, proc: Path = Path("/proc")) -> dict[str, str]:
    """Layers (ids) of the store whose directory `overlay` is that some mount needs → whose mount it is.

    Raises StoreDamaged when that cannot be told.
    """
    if not overlay.is_dir():
        return {}
    try:
        store = _Overlay(overlay)
        found: dict[str, str] = {}
        for process, text in mount_tables(proc):
            for mount in parse_mounts(text):
                for layer in _needed(mount, store) & store.layers:
                    found.setdefault(layer, f"a mount of process {process}")
    except OSError as error:
        raise LashdError(
            ErrorName.STORE_DAMAGED,
            f"{error.filename} cannot be read ({error.strerror}), so it is unknown which images are mounted, and "
            "nothing was removed.",
        ) from error
    return found


def mount_tables(proc: Path) -> Iterator[tuple[str, bytes]]:
    """Every mount namespace that a process is in, once: (process id, its mountinfo). Raises OSError."""
    seen: set[Path] = set()
    processes = sorted(filter(str.isdigit, _names(proc)), key=int)
    if "1" not in processes:
        # Processes are hidden from us (hidepid=): those with more rights than we have, and who knows what they use?
        raise PermissionError(errno.EACCES, "it does not show all processes", os.fspath(proc))
    for process in processes:
        # A thread may be in a namespace of its own, and may live longer than the first one.
        for thread in _unless_gone(_names, proc / process / "task") or ():
            own = proc / process / "task" / thread
            namespace = _namespace(own)
            if namespace in seen:
                continue
            table = _unless_gone(Path.read_bytes, own / "mountinfo")
            if table is None:
                continue
            # Unless it went to another namespace between the two.
            if namespace is not None and namespace == _namespace(own):
                seen.add(namespace)
            yield process, table


def parse_mounts(table: bytes) -> Iterator[Mount]:
    """The mounts in the text of a mountinfo. Raises OSError for a line that is none."""
    for line in table.splitlines():
        fields = line.split(b" ")
        try:
            after = fields.index(b"-", 6)
            kind, source, options = fields[after + 1 : after + 4]
        except ValueError as error:
            raise OSError(errno.EBADMSG, "a line is not understood", "mountinfo") from error
        pairs = (option.partition(b"=") for option in options.split(b","))
        yield Mount(
            root=_text(fields[3]),
            point=_text(fields[4]),
            kind=_text(kind),
            source=_text(source),
            options=tuple((_text(key), _text(value)) for key, _, value in pairs),
        )


def _needed(mount: Mount, store: _Overlay) -> set[str]:
    if mount.kind != "overlay":
        bound = _BOUND.search(mount.root)
        return {bound[1]} if bound else set()
    try:
        return {layer for path in _directories(mount) for layer in store.layers_at(path)}
    except _Untold:
        pass
    upper = next((value for key, value in mount.options if key == "upperdir"), "")
    try:
        # What the store in which the container lives has written down for just this.
        lower = files.read_regular(Path(upper).parent / "lower", _LOWER_LIMIT)[0] if upper else b""
        lowers = lower.decode("ascii").strip()
        return (
            {layer for path in lowers.split(":") if path for layer in store.layers_at(path)} if lowers else _all(mount)
        )
    except (OSError, ValueError, _Untold):
        return _all(mount)


def _all(mount: Mount) -> set[str]:
    if mount.source.startswith(("composefs", "transient:composefs")):
        return set()  # the root of the system itself
    raise LashdError(
        ErrorName.STORE_DAMAGED,
        f"What the mount at {mount.point} stands on cannot be told, so nothing was removed; try again when it is gone.",
    )


def _directories(mount: Mount) -> Iterator[str]:
    for key, value in mount.options:
        if key == "lowerdir":
            for path in _LOWER.findall(value):
                yield re.sub(r"\\(.)", r"\1", path)
        elif key in _KEYS:
            yield value


class _Overlay:
    """The directory `overlay` of a store, and the short names of its layers."""

    def __init__(self, path: Path) -> None:
        found = path.stat()
        self._identity = found.st_dev, found.st_ino
        self.layers = frozenset(_names(path))  # and some other names
        self._ids: dict[str, str] = {}
        for short in _names(path / "l"):
            target = _unless_gone(Path.readlink, path / "l" / short)
            if target is not None:
                self._ids[short] = str(target).removeprefix("../").partition("/")[0]

    def layers_at(self, path: str) -> set[str]:
        """The layer of this store whose directory is named, or lies above; none if it is another directory."""
        if _PRIVATE.fullmatch(path):
            raise _Untold
        short = _SHORT.search(path)
        if short:
            # They are random: no two stores have the same.
            layer = self._ids.get(short[1] or short[2])
            return {layer} if layer else set()
        # Layers' ids come from their content, so another store may well have this one, too.
        named = _LAYER.match(path)
        return {named["id"]} if named and self._may_be(named["overlay"] or "") else set()

    def _may_be(self, path: str) -> bool:
        try:
            found = os.stat(path)  # noqa: PTH116
        except OSError:
            return True  # named as it is seen from elsewhere
        return (found.st_dev, found.st_ino) == self._identity


def _namespace(thread: Path) -> Path | None:
    """The mount namespace of a thread; None when nothing says so: it has ended, or may not be seen."""
    try:
        return _unless_gone(Path.readlink, thread / "ns/mnt")
    except PermissionError:
        return None  # with more capabilities than we have; what is mounted can be seen all the same


def _unless_gone(read: Callable[[Path], _T], path: Path) -> _T | None:
    try:
        return read(path)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _names(path: Path) -> list[str]:
    return os.listdir(path)  # noqa: PTH208


def _text(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
