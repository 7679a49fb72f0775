# SPDX-License-Identifier: Apache-2.0
"""Quadlet's view of a root: which unit files podman's generator would load, with their drop-ins, and the image of each.

A unit is known by its file name. Of several files of one name the first in the order of directories counts; drop-ins
come from all directories. Nothing is run: this only reads what the generator would read at the next boot.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lashd.things.rootfs import Entry, Root, Unreadable
from lashd.things.unitfile import NotAUnitFile, UnitFile, parse

# In the generator's order. /run/containers/systemd comes before them on a running host; a deployment has none.
ADMIN_DIRECTORY = "etc/containers/systemd"
DISTRIBUTION_DIRECTORY = "usr/share/containers/systemd"

# The section of each kind of unit that names an image.
SECTIONS = {".container": "Container", ".image": "Image"}

# All kinds that the generator reads: a damaged one of any kind counts.
_KINDS = frozenset([".build", ".container", ".image", ".kube", ".network", ".pod", ".volume"])

# Far above what a host image has, and low enough to be read in seconds when someone made it to waste time.
_ENTRY_LIMIT = 10_000  # names looked at in Quadlet's directories
_SIZE_LIMIT = 4 * 1024 * 1024  # characters of unit files and drop-ins, counted for each unit that uses them

_TOO_MUCH = f"the unit files of this root have more than {_SIZE_LIMIT} characters together"

# What is worked on most (Root.spend): lines that are parsed, drop-ins that are looked for and merged, and what is
# split into words, which is done several times.
_LINE_COST = 3
_DROP_IN_COST = 12
_ARGUMENT_COST = 6
_ARGUMENTS = ("PodmanArgs", "GlobalArgs", "Label")

_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]+", re.ASCII)


class Unusable(Exception):
    """A unit from which no image can be learnt; the message is the rest of a sentence after `cannot be bound: `."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit file with its drop-ins. `path` is where its own file is in the root, without leading `/`."""

    name: str
    path: str
    file: UnitFile

    @property
    def section(self) -> str:
        return SECTIONS[extension(self.name)]

    def value(self, key: str) -> str:
        """The value of `key` in the unit's own section, or empty."""
        return self.file.last(self.section, key) or ""

    def words(self, key: str) -> list[str]:
        return self.file.words(self.section, key)

    @property
    def service(self) -> str:
        """Name of the service that Quadlet makes of it, without `.service`."""
        named = self.file.last(self.section, "ServiceName")
        if named is not None:
            return named
        stem = self.name.rpartition(".")[0] or self.name
        return f"{stem}-image" if self.section == "Image" else stem


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that makes the generator leave out all units of its directory: its name, and what is wrong with it."""

    name: str
    why: str  # begins with the file's path, as in `'/etc/containers/systemd/x.kube' is a directory`


@dataclass(slots=True)
class _Directory:
    damage: Damage | None = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    path: str
    file: UnitFile
    directory: _Directory


class Quadlets:
    """The unit files of one root, all read at once: what is wrong with one can keep others from being loaded."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._units: dict[str, Unit | str] = {}  # by name; what makes it unusable
        self._loaded: dict[str, _Loaded] = {}
        self._refused: dict[str, str] = {}  # name of a unit to what is wrong with its file
        self._masked: set[str] = set()
        self._names_by_place: dict[str, str] = {}
        self._files: dict[str, UnitFile | Unreadable | NotAUnitFile] = {}
        # Name of a directory of drop-ins to all so called: when the directory around it was read, and its path.
        self._drop_ins: dict[str, list[tuple[int, str]]] = {}
        self._directories = 0
        self._listed: dict[str, list[str]] = {}
        self._entries = 0
        self._size = 0
        self.problem = ""  # a whole sentence when the directories were not read to their end
        seen: set[str] = set()
        self._scan(ADMIN_DIRECTORY, seen, self._users_directory())
        self._scan(DISTRIBUTION_DIRECTORY, seen, None)

    def __contains__(self, name: str) -> bool:
        """Whether the generator has something to say of the unit `name`; of a masked one it has not."""
        return name in self._loaded or name in self._refused

    def unit(self, name: str) -> Unit:
        """The unit that the generator reads under `name`: always the same object. Raises Unusable, also for none.

        The unit may still be left out because of `damage`: its image is known all the same.
        """
        known = self._units.get(name)
        if known is None:
            try:
                known = self._unit(name)
            except Unusable as error:
                known = str(error)
            self._units[name] = known
        if isinstance(known, str):
            raise Unusable(known)
        return known

    def _unit(self, name: str) -> Unit:
        if not is_unit_name(name):
            raise Unusable(f"systemd accepts no unit of the name {name!r}")
        loaded = self._loaded.get(name)
        if loaded is None:
            nowhere = f"no unit '{name}' is in Quadlet's directories (/{DISTRIBUTION_DIRECTORY})"
            raise Unusable(self._refused.get(name) or nowhere)
        return self._made(Unit(name, loaded.path, self._with_drop_ins(name, loaded.file)))

    def damage(self, unit: Unit) -> Damage | None:
        """What keeps the generator from loading `unit` although nothing is wrong with it."""
        loaded = self._loaded.get(unit.name)
        return loaded.directory.damage if loaded is not None and loaded.path == unit.path else None

    def loose(self, name: str, path: str) -> Unit:
        """The file `path` as a unit called `name` although Quadlet does not load it: no drop-ins. Raises Unusable."""
        try:
            return self._made(Unit(name, path, self._file(path)))
        except (Unreadable, NotAUnitFile) as error:
            raise Unusable(f"'/{path}' {error}") from error

    def name_of(self, place: str) -> str | None:
        """Name of the unit whose file is really at `place` (Root.real_path), or None."""
        if not self._names_by_place:
            for name, loaded in self._loaded.items():
                with contextlib.suppress(Unreadable):
                    self._names_by_place.setdefault(self._root.real_path(loaded.path), name)
        return self._names_by_place.get(place)

    def _users_directory(self) -> str:
        """Units of other users than root are below it; the generator for the system leaves out whatever begins so."""
        try:
            return self._root.real_path(f"{ADMIN_DIRECTORY}/users")
        except Unreadable:
            try:
                return f"{self._root.real_path(ADMIN_DIRECTORY)}/users"
            except Unreadable:
                return f"{ADMIN_DIRECTORY}/users"

    def _scan(self, path: str, seen: set[str], left_out: str | None) -> None:
        """Takes in the directory `path` and those below it, each once, links to directories included."""
        waiting = [path]
        while waiting:
            try:
                place = self._root.real_path(waiting.pop())
                if place in seen or place.endswith(".d") or (left_out is not None and place.startswith(left_out)):
                    continue
                if not self._root.is_directory(place):
                    continue
                seen.add(place)
                # The generator goes down into a directory before it comes to the next one beside it.
                waiting.extend(reversed(self._take_in(place)))
            except Unreadable:
                continue

    def _take_in(self, place: str) -> list[str]:
        directory = _Directory()
        self._directories += 1
        below: list[str] = []
        entries = []
        for entry in self._root.list(place):
            self._entries += 1
            if self._entries > _ENTRY_LIMIT:
                self.problem = f"Quadlet's directories have more than {_ENTRY_LIMIT} entries; the rest was not read."
                break
            entries.append(entry)
        for entry in sorted(entries, key=lambda entry: _as_bytes(entry.name)):
            inside = f"{place}/{entry.name}"
            if entry.name.endswith(".d"):
                self._drop_ins.setdefault(entry.name, []).append((self._directories, inside))
            elif extension(entry.name) in _KINDS:
                self._load(directory, entry, inside)
            if entry.directory or entry.link:
                below.append(inside)
        return below

    def _load(self, directory: _Directory, entry: Entry, path: str) -> None:
        name = entry.name
        if name in self._loaded or name in self._masked:
            return
        if entry.link and posixpath.normpath(self._root.link_target(path)) == "/dev/null":
            self._masked.add(name)
            return
        try:
            self._loaded[name] = _Loaded(path, self._read(path), directory)
        except (Unreadable, NotAUnitFile) as error:
            # The generator complains, loads nothing of this directory, and goes on to a namesake in another one.
            directory.damage = directory.damage or Damage(name, f"'/{path}' {error}")
            self._refused.setdefault(name, f"'/{path}' {error}")

    def _with_drop_ins(self, name: str, file: UnitFile) -> UnitFile:
        chosen: dict[str, str] = {}
        for place in self._places(name):
            entries = self._list(place)
            self._root.spend(_DROP_IN_COST * (1 + len(entries)))
            for entry in entries:
                chosen.setdefault(entry, f"{place}/{entry}")
        drop_ins: list[UnitFile] = []
        for entry in sorted(chosen, key=_as_bytes):
            try:
                drop_in_file = self._file(chosen[entry])
            except NotAUnitFile:
                continue  # the generator complains, and renders the unit without it
            except Unreadable as error:
                if not error.absent:
                    raise Unusable(f"its drop-in '/{chosen[entry]}' {error.why}") from error
                continue
            if not self._may_take(drop_in_file.size):
                raise Unusable(_TOO_MUCH)
            self._root.spend(drop_in_file.size // 16)
            drop_ins.append(drop_in_file)
        return file.with_drop_ins(drop_ins)

    def _places(self, name: str) -> list[str]:
        """Directories with drop-ins for the unit `name`: those beside one another together, the most specific first."""
        found = [
            (directory, number, place)
            for number, drop_in in enumerate(drop_in_directories(name))
            for directory, place in self._drop_ins.get(drop_in, ())
        ]
        return [place for _, _, place in sorted(found)]

    def _made(self, unit: Unit) -> Unit:
        """`unit`, when it can be worked on."""
        assignments = unit.file.sections.get(unit.section, {})
        self._root.spend(_ARGUMENT_COST * sum(len(text) for key in _ARGUMENTS for text in assignments.get(key, ())))
        return unit

    def _list(self, place: str) -> list[str]:
        if place not in self._listed:
            try:
                names = [entry.name for entry in self._root.list(place) if extension(entry.name) == ".conf"]
            except Unreadable:
                names = []
            self._entries += len(names)
            if self._entries > _ENTRY_LIMIT:
                raise Unusable(f"Quadlet's directories have more than {_ENTRY_LIMIT} entries")
            self._listed[place] = names
        return self._listed[place]

    def _file(self, path: str) -> UnitFile:
        """Each is read once, however many units share it. Raises Unreadable, NotAUnitFile."""
        known = self._files.get(path)
        if known is None:
            try:
                known = self._read(path)
            except (Unreadable, NotAUnitFile) as error:
                known = error
            self._files[path] = known
        if isinstance(known, Exception):
            raise known.with_traceback(None)
        return known

    def _read(self, path: str) -> UnitFile:
        """Raises Unreadable, NotAUnitFile."""
        text = self._root.read_text(path)
        if not self._may_take(len(text)):
            raise Unreadable(f"was not read: {_TOO_MUCH}")
        self._root.spend(_LINE_COST * text.count("\n") + len(text) // 8)
        return parse(text)

    def _may_take(self, size: int) -> bool:
        self._size += size
        return self._size <= _SIZE_LIMIT


def extension(name: str) -> str:
    """`.container` of `a.b.container`; empty without a dot. The name `.container` is all extension, as Go has it."""
    dot = name.rfind(".")
    return name[dot:] if dot >= 0 else ""


def is_unit_name(name: str) -> bool:
    """Whether systemd would load a unit with this name; it has no way to write blanks or quotes in one."""
    return _UNIT_NAME.fullmatch(name) is not None


def drop_in_directories(name: str) -> Iterator[str]:
    """Names of the directories with drop-ins for the unit `name`, the most specific first.

    For `a-b@c.container`: a-b@c.container.d, a-b@.container.d, a-@.container.d, a-.container.d, container.d.
    """
    kind = extension(name)
    stem, at, instance = name.removesuffix(kind).partition("@")
    yield f"{name}.d"
    if instance:
        yield f"{stem}@{kind}.d"
    parts = stem.split("-")
    for end in range(len(parts) - 1, 0, -1):
        shortened = "-".join(parts[:end]) + "-"
        if at:
            yield f"{shortened}@{kind}.d"
        yield f"{shortened}{kind}.d"
    yield f"{kind.removeprefix('.')}.d"


def image_unit_of(unit: Unit, quadlets: Quadlets) -> Unit | None:
    """The `.image` unit that pulls the image of the container `unit`, or None when it names its image itself.

    Raises Unusable for a container without an image, or with one that cannot be bound.
    """
    image = unit.value("Image")
    if unit.section == "Image":
        if not image:
            raise Unusable("its section [Image] names no image (Image=)")
        return None
    if not image:
        if unit.value("Rootfs"):
            raise Unusable("it runs from a directory (Rootfs=), so there is no image to bind")
        raise Unusable("its section [Container] names no image (Image=)")
    if unit.value("Rootfs"):
        raise Unusable("it names both an image (Image=) and a directory (Rootfs=), which podman refuses")
    if image.endswith(".build"):
        raise Unusable(
            f"its image is built on the host by {image[:200]!r}, and only an image from a registry can be bound; "
            "build it beforehand, push it and name it"
        )
    if not image.endswith(".image"):
        return None
    if image not in quadlets:
        raise Unusable(
            f"its image is that of the unit {image[:200]!r}, which is not in Quadlet's directories "
            f"(/{DISTRIBUTION_DIRECTORY})"
        )
    pulled_by = quadlets.unit(image)
    image_unit_of(pulled_by, quadlets)
    return pulled_by


def _as_bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
