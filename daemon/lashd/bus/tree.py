# SPDX-License-Identifier: Apache-2.0
"""The objects on the bus: which paths there are, what they offer, and the news about them.

All news of objects (InterfacesAdded, InterfacesRemoved) comes from the root, where clients listen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lashd.bus.contract import Interface
from lashd.bus.library import Connection, Message, Variant
from lashd.bus.rows import to_dbus

log = logging.getLogger(__name__)

PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
# What is told after everything else of the same object, so that whoever sees it finds the rest in place.
LAST = frozenset({"State"})
# Looking for what is new because somebody asks takes milliseconds. Whoever makes up paths, or asks for everything again
# and again, gets so many seconds of it, and from then on one in so many parts of the time; others would have to wait.
LOOK_CREDIT = 0.25
LOOK_SHARE = 10


@dataclass(frozen=True, slots=True)
class Call:
    """A method call. `uid` is the caller's user, known to asynchronous handlers only (else -1)."""

    message: Message
    uid: int = -1

    @property
    def sender(self) -> str:
        return self.message.sender

    @property
    def path(self) -> str:
        return self.message.path

    @property
    def interactive(self) -> bool:
        """The caller allows a prompt."""
        return self.message.interactive

    @property
    def body(self) -> list[Any]:
        return list(self.message.body)


# Returns the values of the reply. Synchronous ones only read; asynchronous ones run as tasks.
Handler = Callable[[Call], list[Any] | Awaitable[list[Any]]]


@dataclass(slots=True)
class Export:
    """One interface of one object: its handlers by member, and its properties as plain values by name."""

    interface: Interface
    methods: Mapping[str, Handler]
    read: Callable[[], Mapping[str, Any]]
    told: dict[str, Any] = field(default_factory=dict)  # what the world was told last

    def values(self) -> dict[str, Any]:
        """All properties, each as D-Bus wants it. Raises what `read` raises."""
        row = self.read()
        return {name: to_dbus(item.signature, row.get(name)) for name, item in self.interface.properties.items()}

    def variants(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: Variant(self.interface.properties[name].signature, value) for name, value in values.items()}


class Tree:
    """The exported objects below `root`."""

    def __init__(self, connection: Connection, root: str) -> None:
        self.root = root
        self._connection = connection
        self._objects: dict[str, dict[str, Export]] = {}
        # Called before the tree answers what objects there are: whoever fills it may have something to add.
        self.look: Callable[[], None] = lambda: None
        self._credit = LOOK_CREDIT  # seconds of looking that are left
        self._credited = time.monotonic()

    def __contains__(self, path: str) -> bool:
        return path in self._objects

    def look_again(self) -> None:
        """`look`, unless that was done too often of late."""
        began = time.monotonic()
        self._credit = min(LOOK_CREDIT, self._credit + (began - self._credited) / LOOK_SHARE)
        self._credited = began
        if self._credit > 0:
            self.look()
            self._credit -= time.monotonic() - began

    def paths(self) -> list[str]:
        return list(self._objects)

    def exports(self, path: str) -> dict[str, Export]:
        """The interfaces of the object at `path` by name; empty when there is no such object."""
        return self._objects.get(path, {})

    def children(self, path: str) -> list[str]:
        """Names of the nodes right below `path`, whether they are objects or only lead to some."""
        below = path.rstrip("/") + "/"
        return sorted({other[len(below) :].split("/")[0] for other in self._objects if other.startswith(below)})

    def add(self, path: str, *exports: Export) -> None:
        """Export an object, and say so unless it is the root itself."""
        for export in exports:
            try:
                export.told = export.values()
            except Exception:
                # Whoever asks is told that it cannot be read. What cannot be shown is no reason to keep lashd from
                # coming up, which would leave the host without anybody who looks after it.
                log.exception("The object %s cannot be read", path)
                export.told = {
                    name: to_dbus(item.signature, None) for name, item in export.interface.properties.items()
                }
        self._objects[path] = {export.interface.name: export for export in exports}
        if path != self.root:
            added = {export.interface.name: export.variants(export.told) for export in exports}
            self._connection.emit(self.root, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, added])

    def remove(self, path: str) -> None:
        """Take an object away, and say so."""
        gone = self._objects.pop(path)
        self._connection.emit(self.root, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, list(gone)])

    def managed(self) -> dict[str, Any]:
        """What GetManagedObjects answers: every object but the root, with its interfaces and properties."""
        found = {}
        for path, exports in self._objects.items():
            if path == self.root:
                continue
            try:
                found[path] = {name: export.variants(export.values()) for name, export in exports.items()}
            except Exception:
                # One object that cannot be read must not hide all the others.
                log.exception("The object %s cannot be read", path)
        return found

    def refresh(self, path: str, names: Iterable[str] | None = None) -> None:
        """Tell what has changed of an object (or only of its properties `names`): only that, and `State` last."""
        for export in self.exports(path).values():
            values = export.values()
            changed = {
                name
                for name, value in values.items()
                if export.interface.properties[name].changes in ("true", "invalidates")
                and (names is None or name in names)
                and value != export.told[name]
            }
            for part in (changed - LAST, changed & LAST):
                if part:
                    self._tell(path, export, {name: values[name] for name in values if name in part})

    def _tell(self, path: str, export: Export, values: Mapping[str, Any]) -> None:
        export.told.update(values)
        sent = {name: value for name, value in values.items() if export.interface.properties[name].changes == "true"}
        body = [export.interface.name, export.variants(sent), [name for name in values if name not in sent]]
        self._connection.emit(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def signal(self, path: str, interface: str, member: str, values: Iterable[Any]) -> None:
        """Emit one of our own signals; its types come from the contract."""
        signature = self._objects[path][interface].interface.signals[member]
        # The arguments of our signals are of basic types, so each letter is an argument.
        body = [to_dbus(letter, value) for letter, value in zip(signature, values, strict=True)]
        self._connection.emit(path, interface, member, signature, body)
