# SPDX-License-Identifier: Apache-2.0
"""The store against the record: each fault is named for what it is, and looking changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.steps.audit import Condition, audit, require_sound
from lashd.things.store import Store
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, Record, RecordedImage
from lashd.words.progress import Event, ItemProgress
from lashd.words.reference import parse_reference
from tests.support.images import Image, build, build_index, files
from tests.support.stores import edit_index, layer_file, make_store, put, remove_layer_directory, stored

WEB, AGENT = "quay.io/edge/web", "quay.io/edge/agent"
BASE = files({"bin/tool": b"tool" * 100})
ONE, TWO = build([BASE, {"v": b"1"}]), build([BASE, {"v": b"2"}])


def bound(text: str, *names: str) -> BoundImage:
    return BoundImage("web.container", text, parse_reference(text), names=tuple(map(parse_reference, names)))


def record(store: Store, text: str, image: Image) -> Record:
    found = next(each for each in store.index().images if each.id == image.image_id)
    chain = store.index().chain(found)
    assert chain is not None
    layers, stamps = tuple(layer.id for layer in chain), tuple(layer.created for layer in chain)
    return Record("key", None, (RecordedImage(text, image.digest, image.image_id, layers, stamps=stamps),), 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = make_store(tmp_path)
    put(made, ONE, f"{WEB}:1")
    return made


def vouched(store: Store) -> frozenset[str]:
    return frozenset(store.index().layers)


def move_tag(store: Store) -> None:
    put(store, ONE, f"{WEB}@{ONE.digest}")
    put(store, TWO, f"{WEB}:1")


def shift_parent(store: Store) -> None:
    """The top layer on another base than before."""
    put(store, build([{"other": b"base"}]), f"{AGENT}:1")
    top, other = stored(store, f"{WEB}:1").top_layer, stored(store, f"{AGENT}:1").top_layer
    edit_index(store, "layers", lambda all: [each | ({"parent": other} if each["id"] == top else {}) for each in all])
    short = (store.root / "overlay" / str(other) / "link").read_text()
    (store.root / "overlay" / str(top) / "lower").write_text(f"l/{short}")


@pytest.mark.parametrize(
    ("harm", "named", "deep", "condition"),
    [
        (lambda store: None, True, True, Condition.OK),
        (lambda store: remove_layer_directory(store, f"{WEB}:1"), False, False, Condition.DAMAGED),
        (lambda store: layer_file(store, f"{WEB}:1", "v").write_bytes(b"x"), False, False, Condition.OK),
        (lambda store: layer_file(store, f"{WEB}:1", "v").write_bytes(b"x"), False, True, Condition.DAMAGED),
        (lambda store: edit_index(store, "images", lambda _: []), False, False, Condition.MISSING),
        (move_tag, False, False, Condition.OK),
        (move_tag, True, False, Condition.DRIFTED),
        (shift_parent, False, False, Condition.DAMAGED),
    ],
)
async def test_each_fault_for_what_it_is(
    store: Store, harm: Callable[[Store], object], named: bool, deep: bool, condition: Condition
) -> None:
    known = record(store, f"{WEB}:1", ONE)
    harm(store)
    before, events = store.signature(), list[Event]()
    (row,) = await audit(
        (bound(f"{WEB}:1"),), known, store, vouched(store), named=named, deep=deep, report=events.append
    )
    assert (row.condition, row.digest) == (condition, ONE.digest)
    assert bool(row.sentence) is (condition is not Condition.OK)
    assert row.sentence.endswith(".") or not row.sentence
    assert store.signature() == before
    assert any(isinstance(event, ItemProgress) for event in events)
    if condition is Condition.OK:
        require_sound((row,))
        return
    with pytest.raises(LashdError, match="1 of 1 bound images is not as recorded") as caught:
        require_sound((row,))
    assert row.sentence in caught.value.message
    damaged = condition is Condition.DAMAGED
    assert caught.value.name is (ErrorName.STORE_DAMAGED if damaged else ErrorName.BOUND_IMAGE_MISSING)


async def test_layers_that_nobody_vouches_for_are_read(store: Store) -> None:
    """Another copy of a recorded layer, which somebody else fetched, has no one to vouch for it."""
    known = record(store, f"{WEB}:1", ONE)
    layer_file(store, f"{WEB}:1", "v").write_bytes(b"x")
    (row,) = await audit((bound(f"{WEB}:1"),), known, store, frozenset())
    assert row.condition is Condition.DAMAGED


async def test_without_a_record(store: Store) -> None:
    pinned, absent = bound(f"{WEB}@{ONE.digest}"), bound(f"{AGENT}:1")
    rows = await audit((bound(f"{WEB}:1"), absent, pinned), None, store, vouched(store), named=True)
    assert [row.condition for row in rows] == [Condition.OK, Condition.MISSING, Condition.OK]
    assert [row.digest for row in rows] == [ONE.digest, "", ONE.digest]
    assert [row.image for row in rows][1] is absent
    gone = bound(f"{WEB}@{TWO.digest}")
    (row,) = await audit((gone,), None, store, vouched(store))
    assert (row.condition, row.digest) == (Condition.MISSING, TWO.digest)


async def test_two_units_and_further_names(store: Store) -> None:
    known = record(store, f"{WEB}:1", ONE)
    other = replace(bound(f"{WEB}:1", f"{AGENT}:latest"), unit="other.container")
    rows = await audit((bound(f"{WEB}:1"), other), known, store, vouched(store), named=True)
    assert [row.condition for row in rows] == [Condition.OK, Condition.DRIFTED]
    assert f"{AGENT}:latest" in rows[1].sentence
    put(store, ONE, f"{AGENT}:latest")
    rows = await audit((bound(f"{WEB}:1"), other), known, store, vouched(store), named=True)
    assert {row.condition for row in rows} == {Condition.OK}


async def test_an_image_of_several_platforms(tmp_path: Path) -> None:
    made = make_store(tmp_path / "index")
    index = build_index([ONE, build([{"other": b"1"}], arch="s390x")])
    put(made, index, f"{WEB}@{index.digest}", f"{WEB}:1")
    for known in (None, record(made, f"{WEB}:1", ONE)):
        (row,) = await audit((bound(f"{WEB}:1"),), known, made, vouched(made), named=True, deep=True)
        assert (row.condition, row.digest) == (Condition.OK, ONE.digest)


async def test_an_index_that_cannot_be_read(store: Store) -> None:
    (store.root / "overlay-images/images.json").write_text("{")
    with pytest.raises(LashdError) as caught:
        await audit((bound(f"{WEB}:1"),), None, store, frozenset())
    assert caught.value.name is ErrorName.STORE_DAMAGED


async def test_every_image_that_is_not_as_it_should_be_is_named(store: Store) -> None:
    images = [bound(f"{WEB}:{number}") for number in range(12)]
    rows = await audit(images, None, store, frozenset())
    with pytest.raises(LashdError) as caught:
        require_sound(rows, "booted")
    told = caught.value.message
    assert told.startswith("11 of 12 bound images are not as recorded.")
    assert all(f"{WEB}:{number} is not in the store" in told for number in (0, 2, 8))
    assert "The same is true of 3 more." in told
    assert "'lashctl bind booted' repairs" in told
    with pytest.raises(LashdError, match="'lashctl bind' repairs"):
        require_sound(rows)
