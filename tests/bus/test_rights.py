# SPDX-License-Identifier: Apache-2.0
"""Every method that there is, called by everybody who could: the tables of docs/authorisation.md, measured.

`pytest -s` prints them.
"""

from __future__ import annotations

import asyncio
import contextlib
import pwd
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lashd.bus.standard import INTERFACES
from lashd.running.jobs import Initiator, Job, Outcome
from tests.bus.conftest import REPOSITORY, bus_with_polkit, session
from tests.support.agent import agent
from tests.support.caller import Caller
from tests.support.polkitd import ADMIN, INACTIVE, OTHER, Polkitd

ROOT = "/io/github/lashd1"
OURS = "io.github.lashd1"
STANDARD = "org.freedesktop.DBus"
MANUAL = REPOSITORY / "docs/authorisation.md"

CALLERS = {"root": 0, "active": ADMIN, "inactive": INACTIVE, "any": OTHER}
NO_POLKIT = "without polkit"

# What the contract says: for somebody who sits there, whose session is not the active one, and anyone else.
_PASSWORD = ("auth_admin", "auth_admin")
ACTIONS = (
    dict.fromkeys(("check", "plan"), (*_PASSWORD, "yes"))
    | dict.fromkeys(
        ("upgrade", "bind", "rollback", "reboot", "discard", "collect", "verify", "cancel-other"),
        (*_PASSWORD, "auth_admin_keep"),
    )
    | dict.fromkeys(("switch", "hold", "release"), (*_PASSWORD, "auth_admin"))
)
# The methods that need an action; all others are for everybody.
NEEDS = {
    f"Manager.{method}": action for action in set(ACTIONS) - {"cancel-other"} for method in (action.capitalize(),)
} | {"Job.Cancel": "cancel-other"}
# Options and situations that a method's signature does not tell.
MORE = {
    'Manager.Upgrade with "reboot"': ("upgrade", {"reboot": ["variant", "s", "when-ready"]}),
    'Manager.Switch with "reboot"': ("switch", {"reboot": ["variant", "s", "window"]}),
    'Manager.Rollback with "drop-staged"': ("rollback", {"drop-staged": ["variant", "b", True]}),
}
OWN = "Job.Cancel of one's own job"
SET = "Properties.Set"


@pytest.fixture
def polkit() -> Iterator[Polkitd]:
    with bus_with_polkit() as running:
        yield running


@pytest.fixture
def address(polkit: Polkitd) -> str:
    return polkit.address


def methods(door: SimpleNamespace) -> dict[str, tuple[str, str, Any]]:
    """(interface, signature, body) of a good call of every method of every interface, by the name in the table."""
    given = {
        "sa{sv}": ["quay.io/edge/os:next", {}],
        "a{sv}": [{}],
        "": [],
        "ss": [f"{OURS}.Manager", "State"],
        "s": [f"{OURS}.Manager"],
        "ssv": [f"{OURS}.Manager", "State", ["variant", "s", "idle"]],
    }
    found = {}
    for name, interface in (door.modules.contract.contract() | INTERFACES).items():
        for member, method in interface.methods.items():
            found[f"{name.rpartition('.')[2]}.{member}"] = (name, method.takes, given[method.takes])
    for label, (_action, options) in MORE.items():
        interface, signature, body = found[label.split()[0]]
        found[label] = (interface, signature, [*body[:-1], options])
    found[OWN] = found["Job.Cancel"]
    return found


async def outcome(
    door: SimpleNamespace, caller: Caller, uid: int, label: str, how: tuple[str, str, Any], *, interactive: bool = False
) -> str:
    """How a call of a method goes: allowed, challenge (allowed with a password) or refused."""

    async def nothing(job: Job) -> Outcome:
        return Outcome(False)

    interface, signature, body = how
    path = ROOT
    if interface == f"{OURS}.Job":
        job, _joined = door.service.jobs.start("bind", nothing, Initiator(uid if label == OWN else 77), {}, slot=False)
        path = f"{ROOT}/job/{job.id}"
    door.service.started.clear()
    member = label.split()[0].rpartition(".")[2]
    error = await caller.call(member, signature, *body, path=path, interface=interface, interactive=interactive)
    for job in door.service.jobs.list():
        await job.ended()
    if error:
        assert door.service.started == [], "who is not allowed to has not begun anything"
    return {
        "": "allowed",
        "PropertyReadOnly": "refused",
        "NotAuthorized": "refused",
        "InteractiveAuthorizationRequired": "challenge",
    }[error]


def expected(label: str, who: str) -> str:
    """What the contract says of a call without a password."""
    if label == SET:
        return "refused"
    action = NEEDS.get(label) or (MORE[label][0] if label in MORE else "")
    if not action or who == "root":
        return "allowed"
    if who == NO_POLKIT:
        return "refused"
    column = {"any": 0, "inactive": 1, "active": 2}[who]
    return "allowed" if ACTIONS[action][column] == "yes" else "challenge"


