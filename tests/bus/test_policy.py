# SPDX-License-Identifier: Apache-2.0
"""What the bus lets through to lashd, by lashd's own bus policy: calls to what it serves, and nothing else."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from lashd.bus.standard import INTERFACES
from tests.bus.conftest import REPOSITORY

NAME = "io.github.lashd1"
ROOT = "/io/github/lashd1"


def test_it_names_every_interface_and_no_other(bus_modules) -> None:
    policy = ElementTree.parse(REPOSITORY / f"dbus/{NAME}.conf").getroot()
    default, root = (policy.find(f"policy[@{key}]") for key in ("context", "user"))
    assert [rule.attrib for rule in root] == [{"own": NAME}]
    assert [(rule.tag, rule.attrib) for rule in default][:2] == [
        ("deny", {"own": NAME}),
        ("deny", {"send_destination": NAME}),
    ]
    allowed = default.findall("allow")
    assert {rule.attrib.pop("send_interface") for rule in allowed} == {*bus_modules.contract.contract(), *INTERFACES}
    assert [rule.attrib for rule in allowed] == [{"send_destination": NAME, "send_type": "method_call"}] * len(allowed)
    assert len(list(policy)) == 2


@pytest.mark.parametrize("by_name", [True, False], ids=["name", "unique-name"])
async def test_what_does_not_get_through(door, by_name) -> None:
    """From root, so that nobody is allowed more; to the name as to the connection that owns it."""
    library = door.modules.library
    raw = __import__(library.LIBRARY)
    kind = raw.MessageType
    heard: list[Any] = []
    stranger = await library.connect(door.address)
    to = NAME if by_name else door.connection.name

    def hear(message: Any) -> None:
        if message.sender == stranger.name:
            heard.append(message.member or message.reply_serial)

    def hear_call(message: Any) -> None:
        hear(message)
        door.dispatcher.handle(message)

    door.connection.serve(hear_call)
    door.connection.listen(hear)
    door.connection._bus.add_message_handler(hear)

    def send(**fields: Any) -> None:
        stranger._bus.send(raw.Message(destination=to, **fields)).add_done_callback(lambda sent: sent.exception())

    called = {"path": ROOT, "signature": "", "body": []}
    for interface in ("io.github.lashd1", "io.github.lashd1.Other", "org.freedesktop.DBus.Debug.Stats", "a.b"):
        with pytest.raises(library.BusError) as refused:
            await stranger.call(to, ROOT, interface, "Describe")
        assert refused.value.name.endswith(".AccessDenied"), refused.value.message
    send(message_type=kind.METHOD_CALL, member="Describe", **called)
    send(message_type=kind.SIGNAL, member="Changed", interface=f"{NAME}.Manager", **called)
    send(message_type=kind.SIGNAL, member="NameOwnerChanged", interface="org.freedesktop.DBus", **called)
    send(message_type=kind.METHOD_RETURN, reply_serial=4711)
    send(message_type=kind.ERROR, reply_serial=4712, error_name="a.b.C", signature="s", body=["?"])
    stranger.emit(ROOT, f"{NAME}.Manager", "ToEverybody", "", [])
    # In order: whatever was let through has come when this has been answered.
    assert await stranger.call(to, ROOT, f"{NAME}.Manager", "Describe")
    await asyncio.sleep(0)
    assert heard == ["Describe"]
    await stranger.disconnect()
