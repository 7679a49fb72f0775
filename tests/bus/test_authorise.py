# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

import pytest

from lashd.bus.authorise import REMEMBERED, Authority, parse_unit, unit_of
from lashd.bus.library import Message
from lashd.bus.tree import Call
from lashd.running.jobs import Initiator


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/lashd-upgrade.service\n", "lashd-upgrade.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service/sub\n", "a.service"),
        ("12:cpu:/x.service\n1:name=systemd:/system.slice/cockpit.service\n", "cockpit.service"),
        ("0::/init.scope\n", "init.scope"),
        ("0::/\n", ""),
        ("", ""),
        ("nonsense\n", ""),
    ],
)
def test_parse_unit(cgroup: str, unit: str) -> None:
    assert parse_unit(cgroup) == unit


def test_unit_of_a_process_that_has_gone() -> None:
    assert unit_of(2**22 + 1) == ""
    assert isinstance(unit_of(os.getpid()), str)


class Bus:
    def __init__(self, **credentials: int) -> None:
        self.credentials = credentials
        self.asked: list[str] = []

    async def call_bus(self, member: str, signature: str, body: list[str]) -> list[object]:
        self.asked.append(member)
        return [self.credentials if member == "GetConnectionCredentials" else 7]


def call(sender: str = ":1.2") -> Call:
    return Call(Message(True, sender, "/", "a.b", "C", "", []))


async def test_root_may() -> None:
    authority = Authority(Bus(UnixUserID=0, ProcessID=2**22 + 1))  # type: ignore[arg-type]
    assert await authority.authorise(call(), "upgrade", options={"initiator": "me"}) == Initiator(0, "", "me")


async def test_a_caller_is_asked_for_once_and_forgotten() -> None:
    bus = Bus(UnixUserID=5)
    authority = Authority(bus)  # type: ignore[arg-type]
    assert [await authority.uid(":1.2") for _ in range(3)] == [5, 5, 5]
    assert len(bus.asked) == 1
    authority.forget(":1.2")
    await authority.uid(":1.2")
    assert len(bus.asked) == 2
    for number in range(REMEMBERED * 2):
        await authority.uid(f":2.{number}")
    assert len(authority._callers) == REMEMBERED


async def test_a_bus_that_knows_little() -> None:
    bus = Bus()
    assert await Authority(bus).uid(":1.2") == 7  # type: ignore[arg-type]
    assert bus.asked == ["GetConnectionCredentials", "GetConnectionUnixUser"]
