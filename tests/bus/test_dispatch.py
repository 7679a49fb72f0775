# SPDX-License-Identifier: Apache-2.0
"""The door as any caller meets it: what is there, what is refused and how, over both libraries and other clients."""

from __future__ import annotations

import asyncio
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

from lashd.words.errors import ERRORS, ErrorName, LashdError
from tests.bus.conftest import NOBODY, REPOSITORY, run
from tests.bus.fake import AGENT, BOOTED

NAME = "io.github.lashd1"
ROOT = "/io/github/lashd1"
STANDARD = "org.freedesktop.DBus"
BOOTED_PATH = f"{ROOT}/deployment/{BOOTED.replace('.', '_2e')}"


async def refused(door: SimpleNamespace, *arguments, **more) -> tuple[str, str]:
    with pytest.raises(door.BusError) as caught:
        await door.call(*arguments, **more)
    return caught.value.name, caught.value.message


@pytest.mark.parametrize(
    ("member", "signature", "body", "path", "interface", "error"),
    [
        ("Upgrade", "", [], f"{ROOT}/nowhere", "Manager", "UnknownObject"),
        ("Introspect", "", [], f"{ROOT}/job/77", f"{STANDARD}.Introspectable", "UnknownObject"),
        ("Get", "ss", ["a.b", "C"], "/io/github", f"{STANDARD}.Properties", "UnknownInterface"),
        ("Cancel", "", [], ROOT, "Job", "UnknownInterface"),
        ("Explode", "", [], ROOT, "Manager", "UnknownMethod"),
        ("Explode", "", [], ROOT, f"{STANDARD}.Properties", "UnknownMethod"),
        ("Upgrade", "s", ["now"], ROOT, "Manager", "InvalidArgs"),
        ("Upgrade", "", [], ROOT, "Manager", "InvalidArgs"),
        ("GetAll", "ss", ["a.b", "c"], ROOT, f"{STANDARD}.Properties", "InvalidArgs"),
        ("Get", "ss", [f"{NAME}.Manager", "Colour"], ROOT, f"{STANDARD}.Properties", "UnknownProperty"),
        ("Get", "ss", [f"{NAME}.Job", "Id"], ROOT, f"{STANDARD}.Properties", "UnknownInterface"),
        ("Get", "ss", [f"{STANDARD}.Peer", "Id"], ROOT, f"{STANDARD}.Properties", "UnknownProperty"),
        ("GetManagedObjects", "", [], BOOTED_PATH, f"{STANDARD}.ObjectManager", "UnknownInterface"),
    ],
)
async def test_standard_errors(door, member, signature, body, path, interface, error) -> None:
    name, message = await refused(door, member, signature, *body, path=path, interface=interface)
    assert name == f"{STANDARD}.Error.{error}"
    assert message.endswith(".")


@pytest.mark.parametrize(("name", "error"), [("State", "PropertyReadOnly"), ("Colour", "UnknownProperty")])
async def test_nothing_can_be_set(door, name, error) -> None:
    arguments = [f"{NAME}.Manager", name, door.Variant("s", "idle")]
    assert (await refused(door, "Set", "ssv", *arguments, interface=f"{STANDARD}.Properties"))[0].endswith(error)


async def test_a_call_without_interface_finds_the_member(door) -> None:
    # The system bus refuses such calls by policy, so the dispatcher is asked directly.
    Message = door.modules.library.Message
    replies = []
    door.connection.reply = lambda call, signature, body: replies.append((signature, list(body)))
    door.dispatcher.handle(Message(True, ":1.1", ROOT, "", "Describe", "", []))
    assert replies == [("s", ['{"schema": 1}'])]


