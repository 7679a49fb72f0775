# SPDX-License-Identifier: Apache-2.0
"""Whatever the text is, the answer is a table or a ValueError, and it comes soon."""

from __future__ import annotations

import contextlib
import time
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things.toml import LINE_LIMIT, TEXT_LIMIT, parse_toml


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x=" + "9" * 2000, ""),
        ("x=\n", "is not valid TOML"),
        ("a=" + "[" * 2000, "is nested too deeply"),
        ("#\n" * (TEXT_LIMIT // 2) + "#", f"more than {TEXT_LIMIT} characters"),
        ("a." * 2000 + "b=1", f"a line of more than {LINE_LIMIT} characters"),
        ("x=[\n" + "9" * 2000 + "\n]", ""),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    if not why:
        assert parse_toml(text) == tomllib.loads(text)
        return
    with pytest.raises(ValueError, match=why):
        parse_toml(text)


_PIECES = ["a", ".", "=", "[", "]", "{", "}", '"', "'", "#", "\n", ",", " ", "9", "0x", "1e9", "\\", "\\u", '"""', "T"]


@given(st.lists(st.sampled_from([*_PIECES, "9" * 1000, "a." * 400, "[" * 900, "1979-05-27"])).map("".join))
def test_nothing_but_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_toml(text), dict)


@pytest.mark.parametrize("line", ["[{}b{}]", "{}b{}=1"])
def test_keys_of_many_parts_take_no_time(line: str) -> None:
    text = "\n".join(line.format("a." * 1000, number) for number in range(100))
    begun = time.process_time()
    parse_toml(text)
    assert time.process_time() - begun < 1.5
