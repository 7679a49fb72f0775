# SPDX-License-Identifier: Apache-2.0
"""GLib is the judge: it makes and takes the same bytes, in one process for all cases of a test."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things.gvariant import DEPTH_LIMIT, parse

# Reads JSON lines [kind, type, payload], kind `make` (GVariant text) or `read` (base64), and says what GLib thinks.
JUDGE = r"""
import base64, json, sys
from gi.repository import GLib

def plain(v):
    kind = v.classify()
    code = v.get_type_string()
    if code == "ay":
        return ["bytes", base64.b64encode(v.get_data_as_bytes().get_data() or b"").decode()]
    if kind == GLib.VariantClass.VARIANT:
        return plain(v.get_variant())
    if kind == GLib.VariantClass.MAYBE:
        return plain(v.get_child_value(0)) if v.n_children() else None
    if kind == GLib.VariantClass.DOUBLE:
        return ["double", repr(v.get_double())]
    if kind in (GLib.VariantClass.ARRAY, GLib.VariantClass.TUPLE, GLib.VariantClass.DICT_ENTRY):
        children = [plain(v.get_child_value(i)) for i in range(v.n_children())]
        if code.startswith("a{"):
            return ["dict", children]
        return ["array" if kind == GLib.VariantClass.ARRAY else "tuple", children]
    return v.unpack()

for line in sys.stdin:
    kind, type_, payload = json.loads(line)
    type_ = GLib.VariantType.new(type_)
    if kind == "make":
        v = GLib.Variant.parse(type_, payload, None, None)
        if len(payload) % 2:  # half of them byte-swapped
            data = v.byteswap().get_data_as_bytes().get_data()
        else:
            data = v.get_data_as_bytes().get_data()
        print(json.dumps([base64.b64encode(data or b"").decode(), plain(v)]))
    else:
        data = base64.b64decode(payload)
        v = GLib.Variant.new_from_bytes(type_, GLib.Bytes.new(data), False)
        print(json.dumps(plain(v) if v.is_normal_form() else ["damaged"]))
"""


def judge(cases: list[list[str]]) -> list[Any]:
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run(["/usr/bin/python3", "-c", JUDGE], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def plain(value: Any) -> Any:
    """The shape in which the judge answers."""
    if isinstance(value, bytes):
        return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, float):
        return ["double", repr(value)]
    if isinstance(value, dict):
        return ["dict", [["tuple", [plain(k), plain(v)]] for k, v in value.items()]]
    if isinstance(value, tuple):
        return ["tuple", [plain(v) for v in value]]
    if isinstance(value, list):
        return ["array", [plain(v) for v in value]]
    return value


RANGES = {"y": (0, 255), "n": (-(2**15), 2**15 - 1), "q": (0, 2**16 - 1), "i": (-(2**31), 2**31 - 1)}
RANGES |= {"u": (0, 2**32 - 1), "x": (-(2**63), 2**63 - 1), "t": (0, 2**64 - 1)}


def some_type(pick: random.Random, depth: int) -> str:
    simple = "bynqiuxtdsogv" if depth < 5 else "bynqiuxtds"
    if depth > 3 or pick.random() < 0.4:
        return pick.choice(simple)
    kind = pick.choice(["a", "a", "m", "(", "{"])
    if kind == "(":
        return "(" + "".join(some_type(pick, depth + 1) for _ in range(pick.randint(0, 4))) + ")"
    if kind == "{":
        return "a{" + pick.choice("snuxtyb") + some_type(pick, depth + 1) + "}"
    return kind + some_type(pick, depth + 1)


def split(types: str) -> list[str]:
    found, at = [], 0
    while at < len(types):
        start = at
        while types[at] in "am":
            at += 1
        if types[at] in "({":
            level = 1
            while level:
                at += 1
                level += (types[at] in "({") - (types[at] in ")}")
        at += 1
        found.append(types[start:at])
    return found


def some_text(pick: random.Random, type_: str, depth: int = 0) -> str:
    """A value of `type_` in GVariant's text format."""
    code = type_[0]
    if code in RANGES:
        low, high = RANGES[code]
        return str(pick.choice([low, high, pick.randint(low, high), pick.randint(0, 9)]))
    if code == "b":
        return pick.choice(["true", "false"])
    if code == "d":
        return repr(pick.uniform(-1e9, 1e9))
    if code == "s":
        text = "".join(pick.choice("aé\U0001f6a2z/.") for _ in range(pick.choice([0, 1, 7, 80, 300])))
        return json.dumps(text, ensure_ascii=False)
    if code == "o":
        return '"' + pick.choice(["/", "/a/b_1"]) + '"'
    if code == "g":
        return '"' + pick.choice(["", "a{sv}", "(ii)s"]) + '"'
    if code == "v":
        inner = some_type(pick, depth + 4)
        return f"<@{inner} {some_text(pick, inner, depth + 1)}>"
    count = pick.choice([0, 1, 2, 3, 9] if depth < 2 else [0, 1, 2])
    if code == "m":
        return "nothing" if not count else f"just {some_text(pick, type_[1:], depth + 1)}"
    if type_.startswith("a{"):
        key, value = split(type_[2:-1])
        pairs = {some_text(pick, key, depth + 1): some_text(pick, value, depth + 1) for _ in range(count)}
        return "{" + ", ".join(f"{k}: {v}" for k, v in pairs.items()) + "}"
    if code == "a":
        return "[" + ", ".join(some_text(pick, type_[1:], depth + 1) for _ in range(count)) + "]"
    members = [some_text(pick, member, depth + 1) for member in split(type_[1:-1])]
    return "(" + ", ".join(members) + ("," if len(members) == 1 else "") + ")"