async def test_introspection_equals_the_files(door) -> None:
    def members(text: str) -> dict[str, str]:
        return {
            f"{interface.attrib['name']}.{member.attrib['name']}": ElementTree.tostring(member).decode().strip()
            for interface in ElementTree.fromstring(text).iter("interface")
            if interface.attrib["name"].startswith(NAME)
            for member in interface
        }

    await door.call("Upgrade", "a{sv}", {})
    image = door.modules.paths.image_path(AGENT)
    for path, interface in [
        (ROOT, "Manager"),
        (BOOTED_PATH, "Deployment"),
        (image, "BoundImage"),
        (f"{ROOT}/job/1", "Job"),
    ]:
        served = await door.call("Introspect", path=path, interface=f"{STANDARD}.Introspectable")
        file = (REPOSITORY / f"dbus/{NAME}.{interface}.xml").read_text()
        assert members(served) == members(file)
        assert f"{NAME}.{interface}:" not in served.split("<interface")[0]
        standard = {element.attrib["name"] for element in ElementTree.fromstring(served).iter("interface")}
        assert (f"{STANDARD}.ObjectManager" in standard) == (path == ROOT)
        assert f"{STANDARD}.Properties" in standard


async def test_the_way_to_the_objects_can_be_walked(door) -> None:
    async def nodes(path: str) -> list[str]:
        text = await door.call("Introspect", path=path, interface=f"{STANDARD}.Introspectable")
        return [node.attrib["name"] for node in ElementTree.fromstring(text).findall("node")]

    assert await nodes("/") == ["io"]
    assert await nodes("/io/github") == ["lashd1"]
    assert await nodes(ROOT) == ["deployment", "image"]
    assert await nodes(f"{ROOT}/deployment") == [BOOTED.replace(".", "_2e")]


async def test_peer_answers_every_time(door) -> None:
    wanted = Path("/etc/machine-id") if Path("/etc/machine-id").exists() else Path("/var/lib/dbus/machine-id")
    for _ in range(3):
        assert await door.call("Ping", interface=f"{STANDARD}.Peer") == []
        if wanted.exists():
            assert await door.call("GetMachineId", interface=f"{STANDARD}.Peer") == wanted.read_text().strip()


async def test_every_property_can_be_read(door) -> None:
    await door.call("Plan", "a{sv}", {})
    objects = await door.call("GetManagedObjects", interface=f"{STANDARD}.ObjectManager")
    contract = door.modules.contract.contract()
    assert ROOT not in objects
    seen = {f"{NAME}.Manager"}
    for path, interfaces in objects.items():
        for interface, values in interfaces.items():
            seen.add(interface)
            assert values.keys() == contract[interface].properties.keys()
            everything = await door.call("GetAll", "s", interface, path=path, interface=f"{STANDARD}.Properties")
            assert everything == values
    assert seen == set(contract)
    manager = await door.call("GetAll", "s", "", interface=f"{STANDARD}.Properties")
    assert manager.keys() == contract[f"{NAME}.Manager"].properties.keys()
    assert manager["Booted"] == BOOTED_PATH
    assert manager["Staged"] == manager["Rollback"] == "/"
    assert manager["BlockedBy"] == [["image-missing", "One is missing."]]
    for name, value in manager.items():
        arguments = [f"{NAME}.Manager", name]
        assert await door.call("Get", "ss", *arguments, interface=f"{STANDARD}.Properties") == value


async def test_rows(door) -> None:
    (bound,) = await door.call("ListBound", "a{sv}", {"deployment": door.Variant("s", "all")})
    assert bound["object"] == door.modules.paths.image_path(AGENT)
    assert bound["bytes"] == 12345
    assert bound["use-problems"] == ["auto-update"]
    (deployment,) = await door.call("ListDeployments", "a{sv}", {})
    assert deployment["object"] == BOOTED_PATH
    assert await door.call("ListJobs", "a{sv}", {}) == []
    assert json.loads(await door.call("Describe")) == {"schema": 1}


async def test_no_reply_where_none_is_wanted(door) -> None:
    library = door.modules.library
    sent: list[object] = []
    door.connection._send = lambda **fields: sent.append(fields)
    for member in ("Describe", "Explode", "Sync"):
        message = library.Message(True, door.client.name, ROOT, f"{NAME}.Manager", member, "", [], wants_reply=False)
        door.dispatcher.handle(message)
    # `Sync` runs as a task, which asks the bus who is calling.
    await asyncio.gather(*door.dispatcher._tasks)
    assert sent == []


