# SPDX-License-Identifier: Apache-2.0
"""The interfaces that D-Bus itself defines: Peer, Introspectable, Properties, ObjectManager."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lashd.bus.contract import Interface, introspection, parse
from lashd.bus.message import Settled
from lashd.bus.refusal import Refusal
from lashd.bus.tree import OBJECT_MANAGER, PROPERTIES, Call, Export, Tree

PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
MACHINE_ID = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))

_XML = """<node>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
</node>"""
INTERFACES: dict[str, Interface] = parse(_XML)

Answer = Callable[[Call], list[Any]]


class Standard:
    """Answers the standard interfaces for the objects of one tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._told = Settled()
        self._members: dict[str, dict[str, Answer]] = {
            PEER: {"Ping": lambda call: [], "GetMachineId": lambda call: [machine_id()]},
            INTROSPECTABLE: {"Introspect": self._introspect},
            PROPERTIES: {"Get": self._get, "GetAll": self._get_all, "Set": self._set},
            OBJECT_MANAGER: {"GetManagedObjects": self._managed},
        }

    def interfaces(self, path: str) -> list[str]:
        """The standard interfaces that `path` has: a node that only leads to objects has no properties."""
        if path not in self._tree:
            return [PEER, INTROSPECTABLE]
        return [PEER, INTROSPECTABLE, PROPERTIES] + ([OBJECT_MANAGER] if path == self._tree.root else [])

    def members(self, interface: str) -> dict[str, Answer]:
        return self._members[interface]

    def _introspect(self, call: Call) -> list[Any]:
        texts = [export.interface.xml for export in self._tree.exports(call.path).values()]
        texts += [INTERFACES[name].xml for name in self.interfaces(call.path)]
        return [introspection(texts, self._tree.children(call.path))]

    def _get(self, call: Call) -> list[Any]:
        interface, name = call.body
        export = self._property(call.path, interface, name)
        return [export.variants(export.values())[name]]

    def _get_all(self, call: Call) -> list[Any]:
        (interface,) = call.body
        found: dict[str, Any] = {}
        for export in self._exports(call.path, interface):
            found |= export.variants(export.values())
        return [found]

    def _set(self, call: Call) -> list[Any]:
        interface, name, _value = call.body
        self._property(call.path, interface, name)
        raise Refusal("PropertyReadOnly", f"The property {name} cannot be set; all properties here are read-only.")

    def _managed(self, call: Call) -> list[Any]:
        self._tree.look_again()
        found = [self._tree.managed()]
        # Putting it into bytes takes most of the time, and mostly it is what was answered last.
        if found != self._told:
            self._told = Settled(found)
        return self._told

    def _exports(self, path: str, interface: str) -> list[Export]:
        """The interfaces of ours that `interface` names; the empty name means all of them."""
        exports = self._tree.exports(path)
        if interface == "" or interface in self.interfaces(path):
            return [] if interface else list(exports.values())
        if interface not in exports:
            raise Refusal("UnknownInterface", f"The object {path} has no interface '{interface[:255]}'.")
        return [exports[interface]]

    def _property(self, path: str, interface: str, name: str) -> Export:
        for export in self._exports(path, interface):
            if name in export.interface.properties:
                return export
        raise Refusal("UnknownProperty", f"There is no property '{name[:255]}' in '{interface}' of {path}.")


def machine_id() -> str:
    """This machine's id. Raises Refusal when it has none."""
    for path in MACHINE_ID:
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
    raise Refusal("FileNotFound", "This machine has no id yet (/etc/machine-id is missing).")