def table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


async def test_every_method_for_everybody(door, polkit) -> None:
    door.service.go_on.set()
    door.service.outcome = Outcome(False)
    called = methods(door)
    assert NEEDS.keys() <= called.keys()
    measured: dict[str, dict[str, str]] = {label: {} for label in called}
    async with contextlib.AsyncExitStack() as stack:
        callers = {who: await stack.enter_async_context(session(polkit, uid)) for who, uid in CALLERS.items()}
        for who, caller in callers.items():
            for label, how in called.items():
                measured[label][who] = await outcome(door, caller, CALLERS[who], label, how)
        polkit.kill()
        for label, how in called.items():
            measured[label][NO_POLKIT] = await outcome(door, callers["active"], ADMIN, label, how)
            # Root needs none.
            assert await outcome(door, callers["root"], 0, label, how) == measured[label]["root"]
    columns = [*CALLERS, NO_POLKIT]
    shown = table([["method", *columns], *([label, *(row[who] for who in columns)] for label, row in measured.items())])
    print(f"\n{shown}\n")
    assert measured == {label: {who: expected(label, who) for who in columns} for label in called}
    assert shown in MANUAL.read_text(), "docs/authorisation.md has another table"


async def test_the_sessions_are_what_they_are_called(door, polkit) -> None:
    """polkitd itself tells the columns apart: by an action of the test's own, which has something else in each."""
    asked = door.modules.polkit.Polkit(door.connection)
    found = {}
    for who, uid in CALLERS.items():
        async with session(polkit, uid) as caller:
            found[who] = (await asked.check(caller.name, "columns", {}, interactive=False)).value
    assert found == {"root": "allowed", "active": "allowed", "inactive": "challenge", "any": "refused"}


async def test_for_how_long_a_password_counts(door, polkit) -> None:
    """Whoever typed it may do the same again without it where the contract says `keep`, and nothing else anywhere."""
    door.service.go_on.set()
    called = {action: (label, methods(door)[label]) for label, action in NEEDS.items()}
    kept = {}
    async with (
        session(polkit, ADMIN) as caller,
        agent(door.modules.library, polkit.address) as screen,
    ):
        await screen.look_after(caller.pid)
        for action in sorted(set(ACTIONS) - {"check", "plan"}):
            label, how = called[action]
            assert await outcome(door, caller, ADMIN, label, how) == "challenge"
            typing = asyncio.create_task(outcome(door, caller, ADMIN, label, how, interactive=True))
            await screen.give(await screen.prompt())
            assert await typing == "allowed"
            kept[action] = await outcome(door, caller, ADMIN, label, how) == "allowed"
    assert kept == {action: ACTIONS[action][2] == "auth_admin_keep" for action in kept}


async def test_the_rules_of_the_manual(door, polkit) -> None:
    """The example that docs/authorisation.md gives, with a group that there is here, does what the text says."""
    (rules,) = re.findall(r"```js\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    assert "operators" in rules
    polkit.add_rule("50-lashd", rules.replace("operators", pwd.getpwuid(INACTIVE).pw_name))
    called = methods(door)
    door.service.go_on.set()
    async with session(polkit, INACTIVE) as operator, session(polkit, ADMIN) as admin:
        async with asyncio.timeout(5):
            while True:
                how = await outcome(door, operator, INACTIVE, "Manager.Upgrade", called["Manager.Upgrade"])
                if how == "allowed":
                    break
                await asyncio.sleep(0.05)
        for label, operators, others in (
            ("Manager.Check", "allowed", "allowed"),
            ("Manager.Bind", "allowed", "challenge"),
            ('Manager.Upgrade with "reboot"', "challenge", "challenge"),
            ("Manager.Switch", "refused", "refused"),
        ):
            assert await outcome(door, operator, INACTIVE, label, called[label]) == operators
            assert await outcome(door, admin, ADMIN, label, called[label]) == others


def test_the_defaults_of_the_actions() -> None:
    policy = ElementTree.parse(REPOSITORY / f"dbus/{OURS}.policy").getroot()
    found = {}
    for action in policy.iter("action"):
        defaults = {element.tag: element.text for element in action.find("defaults")}
        found[action.attrib["id"].removeprefix(f"{OURS}.")] = tuple(
            defaults[f"allow_{column}"] for column in ("any", "inactive", "active")
        )
        for text in (action.find("description"), action.find("message")):
            assert text.attrib == {"gettext-domain": "lashd"}
        assert "$(initiator)" in action.find("message").text
        assert not action.findall("annotate"), "no action implies another"
    assert found == ACTIONS
    shown = table(
        [["action", "any", "inactive", "active"], *([f"`{name}`", *defaults] for name, defaults in found.items())]
    )
    print(f"\n{shown}\n")
    assert shown in MANUAL.read_text(), "docs/authorisation.md has another table"
