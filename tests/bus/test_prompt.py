# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.bus.prompt import LONGEST, details, shown

HARMLESS = set(string.ascii_letters + string.digits + " ._:/@+,=-?")


@pytest.mark.parametrize(
    ("verb", "options", "expected"),
    [
        ("upgrade", {}, {"verb": "upgrade", "image": "-", "digest": "-", "initiator": "user 7"}),
        (
            "switch",
            {"image": "quay.io/os:1", "expected-digest": "sha256:12", "reboot": "window", "initiator": "me"},
            {
                "verb": "switch, reboot window",
                "image": "quay.io/os:1",
                "digest": "sha256:12",
                "initiator": "user 7 as me",
            },
        ),
        (
            "rollback",
            {"drop-staged": True, "reason": "a", "idempotency-key": "b"},
            {"verb": "rollback, drop-staged yes", "image": "-", "digest": "-", "initiator": "user 7"},
        ),
        (
            "collect",
            {"dry-run": False, "initiator": " \n "},
            {"verb": "collect", "image": "-", "digest": "-", "initiator": "user 7"},
        ),
    ],
)
def test_details(verb: str, options: dict[str, object], expected: dict[str, str]) -> None:
    assert details(verb, options, 7) == expected


@given(st.text(max_size=600))
def test_nothing_odd_is_shown(text: str) -> None:
    made = shown(text)
    assert set(made) <= HARMLESS
    assert len(made) <= LONGEST


def test_the_tag_of_a_long_name_is_seen() -> None:
    made = shown("quay.io/" + "a" * 400 + ":evil")
    assert made.startswith("quay.io/aaa")
    assert made.endswith("aaa:evil")
    assert "..." in made
