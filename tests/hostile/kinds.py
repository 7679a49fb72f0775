# SPDX-License-Identifier: Apache-2.0
"""Calls that nobody should make: unknown, wrong, huge, deep, broken, unwanted, or dropped on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dbus_fast import Variant

from lashd.bus.contract import JOB, MANAGER, NAME, ROOT
from lashd.bus.options import METHODS
from tests.support import wire

PROPERTIES = "org.freedesktop.DBus.Properties"
STARTS = ("Upgrade", "Rollback", "Bind", "Check", "Plan", "Verify", "Collect", "Discard", "Reboot")


@dataclass(frozen=True, slots=True)
class Bad:
    """One message. `reply`: an answer is owed. `ends`: whoever sends it leaves, or is thrown out by the bus."""

    data: bytes
    reply: bool = True
    ends: bool = False
    descriptors: int = 0


@dataclass(frozen=True, slots=True)
class Here:
    """What a caller knows: the path of a job of root's that does not end, and whether the caller is root."""

    job: str
    root: bool


Make = Callable[[random.Random, int, Here], Bad]


def call(
    serial: int,
    member: str,
    signature: str = "",
    *body: Any,
    path: str = ROOT,
    interface: str = MANAGER,
    flags: int = 0,
    raw: bytes | None = None,
    more: tuple[tuple[int, str, object], ...] = (),
    order: str = "<",
) -> bytes:
    """A call to the service; `raw` in place of the body."""
    fields: list[Any] = [(wire.PATH, path), (wire.MEMBER, member), (wire.DESTINATION, NAME), *more]
    fields += [(wire.INTERFACE, interface)] if interface else []
    fields += [(wire.SIGNATURE, signature)] if signature else []
    content = wire.marshalled(signature, body) if raw is None else raw
    return wire.encode(wire.CALL, fields, content, serial=serial, flags=flags, order=order)


def options(**given: tuple[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): Variant(*value) for key, value in given.items()}


def unknown_member(pick: random.Random, serial: int, here: Here) -> Bad:
    return Bad(call(serial, f"Explode{pick.randrange(10**6)}", interface=pick.choice((MANAGER, PROPERTIES))))


def unknown_interface(pick: random.Random, serial: int, here: Here) -> Bad:
    return Bad(call(serial, "Upgrade", interface=pick.choice((JOB, f"{NAME}.Deployment", "a.b", f"x{'.y' * 120}"))))


def unknown_path(pick: random.Random, serial: int, here: Here) -> Bad:
    below = pick.choice(("job/99999999", "image/x", "deployment/" + "a" * 4000, "x" + "/y" * 5000, "job/1/2"))
    return Bad(call(serial, pick.choice(("Wait", "Cancel")), "a{sv}", {}, path=f"{ROOT}/{below}", interface=JOB))


def unknown_option(pick: random.Random, serial: int, here: Here) -> Bad:
    key = pick.choice(("colour", "", "Deployment", "--root=/", "x" * 5000, "\x1b[2J\n", f"k{pick.randrange(10**9)}"))
    return Bad(call(serial, pick.choice(STARTS), "a{sv}", {key: Variant("s", "x")}))


def wrong_type(pick: random.Random, serial: int, here: Here) -> Bad:
    method = pick.choice(STARTS)
    key = pick.choice(list(METHODS[method]))
    value = pick.choice(
        (("as", ["x"]), ("i", -1), ("d", float("nan")), ("ay", b"x"), ("v", Variant("s", "x")), ("x", 1))
    )
    return Bad(call(serial, method, "a{sv}", {key: Variant(*value)}))


def wrong_value(pick: random.Random, serial: int, here: Here) -> Bad:
    method, key, value = pick.choice((
        ("Upgrade", "expected-digest", "latest"), ("Bind", "deployment", ""), ("Reboot", "when", "--force"),
        ("Plan", "kind", "../../etc"), ("Upgrade", "reason", "a\nFAKE=1"), ("Collect", "initiator", "\x1b]0;x\x07"),
        ("Verify", "reason", "x" * 200_000), ("Check", "reason", "\u202e" * 600),
    ))  # fmt: skip
    return Bad(call(serial, method, "a{sv}", {key: Variant("s", value)}))


def wrong_image(pick: random.Random, serial: int, here: Here) -> Bad:
    image = pick.choice(("--root=/", "oci:/etc", "quay.io/a b", "", "x" * 100_000, "quay.io/x\n--apply", "$(id)", "é"))
    return Bad(call(serial, "Switch", "sa{sv}", image, {}))


def wrong_signature(pick: random.Random, serial: int, here: Here) -> Bad:
    letters = "".join(pick.choice("ynqiuxt") for _ in range(pick.randint(1, 9)))
    return Bad(call(serial, pick.choice((*STARTS, "Describe")), letters, *([1] * len(letters))))


def many_options(pick: random.Random, serial: int, here: Here) -> Bad:
    return Bad(call(serial, "Upgrade", "a{sv}", {f"k{number}": Variant("u", number) for number in range(550)}))


def too_large(pick: random.Random, serial: int, here: Here) -> Bad:
    return Bad(call(serial, pick.choice(("Upgrade", "Describe")), "ay", b"\0" * pick.randint(20_000, 120_000)))


def deep_variant(pick: random.Random, serial: int, here: Here) -> Bad:
    value = Variant("s", "x")
    for _ in range(pick.randint(20, 60)):
        value = Variant("v", value)
    return Bad(call(serial, "Upgrade", "a{sv}", {"reason": value}))


def deep_array(pick: random.Random, serial: int, here: Here) -> Bad:
    depth = pick.randint(10, 31)
    return Bad(call(serial, "Upgrade", "a" * depth + "(" * 30 + "y" + ")" * 30, [], raw=b"\0" * 4))