def test_reads_what_glib_writes() -> None:
    pick = random.Random(20261123)
    fixed = ["a{sv}", "(a{sv}aya(say)sstayay)", "aas", "a{ss}", "a{sa{sv}}", "a(yv)", "(yt)", "()", "a()", "ms", "mi"]
    types = fixed * 20 + [some_type(pick, 0) for _ in range(800)]
    cases = [["make", type_, some_text(pick, type_)] for type_ in types]
    for (_, type_, text), (data, wanted) in zip(cases, judge(cases), strict=True):
        order = "big" if len(text) % 2 else "little"
        assert plain(parse(type_, base64.b64decode(data), byteorder=order)) == wanted, (type_, text)


def test_agrees_with_glib_on_damaged_input() -> None:
    """What GLib calls normal is read alike; what it does not is a ValueError here."""
    pick = random.Random(7)
    types = [some_type(pick, 0) for _ in range(500)] + ["a{sv}", "(a{sv}aya(say)sstayay)"] * 100
    made = judge([["make", type_, some_text(pick, type_)] for type_ in types])
    cases = []
    for type_, (data, _) in zip(types, made, strict=True):
        raw = bytearray(base64.b64decode(data))
        for _ in range(3):
            bad = bytearray(raw)
            if bad and pick.random() < 0.7:
                bad[pick.randrange(len(bad))] = pick.choice([0, 1, 255, pick.randrange(256)])
            elif pick.random() < 0.5:
                del bad[pick.randrange(len(bad) + 1) :]
            else:
                bad += pick.randbytes(pick.randint(1, 9))
            cases.append(["read", type_, base64.b64encode(bytes(bad)).decode()])
    damaged = 0
    for (_, type_, data), wanted in zip(cases, judge(cases), strict=True):
        raw = base64.b64decode(data)
        if wanted == ["damaged"]:
            damaged += 1
            with pytest.raises(ValueError):  # noqa: PT011
                parse(type_, raw)
        elif "dict" not in str(wanted):  # damage may double a key
            assert plain(parse(type_, raw)) == wanted, (type_, raw)
    assert damaged > 300


@given(st.binary(max_size=300), st.sampled_from(["a{sv}", "aas", "v", "(a{sv}aya(say)sstayay)", "a(sv)", "mmv"]))
def test_any_bytes_are_read_or_refused(data: bytes, type_: str) -> None:
    try:
        parse(type_, data)
    except ValueError:
        return


@pytest.mark.parametrize("type_", ["", "a", "(", "a{vs}", "a{s}", "z", "ii", "a" * 300, "(i", "{si", "m", "a}", "{}"])
def test_refuses_types_that_are_none(type_: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(type_, b"\0" * 8)


def test_refuses_endless_nesting() -> None:
    data = b"\0" + b"\0v" * (DEPTH_LIMIT + 10)
    with pytest.raises(ValueError, match="nested"):
        parse("v", data[:-2] + b"\0v")


def test_of_equal_keys_the_first_wins() -> None:
    one, two = b"k\0" + b"1\0", b"k\0" + b"2\0"
    # a{ss}: two entries of 5 bytes (key, value, offset of the value), then the array's two offsets.
    entries = b"".join(entry + b"\x02" for entry in (one, two))
    assert parse("a{ss}", entries + bytes([5, 10])) == {"k": "1"}


def test_a_large_hostile_table_is_read_once() -> None:
    """Offsets that all point back to the start would make every element the whole text: quadratic, so refused."""
    text = b"x" * 70000 + b"\0"
    table = (len(text)).to_bytes(4, "little") * 20000
    with pytest.raises(ValueError, match="NUL"):
        parse("as", text + table)