@pytest.mark.parametrize("name", list(ErrorName))
async def test_our_errors_by_name(door, name) -> None:
    door.service.broken = LashdError(name)
    assert await refused(door, "ListBound", "a{sv}", {}) == (f"{NAME}.Error.{name}", ERRORS[name].sentence)


async def test_a_mistake_of_ours_says_nothing_of_us(door, caplog) -> None:
    door.service.broken = RuntimeError("secret at /usr/lib/python3/lashd/x.py line 7")
    name, message = await refused(door, "ListBound", "a{sv}", {})
    assert (name, message) == (f"{NAME}.Error.Internal", ERRORS[ErrorName.INTERNAL].sentence)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert "secret" in caplog.text


async def test_a_sentence_that_the_bus_forbids_is_mended(door) -> None:
    door.service.broken = LashdError(ErrorName.PULL_FAILED, "zero\0 and \udcff" + "x" * 10000)
    _name, message = await refused(door, "ListBound", "a{sv}", {})
    assert message.startswith("zero� and ?x")
    assert len(message) < 5000
    assert await door.call("Describe")


async def test_nobody_may_read_but_not_change(door) -> None:
    call = ["busctl", "--address", door.address, "--timeout=10"]
    manager = [NAME, ROOT, f"{NAME}.Manager"]
    for member in (["Describe"], ["Sync"], ["ListBound", "a{sv}", "0"], ["ListDeployments", "a{sv}", "0"]):
        result = await run(*call, "call", *manager, *member, uid=NOBODY)
        assert result.status == 0, result.stderr
    for member in ("Upgrade", "Rollback", "Bind", "Plan"):
        result = await run(*call, "call", *manager, member, "a{sv}", "0", uid=NOBODY)
        assert result.status == 1
        assert f"User {NOBODY} may not do this ({member.lower()}" in result.stderr
    assert door.service.started == []
    # Nor is the name theirs.
    stolen = await run(*call, "call", STANDARD, "/", STANDARD, "RequestName", "su", NAME, "0", uid=NOBODY)
    assert "Access denied" in stolen.stderr


async def test_authorised_for_what_an_option_implies(door) -> None:
    result = await run(
        *("busctl", "--address", door.address, "call", NAME, ROOT, f"{NAME}.Manager"),
        *("Rollback", "a{sv}", "1", "drop-staged", "b", "true"),
        uid=NOBODY,
    )
    assert "(rollback, discard)" in result.stderr


@pytest.mark.skipif(not shutil.which("gdbus"), reason="no gdbus here")
async def test_gdbus_sees_the_error_name(door) -> None:
    call = ["gdbus", "call", "--system", "--dest", NAME, "--object-path", ROOT, "--method"]
    result = await run(*call, f"{NAME}.Manager.Upgrade", "{'colour': <'red'>}", address=door.address)
    assert f"{NAME}.Error.InvalidArgument" in result.stderr
    assert "'colour'" in result.stderr
    refused = await run(*call, f"{NAME}.Manager.Upgrade", "{}", address=door.address, uid=NOBODY)
    assert f"{NAME}.Error.NotAuthorized" in refused.stderr
    shown = await run("gdbus", "introspect", "--system", "--dest", NAME, "--object-path", ROOT, address=door.address)
    assert "JobDone(" in shown.stdout
    assert shown.status == 0


async def test_busctl_understands_it(door) -> None:
    shown = await run("busctl", "--address", door.address, "introspect", NAME, ROOT)
    assert shown.status == 0, shown.stderr
    rows = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert "const" in rows[".Version"]
    assert "emits-change" in rows[".State"]
    tree = await run("busctl", "--address", door.address, "tree", NAME)
    assert BOOTED_PATH in tree.stdout