def set_property(pick: random.Random, serial: int, here: Here) -> Bad:
    name = pick.choice(("State", "Gate", "Version", "Colour", "x" * 3000))
    value = pick.choice((Variant("s", "idle"), Variant("a(ss)", [["a", "b"]]), Variant("v", Variant("i", 1))))
    interface = pick.choice((MANAGER, JOB, "", "a.b"))
    return Bad(call(serial, "Set", "ssv", interface, name, value, interface=PROPERTIES))


def get_property(pick: random.Random, serial: int, here: Here) -> Bad:
    arguments = [pick.choice((MANAGER, "", "x" * 9000)), pick.choice(("Colour", "", "State\x7f"))]
    return Bad(call(serial, "Get", "ss", *arguments, interface=PROPERTIES))


def cancel(pick: random.Random, serial: int, here: Here) -> Bad:
    """Of a job that is another user's; root's own would really be cancelled."""
    path = f"{ROOT}/job/{10**6 + pick.randrange(10**6)}" if here.root else here.job
    return Bad(call(serial, "Cancel", "a{sv}", {}, path=path, interface=JOB))


def long_wait(pick: random.Random, serial: int, here: Here) -> Bad:
    given = pick.choice((("u", 2**32 - 1), ("t", 2**64 - 1), ("i", -1)))
    return Bad(call(serial, "Wait", "a{sv}", {"timeout-ms": Variant(*given)}, path=here.job, interface=JOB))


def change(pick: random.Random, serial: int, here: Here) -> Bad:
    """By somebody who may not; of root something that cannot be."""
    if not here.root:
        method = pick.choice((*STARTS, "Hold", "Release"))
        return Bad(call(serial, method, "a{sv}", {"initiator": Variant("s", "root")}))
    return Bad(call(serial, "Bind", "a{sv}", {"deployment": Variant("s", pick.choice(("nowhere", "../..", "-x")))}))


def big_endian(pick: random.Random, serial: int, here: Here) -> Bad:
    return Bad(call(serial, f"Explode{pick.randrange(9)}", order=">", raw=b""))


def odd_header(pick: random.Random, serial: int, here: Here) -> Bad:
    flags = pick.choice((0x80, 0x04, 0x02, 0x7C))
    return Bad(call(serial, "Explode", flags=flags, more=((pick.randint(20, 255), "s", "x" * 2000),)))


def descriptors(pick: random.Random, serial: int, here: Here) -> Bad:
    count = pick.choice((1, 4, 16))
    fds = ((wire.UNIX_FDS, "u", count),)
    return Bad(call(serial, "Upgrade", "a{sv}", {"reason": Variant("s", "x")}, more=fds), descriptors=count)


def no_reply(pick: random.Random, serial: int, here: Here) -> Bad:
    member = pick.choice(("Describe", "Explode", "Sync"))
    return Bad(call(serial, member, flags=wire.NO_REPLY), reply=False)


def unasked_answer(pick: random.Random, serial: int, here: Here) -> Bad:
    kind = pick.choice((wire.RETURN, wire.ERROR, wire.SIGNAL))
    fields: list[Any] = [(wire.DESTINATION, NAME)]
    if kind == wire.SIGNAL:
        fields += [(wire.PATH, "/a"), (wire.INTERFACE, "a.b"), (wire.MEMBER, "C")]
    else:
        fields += [(wire.REPLY_SERIAL, pick.randrange(1, 500))]
    fields += [(wire.ERROR_NAME, "a.b")] if kind == wire.ERROR else []
    return Bad(wire.encode(kind, fields, serial=serial), reply=False)


def wait_and_leave(pick: random.Random, serial: int, here: Here) -> Bad:
    data = call(serial, "Wait", "a{sv}", {"timeout-ms": Variant("u", 3_600_000)}, path=here.job, interface=JOB)
    return Bad(data, reply=False, ends=pick.random() < 0.05)


def ask_and_leave(pick: random.Random, serial: int, here: Here) -> Bad:
    return Bad(call(serial, pick.choice(("Describe", "Sync", "Explode"))), reply=False, ends=True)


def broken_text(pick: random.Random, serial: int, here: Here) -> Bad:
    return Bad(call(serial, "Switch", "s", raw=b"\3\0\0\0\xff\xfe\xfd\0"), reply=False, ends=True)


def half_message(pick: random.Random, serial: int, here: Here) -> Bad:
    whole = call(serial, "Upgrade", "a{sv}", {"reason": Variant("s", "x" * 500)})
    return Bad(whole[: pick.randrange(1, len(whole))], reply=False, ends=True)


def garbage(pick: random.Random, serial: int, here: Here) -> Bad:
    return Bad(pick.randbytes(pick.randint(1, 500)), reply=False, ends=True)


def wrong_length(pick: random.Random, serial: int, here: Here) -> Bad:
    whole = bytearray(call(serial, "Upgrade", "a{sv}", {}))
    whole[pick.choice((4, 7, 12, 15))] = pick.choice((0xFF, 0x7F, 1))
    return Bad(bytes(whole), reply=False, ends=True)


KINDS: tuple[Make, ...] = (
    *(unknown_member, unknown_interface, unknown_path, unknown_option, wrong_type, wrong_value, wrong_image),
    *(wrong_signature, many_options, too_large, deep_variant, deep_array, set_property, get_property, cancel),
    *(long_wait, change, big_endian, odd_header, descriptors, no_reply, unasked_answer, wait_and_leave),
    *(ask_and_leave, broken_text, half_message, garbage, wrong_length),
)
