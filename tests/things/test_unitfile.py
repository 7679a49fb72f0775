# SPDX-License-Identifier: Apache-2.0
"""What the judge does not show: words, flags and lists (test_quadlet_judge has the grammar of lines)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things.unitfile import NotAUnitFile, parse, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("a  b\tc", ["a", "b", "c"]),
        ("a 'b c' \"d e\"", ["a", "b c", "d e"]),
        ("a'b c'd", ["ab cd"]),
        ("'a\"b' \"c'd\"", ['a"b', "c'd"]),
        ("a\\x20b \\u00e9 \\U0001f600 \\101", ["a b", "é", "😀", "A"]),
        ("a\\sb\\t", ["a b\t"]),
        ("'a\\'b'", ["a'b"]),
        ("open 'quote here", ["open", "quote here"]),
        ("trailing\\", ["trailing"]),
        ("a '' b", ["a"]),  # an empty word ends the line
        ("a \\q", None),
        ("\\x0", None),
        ("\\x00", None),
        ("\\400", None),
        ("\\Uffffffff", None),
        ("\\ud800", ["\ufffd"]),
    ],
)
def test_split_words(text: str, words: list[str] | None) -> None:
    assert split_words(text) == words


@given(st.lists(st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), min_size=1), max_size=5))
def test_words_come_back(words: list[str]) -> None:
    quoted = " ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words)
    assert split_words(quoted) == words


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    split_words(text)
    why = "has "
    try:
        parse(text)
    except NotAUnitFile as error:
        why = str(error)
    assert why.startswith("has ")


def test_lists_and_flags() -> None:
    file = parse("[S]\nA=1 2\nA=\nA=3 '4 5'\nA=bad\\q\nB=Yes\nB= on \nC=maybe\n[S]\nA=6\n")
    assert file.every("S", "A") == ["3 '4 5'", "bad\\q", "6"]
    assert file.words("S", "A") == ["3", "4 5", "6"]
    assert [file.flag("S", key) for key in "BCD"] == [True, False, None]
    assert file.last("S", "A") == "6"
    assert file.last("T", "A") is None
    merged = file.with_drop_ins([parse("[S]\nA=\nA=7\n"), parse("[T]\nB=c\n")])
    assert merged.every("S", "A") == ["7"]
    assert merged.last("T", "B") == "c"
    assert file.last("T", "B") is None


@pytest.mark.parametrize(
    "text",
    [
        "[S]\nA=" + "x\\\n" * 300_000,
        "[S]\nA=" + "\\" * 1_000_000,
        "[S]\n" + "A=1\n" * 250_000,
        "[S]\nA=" + "'a\" " * 250_000,
        "[" * 1_000_000,
        "[S]\n" * 250_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    begun = time.process_time()
    try:
        file = parse(text)
        file.words("S", "A")
    except NotAUnitFile:
        pass
    assert time.process_time() - begun < 5
