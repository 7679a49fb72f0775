# SPDX-License-Identifier: Apache-2.0
"""What names mean: the pure decision over every kind of index, and the store after it was carried out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.steps.names import (
    Digests,
    Move,
    digests_of,
    give_names,
    held_names,
    kept_name,
    meanings,
    moves,
    name_in_store,
    wrong_names,
)
from lashd.steps.record import Records
from lashd.things.store import Store, StoredImage, StoreIndex
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, Deployment, Plan, PlannedImage, Record, RecordedImage, Role
from lashd.words.reference import Reference, parse_reference
from tests.support.images import build, files
from tests.support.stores import make_store, put, stored

X, Y = "quay.io/edge/x", "quay.io/edge/y"


def ref(text: str) -> Reference:
    return parse_reference(text)


def digest(word: str) -> str:
    return f"sha256:{hashlib.sha256(word.encode()).hexdigest()}"


def image(word: str, *names: str, index_digest: str = "") -> StoredImage:
    """An image of the store whose manifest has the digest `digest(word)`."""
    identity = hashlib.sha256(f"config of {word}".encode()).hexdigest()
    return StoredImage(
        identity, index_digest or digest(word), names, None, frozenset({digest(word), index_digest} - {""})
    )


def bound(text: str, *names: str) -> BoundImage:
    return BoundImage("a.container", text, ref(text), names=tuple(map(ref, names)))


def wanted(**of: str) -> dict[str, str]:
    """x_1="B" → quay.io/edge/x:1 is to mean the image B."""
    return {f"quay.io/edge/{key.replace('_', ':')}": digest(word) for key, word in of.items()}


def after(index: StoreIndex, done: tuple[Move, ...]) -> StoreIndex:
    """The index once `done` was carried out, as containers-storage has it: a name that is given leaves its holder."""
    for move in done:
        if move.keep is not None:
            index = named(index, move.name, move.keep)
        index = named(index, move.source, move.name)
    return index


def named(index: StoreIndex, source: Reference, name: Reference) -> StoreIndex:
    given = index.image_named(source)
    assert given is not None, f"{source} names nothing when {name} is to be given"
    images = []
    for each in index.images:
        names = tuple(one for one in each.names if one != str(name))
        names = (*names, str(name)) if each.id == given.id else names
        images.append(StoredImage(each.id, each.digest, names, None, each.digests))
    return StoreIndex(images)


A1 = image("A", f"{X}:1")
B = image("B", f"{X}@{digest('B')}")
B2 = image("B", f"{X}:2")
KEPT = str(kept_name(ref(f"{X}:1"), A1.id))


@pytest.mark.parametrize(
    ("images", "units", "means", "held", "expected"),
    [
        # every name is right
        ([A1, B], [bound(f"{X}:1")], wanted(x_1="A"), {}, []),
        # the name of another image: that one is kept
        ([A1, B], [bound(f"{X}:1")], wanted(x_1="B"), {}, [(f"{X}:1", digest("B"), KEPT)]),
        # … unless it can be found by its digest anyway, or is kept already
        ([image("A", f"{X}:1", f"{X}@{digest('A')}"), B], [bound(f"{X}:1")], wanted(x_1="B"), {}, [
            (f"{X}:1", digest("B"), ""),
        ]),
        ([image("A", f"{X}:1", KEPT), B], [bound(f"{X}:1")], wanted(x_1="B"), {}, [(f"{X}:1", digest("B"), "")]),
        # a further tag is no such name: it may move as well
        ([image("A", f"{X}:1", f"{X}:3"), B], [bound(f"{X}:1")], wanted(x_1="B"), {}, [
            (f"{X}:1", digest("B"), KEPT),
        ]),
        # a free name
        ([B2], [bound(f"{X}:1")], wanted(x_1="B"), {}, [(f"{X}:1", digest("B"), "")]),
        # by the digest of another platform's index, too
        ([image("A", f"{X}:1", index_digest=digest("I"))], [bound(f"{X}:1")], wanted(x_1="A"), {}, []),
        ([image("A", f"{X}:1", index_digest=digest("I"))], [bound(f"{X}:1")], wanted(x_1="I"), {}, []),
        ([image(word, f"{X}:{tag}", index_digest=digest("I")) for word, tag in ("A2", "C1")], [bound(f"{X}:1")],
            wanted(x_1="I"), {}, []),
        # several names of one image: it is kept once
        ([image("A", f"{X}:1", f"{X}:2"), B], [bound(f"{X}:1"), bound(f"{X}:2")], wanted(x_1="B", x_2="B"), {}, [
            (f"{X}:1", digest("B"), KEPT),
            (f"{X}:2", digest("B"), ""),
        ]),
        # what is not in the store, in this repository, cannot get a name
        ([A1], [bound(f"{X}:1")], wanted(x_1="B"), {}, []),
        ([A1, image("B", f"{Y}:1")], [bound(f"{X}:1")], wanted(x_1="B"), {}, []),
        # nobody knows what it is to mean
        ([A1, B], [bound(f"{X}:1")], {}, {}, []),
        # pinned
        ([A1, B], [bound(f"{X}@{digest('B')}")], {}, {}, []),
        # the running system's, whether something has the name or not, and whether it is known or not
        ([A1, B], [bound(f"{X}:1")], wanted(x_1="B"), wanted(x_1="A"), []),
        ([B2], [bound(f"{X}:1")], wanted(x_1="B"), wanted(x_1="A"), []),
        ([B2], [bound(f"{X}:1")], wanted(x_1="B"), {f"{X}:1": ""}, []),
        # … and bound to the same image there
        ([B2], [bound(f"{X}:1")], wanted(x_1="B"), wanted(x_1="B"), [(f"{X}:1", digest("B"), "")]),
        ([A1, B2], [bound(f"{X}:1")], wanted(x_1="B"), wanted(x_1="B"), [(f"{X}:1", digest("B"), KEPT)]),
        # two names change places
        ([A1, B2], [bound(f"{X}:1"), bound(f"{X}:2")], wanted(x_1="B", x_2="A"), {}, [
            (f"{X}:1", digest("B"), KEPT),
            (f"{X}:2", digest("A"), str(kept_name(ref(f"{X}:2"), B2.id))),
        ]),
        # further names, in another repository, of what is pinned as well, and not those that another unit binds
        ([A1], [bound(f"{X}:1", f"{Y}:1")], wanted(x_1="A"), {}, [(f"{Y}:1", digest("A"), "")]),
        ([A1], [bound(f"{X}@{digest('A')}", f"{Y}:1")], {}, {}, [(f"{Y}:1", digest("A"), "")]),
        ([A1], [bound(f"{X}:1", f"{Y}:1"), bound(f"{Y}:1")], wanted(x_1="A"), {}, []),
        ([A1], [bound(f"{X}:1", f"{Y}@{digest('A')}")], wanted(x_1="A"), {}, []),
        # two units, two meanings: the first decides, at every look
        ([A1, B], [bound(f"{X}:1", f"{Y}:1"), bound(f"{X}@{digest('B')}", f"{Y}:1")], wanted(x_1="A"), {}, [
            (f"{Y}:1", digest("A"), ""),
        ]),
    ],
)  # fmt: skip
def test_what_has_to_move(
    images: list[StoredImage],
    units: list[BoundImage],
    means: Digests,
    held: Digests,
    expected: list[tuple[str, str, str]],
) -> None:
    found = moves(StoreIndex(images), units, means, held)
    assert [(str(each.name), each.source.digest, str(each.keep or "")) for each in found] == expected


NAMES = st.sampled_from([f"{repository}:{tag}" for repository in (X, Y) for tag in "123"])
WORDS = st.sampled_from("ABCD")


@st.composite
def indexes(draw: st.DrawFn) -> StoreIndex:
    """Up to four images that share out six names; with names by digest, of indexes that two of them have in common."""
    holders = draw(st.dictionaries(NAMES, WORDS))
    by_digest = draw(st.sets(st.tuples(WORDS, st.sampled_from([X, Y]))))
    fetched_by = draw(st.dictionaries(WORDS, st.sampled_from([digest("I"), digest("J")])))
    return StoreIndex(
        image(
            word,
            *(name for name, holder in holders.items() if holder == word),
            *(f"{repository}@{digest(word)}" for each, repository in by_digest if each == word),
            index_digest=fetched_by.get(word, ""),
        )
        for word in "ABCD"
    )


DIGESTS = st.dictionaries(NAMES, st.sampled_from([digest(word) for word in "ABCDIJ"] + [digest("gone")]))
UNITS = st.lists(
    st.builds(
        lambda text, names: bound(text, *names),
        NAMES | st.builds(lambda name, word: f"{name.partition(':')[0]}@{digest(word)}", NAMES, WORDS),
        st.lists(NAMES, max_size=2),
    ),
    max_size=4,
)


@given(indexes(), UNITS, DIGESTS, DIGESTS)
def test_after_the_moves(index: StoreIndex, units: list[BoundImage], means: Digests, held: Digests) -> None:
    done = moves(index, units, means, held)
    now = after(index, done)
    changed = {str(move.name) for move in done}
    for name, source in meanings(units, means).items():
        image, holder = index.image_with_digest(source.name, source.digest), now.image_named(name)
        free = str(name) not in held or (image is not None and held[str(name)] in image.digests)
        if image is not None and free:
            assert holder is not None
            assert source.digest in holder.digests
        else:
            assert str(name) not in changed
    # What nobody asked for stays as it is, and so does what is kept.
    for name in {name for each in index.images for name in each.names} - changed:
        assert now.image_named(ref(name)).id == index.image_named(ref(name)).id
    # Nothing becomes unreachable.
    for before, each in zip(index.images, now.images, strict=True):
        assert before.repositories <= each.repositories
    # Done is done, but for what got a name in a repository in which it could not be found before.
    for move in moves(now, units, means, held):
        assert index.image_with_digest(move.source.name, move.source.digest) is None


@pytest.mark.parametrize(
    ("unit", "means", "expected"),
    [
        (bound(f"{X}:1"), wanted(x_1="A"), []),
        (bound(f"{X}:1"), wanted(x_1="B"), [f"{X}:1"]),
        (bound(f"{X}:2"), wanted(x_2="A"), [f"{X}:2"]),
        (bound(f"{X}:1"), wanted(x_2="A"), []),
        (bound(f"{X}:1", f"{Y}:1", f"{X}:1"), wanted(x_1="A"), [f"{Y}:1"]),
        (bound(f"{X}@{digest('A')}", f"{X}:1"), {}, []),
        (bound(f"{X}@{digest('B')}", f"{X}:1"), {}, [f"{X}:1"]),
        (bound(f"{X}@{digest('B')}"), {}, []),
    ],
)
def test_wrong_names(unit: BoundImage, means: Digests, expected: list[str]) -> None:
    assert [str(name) for name in wrong_names(StoreIndex([A1]), unit, means)] == expected


@given(indexes(), UNITS, DIGESTS)
def test_after_the_moves_names_are_right(index: StoreIndex, units: list[BoundImage], means: Digests) -> None:
    """After the moves only such names are wrong as two units cannot both have, or whose image is not there."""
    now = after(index, moves(index, units, means))
    sources = meanings(units, means)
    for unit in units:
        own = means.get(str(unit.reference)) or unit.reference.digest
        for name in wrong_names(now, unit, means):
            there = index.image_with_digest(sources[name].name, sources[name].digest) if name in sources else None
            assert there is None or sources[name].digest != own or name not in sources
        if not own:
            assert wrong_names(now, unit, means) == ()


# ---- where the digests come from ----


def test_digests_of_a_record_and_of_a_plan() -> None:
    record = Record(
        "key", None, (RecordedImage(f"{X}:1", digest("A"), "0" * 64), RecordedImage(f"{X}:1", "x", "0" * 64)), 0
    )
    assert digests_of(record) == {f"{X}:1": digest("A")}
    assert digests_of(None) == {}
    units = (bound(f"{X}:1"), bound(f"{X}:2"))
    plan = Plan((PlannedImage(ref(f"{X}:1"), digest("A"), units, True), PlannedImage(ref(f"{X}:1"), "x", units, True)))
    assert digests_of(plan) == {f"{X}:1": digest("A"), f"{X}:2": digest("A")}


def deployment(root: Path, serial: int, *roles: Role, **units: str) -> Deployment:
    """Unit name → its [Container] or [Image] section."""
    for name, text in units.items():
        file = root / "usr/share/containers/systemd" / name.replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        link = root / "usr/lib/bootc/bound-images.d" / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/usr/share/containers/systemd/{file.name}")
    return Deployment("default", "a" * 64, serial, root, frozenset(roles))


def test_the_names_that_the_running_system_holds(tmp_path: Path) -> None:
    running = deployment(
        tmp_path / "running",
        0,
        Role.BOOTED,
        a_container=f"[Container]\nImage={X}:1\n",
        b_container=f"[Container]\nImage={X}:2\n",
        c_image=f"[Image]\nImage={X}:3\nImageTag={Y}:3\n",
    )
    staged = deployment(tmp_path / "staged", 1, Role.STAGED)
    records = Records(tmp_path / "records")
    expected = {f"{X}:1": "", f"{X}:2": "", f"{X}:3": "", f"{Y}:3": ""}
    assert held_names(staged, (staged, running), records) == expected
    images = tuple(RecordedImage(f"{X}:{tag}", digest(word), "0" * 64) for tag, word in (("1", "A"), ("3", "C")))
    records.write(Record(running.key, None, images, 1))
    expected |= {f"{X}:1": digest("A"), f"{X}:3": digest("C"), f"{Y}:3": digest("C")}
    assert held_names(staged, (staged, running), records) == expected
    assert held_names(running, (staged, running), records) == {}
    assert held_names(staged, (staged,), records) == {}


@pytest.mark.parametrize(
    ("text", "images", "held", "expected"),
    [
        (f"{X}@{digest('B')}", [A1], {}, f"{X}@{digest('B')}"),
        (f"{X}:1", [], {}, f"{X}:1"),
        (f"{X}:1", [B], {}, f"{X}:1"),
        (f"{X}:1", [image("B", f"{X}:1")], {}, f"{X}:1"),
        (f"{X}:1", [A1], {}, f"{X}@{digest('I')}"),
        # what the running system binds is not given away while nothing has it
        (f"{X}:1", [], wanted(x_1="A"), f"{X}@{digest('I')}"),
        (f"{X}:1", [], {f"{X}:1": ""}, f"{X}@{digest('I')}"),
        (f"{X}:1", [], wanted(x_1="B"), f"{X}:1"),
        (f"{X}:1", [], wanted(x_2="A"), f"{X}:1"),
    ],
)
def test_the_name_to_fetch_under(text: str, images: list[StoredImage], held: Digests, expected: str) -> None:
    planned = PlannedImage(ref(text), digest("B"), (), False, index_digest=digest("I"))
    assert str(name_in_store(planned, StoreIndex(images), held)) == expected


# ---- carried out ----

BASE = files({"bin/tool": b"tool"})
ONE, TWO, THREE = (build([BASE, {"version": word}]) for word in (b"1", b"2", b"3"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


async def test_names_move_there_and_back(store: Store) -> None:
    put(store, ONE, f"{X}:1")
    put(store, TWO, f"{X}@{TWO.digest}")
    there, back = {f"{X}:1": TWO.digest}, {f"{X}:1": ONE.digest}
    units = [bound(f"{X}:1", f"{Y}:also")]
    assert await give_names(store, units, there)
    assert stored(store, f"{X}:1").id == stored(store, f"{Y}:also").id == TWO.image_id
    assert stored(store, f"{X}@{ONE.digest}").id == ONE.image_id
    assert str(kept_name(ref(f"{X}:1"), ONE.image_id)) in stored(store, f"{X}@{ONE.digest}").names
    signature = store.signature()
    assert not await give_names(store, units, there)
    assert store.signature() == signature
    assert await give_names(store, units, back)
    assert stored(store, f"{X}:1").id == stored(store, f"{Y}:also").id == ONE.image_id
    assert stored(store, f"{X}@{TWO.digest}").id == TWO.image_id
    for each in (ONE, TWO):
        image = stored(store, f"{X}@{each.digest}")
        assert store.big_data(image, f"manifest-{each.digest}") == each.manifest
        assert store.complete(image)


async def test_one_failure_does_not_stop_the_others(store: Store, tmp_path: Path) -> None:
    put(store, ONE, f"{X}:1", f"{X}:2")
    put(store, TWO, f"{X}:3")
    fails = tmp_path / "skopeo"
    fails.write_text(f'#!/bin/sh\ncase "$*" in *{X}:1*) echo no luck >&2; exit 1; esac\nexec skopeo "$@"\n')
    fails.chmod(0o755)
    store.skopeo = str(fails)
    with pytest.raises(LashdError, match="no luck"):
        await give_names(store, [bound(f"{X}:1"), bound(f"{X}:2")], {f"{X}:{tag}": TWO.digest for tag in "12"})
    assert stored(store, f"{X}:1").id == ONE.image_id
    assert stored(store, f"{X}:2").id == TWO.image_id


async def test_an_exit_status_is_not_trusted(store: Store) -> None:
    put(store, ONE, f"{X}:1")
    put(store, TWO, f"{X}:3")
    store.skopeo = "true"
    with pytest.raises(LashdError, match="still means something else") as caught:
        await give_names(store, [bound(f"{X}:1")], {f"{X}:1": TWO.digest})
    assert caught.value.name is ErrorName.HOST_COMMAND_FAILED
    assert caught.value.retryable


async def test_an_image_that_could_not_be_kept_keeps_its_name(store: Store, tmp_path: Path) -> None:
    put(store, ONE, f"{X}:1")
    put(store, TWO, f"{X}:3")
    fails = tmp_path / "skopeo"
    fails.write_text('#!/bin/sh\ncase "$*" in *:lashd-*) exit 1; esac\nexec skopeo "$@"\n')
    fails.chmod(0o755)
    store.skopeo = str(fails)
    with pytest.raises(LashdError):
        await give_names(store, [bound(f"{X}:1")], {f"{X}:1": TWO.digest})
    assert stored(store, f"{X}:1").id == ONE.image_id
