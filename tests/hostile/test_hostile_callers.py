# SPDX-License-Identifier: Apache-2.0
"""A short `make hostile`: what is counted, on both buses; times are for the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bus.conftest import NO_BROKER
from tests.hostile.attack import Attack
from tests.hostile.kinds import KINDS, Here
from tests.hostile.scene import scene
from tests.support import wire

CALLS = len(KINDS) * 16
IMAGES = 2


@pytest.mark.parametrize(
    ("broker", "library"), [("dbus-daemon", "dbus_next"), pytest.param("dbus-broker", "dbus_fast", marks=NO_BROKER)]
)
async def test_bad_calls_and_clients_that_hang(tmp_path: Path, broker: str, library: str) -> None:
    async with scene(tmp_path, broker, library, IMAGES) as target:
        await target.attack(CALLS // 2, seed=1)
        await target.list_bound()
        memory, descriptors = target.resident(), target.descriptors()
        hung = target.hang(90)
        async with target.good_caller():
            tally = await target.attack(CALLS, seed=2)
        assert tally.wrong == []
        assert not tally.unanswered
        assert tally.sent == CALLS
        # All but those to which nothing is owed: no-reply, an answer nobody asked for, and whoever leaves.
        assert tally.errors > CALLS * 0.7
        assert target.descriptors() <= descriptors * 1.05
        assert target.resident() <= memory * 1.05
        assert len(target.latencies) > 10
        assert "Traceback" not in target.log
        for client in hung:
            client.close()
        # No slot is held by anyone who has left: a newcomer gets all that are one's own.
        waiting = wire.Client(target.address)
        state = wire.encode(
            wire.CALL,
            [
                *((wire.PATH, target.job), (wire.INTERFACE, "org.freedesktop.DBus.Properties"), (wire.MEMBER, "Get")),
                *((wire.DESTINATION, "io.github.lashd1"), (wire.SIGNATURE, "ss")),
            ],
            wire.marshalled("ss", ["io.github.lashd1.Job", "State"]),
            serial=waiting.next_serial(),
        )
        waiting.send(state)
        # root's job was cancelled by nobody.
        assert b"running" in waiting.answer_to(waiting.serial).body
        waiting.close()


def test_what_must_not_be_in_an_answer_is_seen() -> None:
    attack = Attack("unix:path=/nowhere", Here("/", True), 1, [b"/opt/ours"])
    error = "io.github.lashd1.Error.InvalidArgument"

    def wrong(text: bytes, name: str = error, kind: int = wire.ERROR, sender: str = ":1.1") -> int:
        attack.tally.wrong.clear()
        attack._look_at("kind", wire.Answer(sender, kind, 1, name, b"\0\0\0\0" + text + b"\0"))
        return len(attack.tally.wrong)

    assert wrong(b"Said so.") == 0
    assert wrong(b"Traceback (most recent call last)") == 1
    assert wrong(b'File "/x/service.py", line 1') == 2
    assert wrong(b"in /opt/ours/state") == 1
    assert wrong(b"in /opt/ours/state", "org.freedesktop.DBus.Error.AccessDenied", sender="org.freedesktop.DBus") == 0
    assert wrong(b"Said so.", "io.github.lashd1.Error.Surprise") == 1
    assert wrong(b"It failed.", "io.github.lashd1.Error.Internal") == 1
    assert wrong(b"") == 1
    assert wrong(b"", kind=wire.RETURN) == 1
