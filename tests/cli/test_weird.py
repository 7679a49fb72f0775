# SPDX-License-Identifier: Apache-2.0
"""Whatever a service under our name answers, lashctl ends with a sentence or shows something, never a traceback."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from lashd.bus.contract import JOB, MANAGER, ROOT
from lashd.bus.library import Message, Variant
from tests.cli.conftest import FakeLashd, Lashctl, no_traceback

SIGNATURES = ("s", "b", "t", "d", "ao", "as", "a{sv}", "aa{sv}", "o", "(ss)", "a(ss)", "a(sstt)", "ay", "v", "i")
ROW_KEYS = (
    *("key", "roles", "deployment", "unit", "state", "bytes", "use-problems", "id", "object", "kind", "uid", "created"),
    *("Id", "Kind", "State", "Stage", "Items", "Details", "Result", "ErrorName", "Fraction", "Created", "Initiator"),
)
TEXTS = ("", "x", "done", "failed", "success", "\x1b[31m", "ä\u202e", '{"schema": 1}', '{"deployments": [{"key": []}]}')


class Odd:
    """Answers of every type, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, signature: str) -> Any:
        pick = self.random
        simple = {
            "s": lambda: pick.choice(TEXTS),
            "b": lambda: pick.random() < 0.5,
            "t": lambda: pick.choice((0, 1, 2**64 - 1)),
            "i": lambda: pick.choice((-(2**31), 0, 7)),
            "d": lambda: pick.choice((0.5, float("nan"), float("inf"), -1.0)),
            "o": lambda: pick.choice(("/", f"{ROOT}/job/1", "/a/b", f"{ROOT}/job/x")),
            "v": lambda: self.variant(),
            "ay": lambda: b"\xff\x00",
            "a{sv}": lambda: {key: self.variant() for key in pick.sample(ROW_KEYS, 6)},
            "(ss)": lambda: [pick.choice(TEXTS), pick.choice(TEXTS)],
            "(sstt)": lambda: [pick.choice(TEXTS), pick.choice(TEXTS), 3, 2**63],
        }
        if signature in simple:
            return simple[signature]()
        return [self.value(signature[1:]) for _ in range(pick.randrange(3))]

    def variant(self) -> Any:
        signature = self.random.choice(SIGNATURES[:-2])
        return Variant(signature, self.value(signature))

    def reply(self, message: Message) -> tuple[str, list[Any]]:
        """Mostly of the right type, so that it gets past the door; sometimes of any."""
        right = {"GetAll": "a{sv}", "Describe": "s", "Cancel": "", "Wait": "sss"}.get(message.member, "o")
        right = "aa{sv}" if message.member.startswith("List") else right
        signature = right if self.random.random() < 0.8 else self.random.choice(("", *SIGNATURES))
        if signature == "o" and message.member in ("Upgrade", "Bind", "Plan", "Rollback"):
            return "o", [f"{ROOT}/job/1"]
        body = [self.value(part) for part in (("s",) * 3 if signature == "sss" else (signature,) if signature else ())]
        if message.member == "GetAll" and signature == "a{sv}":
            # Else it would be followed for ever.
            body[0]["State"] = Variant("s", "done")
        return signature, body


COMMANDS = (
    *(("status",), ("list",), ("list", "--deployment", "all"), ("jobs",), ("jobs", "1"), ("jobs", "--follow", "1")),
    *(("jobs", "--cancel", "1"), ("upgrade",), ("plan",), ("bind", "--no-wait"), ("rollback",)),
)


@pytest.mark.parametrize("seed", range(4))
async def test_odd_answers(seed: int, lashd: FakeLashd, lashctl: Lashctl) -> None:
    odd = Odd(seed)

    def handle(message: Message) -> None:
        signature, body = odd.reply(message)
        lashd.connection.emit(
            f"{ROOT}/job/1", "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as",
            [odd.random.choice((JOB, MANAGER, "x")), odd.value("a{sv}"), []],
        )  # fmt: skip
        lashd.connection.reply(message, signature, body)

    lashd.connection.serve(handle)

    async def run(number: int, arguments: tuple[str, ...]) -> None:
        json = ("--json",) if (number + seed) % 3 == 0 else ()
        ran = await (lashctl.on_terminal if (number + seed) % 4 == 0 else lashctl)(*arguments, *json)
        assert ran.status in (0, 2, 16, 69, 76, 77) or 4 <= ran.status <= 28, (arguments, ran)
        no_traceback(ran)

    for start in range(0, len(COMMANDS), 4):
        batch = COMMANDS[start : start + 4]
        await asyncio.gather(*(run(start + number, arguments) for number, arguments in enumerate(batch)))
