# SPDX-License-Identifier: Apache-2.0
"""The interfaces as the XML files in dbus/ define them: the reference that the code is held against."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NAME = "io.github.lashd1"
ROOT = "/io/github/lashd1"
MANAGER = f"{NAME}.Manager"
DEPLOYMENT = f"{NAME}.Deployment"
BOUND_IMAGE = f"{NAME}.BoundImage"
JOB = f"{NAME}.Job"
INTERFACES = (MANAGER, DEPLOYMENT, BOUND_IMAGE, JOB)

INSTALLED = Path("/usr/share/dbus-1/interfaces")
_CHANGES = "org.freedesktop.DBus.Property.EmitsChangedSignal"
# Our own files, read once at start: neither entities nor outside references are in them.
_INTERFACE = re.compile(r"<interface name=\"([^\"]+)\">.*?</interface>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Method:
    """Signatures of what goes in and what comes out."""

    takes: str
    returns: str


@dataclass(frozen=True, slots=True)
class Property:
    """`changes` is `const`, `true` (sent with the new value), `invalidates` or `false`."""

    signature: str
    changes: str


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    methods: dict[str, Method]
    properties: dict[str, Property]
    signals: dict[str, str]  # name → signature
    xml: str  # the element as it stands in the file, comments included


@cache
def contract() -> dict[str, Interface]:
    """Our interfaces by name. Raises OSError when the XML files are missing, which is a broken installation."""
    directory = find_directory()
    return {name: parse((directory / f"{name}.xml").read_text(encoding="utf-8"))[name] for name in INTERFACES}


def find_directory(package: Path = Path(__file__).parent) -> Path:
    """Where the XML files are: in the checkout that this file lies in, else where packages install them.

    The checkout comes first, so that new code never answers with the old contract of an installed package.
    """
    for directory in (package.parent.parent.parent / "dbus", package, INSTALLED):
        if (directory / f"{MANAGER}.xml").is_file():
            return directory
    raise FileNotFoundError(f"The interface files {NAME}.*.xml are not in {INSTALLED}; install lashd anew.")


def parse(text: str) -> dict[str, Interface]:
    """The interfaces in one introspection document. Raises ValueError."""
    elements = {match[1]: match[0] for match in _INTERFACE.finditer(text)}
    try:
        node = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML: {error}") from error
    return {
        name: _interface(element, elements[name])
        for element in node.iter("interface")
        if (name := element.attrib["name"])
    }


def _interface(element: ElementTree.Element, text: str) -> Interface:
    return Interface(
        name=element.attrib["name"],
        methods={
            method.attrib["name"]: Method(_arguments(method, "in"), _arguments(method, "out"))
            for method in element.iterfind("method")
        },
        properties={
            item.attrib["name"]: Property(item.attrib["type"], _changes(item)) for item in element.iterfind("property")
        },
        signals={
            signal.attrib["name"]: "".join(argument.attrib["type"] for argument in signal.iterfind("arg"))
            for signal in element.iterfind("signal")
        },
        xml=text,
    )


def _arguments(method: ElementTree.Element, direction: str) -> str:
    return "".join(
        argument.attrib["type"]
        for argument in method.iterfind("arg")
        if argument.attrib.get("direction", "in") == direction
    )


def _changes(item: ElementTree.Element) -> str:
    for annotation in item.iterfind("annotation"):
        if annotation.attrib["name"] == _CHANGES:
            return annotation.attrib["value"]
    return "true"


def introspection(interfaces: Iterable[str], children: Iterable[str]) -> str:
    """An introspection document out of the texts of `interfaces` and the names of child nodes."""
    return "\n".join(
        [
            '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"',
            ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">',
            "<node>",
            *(f"  {text}" for text in interfaces),
            *(f'  <node name="{child}"/>' for child in children),
            "</node>",
            "",
        ]
    )
