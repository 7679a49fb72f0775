# SPDX-License-Identifier: Apache-2.0
"""Other people's programs call every method there is: busctl, gdbus and Cockpit's bridge, and read what it has."""

from __future__ import annotations

import asyncio
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lashd.bus.contract import BOUND_IMAGE, DEPLOYMENT, INTERFACES, JOB, MANAGER, NAME, ROOT, contract
from lashd.bus.standard import INTERFACES as STANDARD
from lashd.bus.standard import PROPERTIES
from tests.bus.conftest import REPOSITORY, run
from tests.bus.fake import AGENT, BOOTED
from tests.support.cockpit import BridgeError, bridge

IMAGE = "quay.io/edge/os:next"
# What a method takes, by signature; for each its words for busctl, its text for gdbus, its JSON for Cockpit.
ARGUMENTS: dict[str, tuple[list[str], list[str], list[Any]]] = {
    "": ([], [], []),
    "a{sv}": (["0"], ["@a{sv} {}"], [{}]),
    "sa{sv}": ([IMAGE, "0"], [IMAGE, "@a{sv} {}"], [IMAGE, {}]),
    "s": ([MANAGER], [MANAGER], [MANAGER]),
    "ss": ([MANAGER, "State"], [MANAGER, "State"], [MANAGER, "State"]),
    "ssv": ([MANAGER, "State", "s", "x"], [MANAGER, "State", "<'x'>"], [MANAGER, "State", {"t": "s", "v": "x"}]),
}
READ_ONLY = "org.freedesktop.DBus.Error.PropertyReadOnly"

# Path, interface, member and signature to what came of it: nothing, or the text with the error.
Tool = Callable[[SimpleNamespace, list[tuple[str, str, str, str]]], Awaitable[list[str]]]


async def busctl(door: SimpleNamespace, calls: list[tuple[str, str, str, str]]) -> list[str]:
    async def call(path: str, interface: str, member: str, signature: str) -> str:
        argv = ["busctl", "--address", door.address, "call", NAME, path, interface, member]
        # It has no words for the error's name.
        done = await run(*argv, *([signature, *ARGUMENTS[signature][0]] if signature else []))
        return done.stderr.replace("all properties here are read-only", READ_ONLY) if done.status else ""

    return [await call(*one) for one in calls]


async def gdbus(door: SimpleNamespace, calls: list[tuple[str, str, str, str]]) -> list[str]:
    async def call(path: str, interface: str, member: str, signature: str) -> str:
        argv = ["gdbus", "call", "--system", "--dest", NAME, "--object-path", path, "--method", f"{interface}.{member}"]
        done = await run(*argv, *ARGUMENTS[signature][1], address=door.address)
        return done.stderr if done.status else ""

    return [await call(*one) for one in calls]


async def cockpit(door: SimpleNamespace, calls: list[tuple[str, str, str, str]]) -> list[str]:
    found = []
    async with bridge(door.address, NAME) as page:
        for path, interface, member, signature in calls:
            try:
                answer = await page.call(path, interface, member, signature, ARGUMENTS[signature][2])
            except BridgeError as error:
                found.append(str(error))
            else:
                found.append("")
                if member == "ListBound":
                    assert answer[0][0]["reference"] == {"t": "s", "v": AGENT}
                if (interface, member) == (PROPERTIES, "Get"):
                    assert answer == [{"t": "s", "v": "idle"}]
    return found


@pytest.mark.parametrize(
    "tool",
    [
        busctl,
        pytest.param(gdbus, marks=pytest.mark.skipif(not shutil.which("gdbus"), reason="no gdbus here")),
        pytest.param(
            cockpit,
            marks=pytest.mark.skipif(
                not shutil.which("cockpit-bridge"), reason="no cockpit-bridge here; packaging/setup brings it"
            ),
        ),
    ],
)
async def test_every_method_can_be_called(door: SimpleNamespace, tool: Tool) -> None:
    door.service.go_on.set()
    job = await door.call("Plan", "a{sv}", {})
    assert (await door.call("Wait", "a{sv}", {}, path=job, interface="Job"))[0] == "success"
    paths = {MANAGER: ROOT, JOB: job}
    calls = [
        (paths[name], name, member, method.takes)
        for name, interface in contract().items()
        for member, method in interface.methods.items()
    ]
    assert {name for _, name, *_ in calls} == {MANAGER, JOB}
    calls += [
        (ROOT, name, member, method.takes)
        for name, interface in STANDARD.items()
        for member, method in interface.methods.items()
    ]
    results = await asyncio.wait_for(tool(door, calls), 60)
    for (_, interface, member, _), result in zip(calls, results, strict=True):
        if (interface, member) == (PROPERTIES, "Set"):
            assert READ_ONLY in result
        else:
            assert result == "", (interface, member)
    # Everything that starts something has.
    started = {kind for kind, _, _ in door.service.started}
    assert started >= {"upgrade", "switch", "rollback", "bind", "check", "plan", "verify", "collect", "discard"}
    assert started >= {"reboot", "hold", "release"}


def normal(element: ElementTree.Element) -> Any:
    """An element without blanks, comments and order of its kind: name, attributes, and what is in it."""
    inside = [normal(child) for child in element]
    return element.tag, sorted(element.attrib.items()), sorted(inside) if element.tag != "method" else inside


async def test_what_is_served_is_what_is_documented(door: SimpleNamespace) -> None:
    """Each interface as a whole, with arguments, directions and annotations, and as other libraries understand it."""
    import dbus_fast.introspection
    import dbus_next.introspection

    job = await door.call("Upgrade", "a{sv}", {})
    places = {
        MANAGER: ROOT,
        DEPLOYMENT: f"{ROOT}/deployment/{BOOTED.replace('.', '_2e')}",
        BOUND_IMAGE: door.modules.paths.image_path(AGENT),
        JOB: job,
    }
    assert set(places) == set(INTERFACES)
    for name, path in places.items():
        served = await door.call("Introspect", path=path, interface="org.freedesktop.DBus.Introspectable")
        file = (REPOSITORY / f"dbus/{name}.xml").read_text()
        (is_,) = [found for found in ElementTree.fromstring(served).iter("interface") if found.get("name") == name]
        (should,) = ElementTree.fromstring(file).iter("interface")
        assert normal(is_) == normal(should)
        # None of ours beyond it, and each standard one once.
        names = [found.get("name") for found in ElementTree.fromstring(served).iter("interface")]
        assert len(names) == len(set(names))
        assert [one for one in names if one.startswith(NAME)] == [name]
        for library in (dbus_next.introspection, dbus_fast.introspection):
            (understood,) = [one for one in library.Node.parse(served).interfaces if one.name == name]
            item = contract()[name]
            assert {one.name: (one.in_signature, one.out_signature) for one in understood.methods} == {
                member: (method.takes, method.returns) for member, method in item.methods.items()
            }
            assert {one.name: one.signature for one in understood.properties} == {
                member: of.signature for member, of in item.properties.items()
            }
            assert {one.name: one.signature for one in understood.signals} == item.signals
