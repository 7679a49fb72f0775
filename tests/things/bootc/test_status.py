# SPDX-License-Identifier: Apache-2.0
"""What bootc of several versions says of its deployments, and what nobody can know that a later one will say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things.bootc.status import Entry, Status, read_status
from lashd.words.errors import ErrorName, LashdError

SAID = Path(__file__).with_name("status")


def said(name: str) -> Status:
    return read_status((SAID / f"{name}.json").read_bytes())


def ids(entries: tuple[Entry | None, ...]) -> str:
    """The letter that the checksum or id of each is made of."""
    kept = (
        one and (one.ostree.checksum if one.ostree else one.composefs.verity if one.composefs else "?")
        for one in entries
    )
    return "".join(one[0] if one else "-" for one in kept)


@pytest.mark.parametrize(
    ("version", "roles", "installed"),
    [
        ("1.1", "bac", "ac"),
        ("1.3", "-ac", "cad"),
        ("1.12", "bac", "ac"),
        ("1.16", "-a-", "ad"),
        ("composefs-1.9", "ba-", "a"),
        ("composefs-1.16", "bac", "ac"),
    ],
)
def test_each_version(version: str, roles: str, installed: str) -> None:
    found = said(version)
    assert ids((found.staged, found.booted, found.rollback)) == roles
    assert ids(found.installed) == installed
    assert found.booted is not None
    assert found.booted.image is not None
    assert found.booted.image.digest == f"sha256:{'1' * 64}"
    assert found.booted.image.image is not None
    assert found.booted.image.image.image == "registry.example.com/edge/os:prod"


def test_what_only_some_say() -> None:
    staged = said("1.12").staged
    assert staged is not None
    assert staged.downloadOnly is True
    old = said("1.1").staged
    assert old is not None
    assert (old.downloadOnly, old.composefs) == (None, None)
    (other,) = said("1.3").others
    assert other.pinned
    uki = said("composefs-1.16").staged
    assert uki is not None
    assert uki.composefs is not None
    assert (uki.composefs.bootType, uki.downloadOnly) == ("Uki", True)


def test_not_deployed_by_bootc() -> None:
    nothing = {"booted": None, "rollback": None, "rollbackQueued": False, "staged": None, "type": None}
    assert read_status(json.dumps({"spec": {"image": None}, "status": nothing}).encode()) == Status()


def test_the_order_alone_says_that_a_rollback_is_queued() -> None:
    assert read_status(b'{"spec":{"bootOrder":"rollback"},"status":{}}').queued


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@st.composite
def _bent(draw: st.DrawFn) -> bytes:
    """What some bootc says, with something else in one place."""
    value: Any = json.loads(draw(st.sampled_from(sorted(SAID.iterdir()))).read_bytes())
    place = value
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or draw(st.booleans()):
            break
        place = place[key]
    place[key] = draw(_json)
    return json.dumps(value).encode()


@given(_bent() | st.binary() | _json.map(lambda value: json.dumps(value).encode()))
def test_whatever_it_says(content: bytes) -> None:
    refused: LashdError | None = None
    found = Status()
    try:
        found = read_status(content)
    except LashdError as error:
        refused = error
    assert refused is None or (refused.name is ErrorName.HOST_COMMAND_FAILED and refused.message.endswith("."))
    for entry in (*found.installed, found.staged):
        assert entry is None or entry.image is None or isinstance(entry.image.digest, str)


def test_too_long_or_too_deep() -> None:
    for content in (b" " * 5_000_000, b'{"status":' * 100_000):
        with pytest.raises(LashdError, match="cannot be understood"):
            read_status(content)
