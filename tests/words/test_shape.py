# SPDX-License-Identifier: Apache-2.0
"""Values are what their dataclass says, or refused with the place where they are not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from lashd.words.shape import Misfit, from_json, shaped


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    name: str
    size: int = 0


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    pairs: tuple[tuple[str, int], ...] = ()
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    colour: Colour | None = None
    word: Literal["a", "b"] = "a"
    where: Path = Path("/")
    table: dict[str, bool] | None = None
    anything: Any = None


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WHOLES = st.builds(
    Whole,
    parts=st.lists(st.builds(Part, TEXT, st.integers())).map(tuple),
    pairs=st.lists(st.tuples(TEXT, st.integers())).map(tuple),
    share=st.floats(0, 1),
    colour=st.none() | st.just(Colour.RED),
    word=st.sampled_from(["a", "b"]),
    table=st.none() | st.dictionaries(TEXT, st.booleans()),
    anything=st.none() | st.integers(),
)


@given(WHOLES)
def test_what_is_taken_apart_comes_together_again(whole: Whole) -> None:
    assert shaped(Whole, asdict(whole) | {"unknown": 1}) == whole
    assert from_json(Whole, json.dumps(asdict(whole), default=str).encode()) == whole


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], ""),
        ({}, ""),
        ({"parts": {}}, "parts"),
        ({"parts": [{"name": "a"}, {"size": 1}]}, "parts.1"),
        ({"parts": [{"name": 1}]}, "parts.0.name"),
        ({"parts": [{"name": "a", "size": True}]}, "parts.0.size"),
        ({"parts": [{"name": "a", "size": 1.0}]}, "parts.0.size"),
        ({"parts": [{"name": "a", "size": None}]}, "parts.0.size"),
        ({"parts": [], "pairs": [["a"]]}, "pairs.0"),
        ({"parts": [], "pairs": [["a", "b"]]}, "pairs.0.1"),
        ({"parts": [], "share": 1.5}, "share"),
        ({"parts": [], "share": float("nan")}, "share"),
        ({"parts": [], "share": "1"}, "share"),
        ({"parts": [], "share": 10**400}, "share"),
        ({"parts": [], "colour": "green"}, "colour"),
        ({"parts": [], "colour": []}, "colour"),
        ({"parts": [], "word": "c"}, "word"),
        ({"parts": [], "where": "a\0b"}, "where"),
        ({"parts": [], "table": {"x": 1}}, "table...."),
    ],
)
def test_what_does_not_fit_is_told_by_its_place(value: Any, place: str) -> None:
    with pytest.raises(Misfit) as caught:
        shaped(Whole, value)
    assert ".".join(caught.value.place) == place
    assert str(caught.value).startswith(place or caught.value.why)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"parts": 1}', b"9" * 5000, b'{"parts": [{"name": "\\ud800"}]}']
)
def test_json_that_is_none(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(Whole, content)


def test_an_integer_may_stand_for_a_number() -> None:
    share = from_json(Whole, b'{"parts": [], "share": 1}').share
    assert (share, type(share)) == (1.0, float)
