# SPDX-License-Identifier: Apache-2.0
"""What goes and what is left: nothing wanted goes, nothing unwanted stays, whatever the store is like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.steps.keep import Kept, Present, what_stays
from lashd.steps.leave import GRACE_SECONDS, Doomed, what_goes
from lashd.things.standing import Standing
from lashd.things.store_index import NOTHING_ID, StoredImage, StoredLayer, StoreIndex
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import (
    BadEntry,
    BoundImage,
    Deployment,
    Discovery,
    HostImage,
    Owed,
    Record,
    RecordedImage,
    Role,
)
from lashd.words.reference import parse_reference

A, B = "q.io/a", "q.io/b"
NOW = 1_700_000_000.0
OLD, YOUNG = NOW - 2 * GRACE_SECONDS, NOW - 1
OWED_SINCE = int(NOW - GRACE_SECONDS / 2)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def identity(number: int) -> str:
    return f"{number:064x}"


def layer(number: int, parent: int = 0, *, since: float = OLD, incomplete: bool = False, size: int = 10) -> StoredLayer:
    created = datetime.fromtimestamp(since, UTC).isoformat()
    below = identity(parent) if parent else None
    return StoredLayer(identity(number), below, None, 5, digest(number), size, None, incomplete, created)


def image(number: int, *names: str, top: int | None = None) -> StoredImage:
    """An image whose digest has its number, as its top layer has unless another one is named."""
    above = None if top == 0 else identity(top or number)
    return StoredImage(identity(number), digest(number), names, above, frozenset({digest(number)}))


def recorded(text: str, number: int) -> RecordedImage:
    return RecordedImage(text, digest(number), identity(number), (identity(number),))


def deployment(key: str, *roles: Role, host: HostImage | None = None) -> Deployment:
    return Deployment("os", key, 0, Path(key), frozenset(roles), image=host, digest=digest(999))


def bound(*texts: str) -> Discovery:
    found = [BoundImage(f"{number}.container", text, parse_reference(text)) for number, text in enumerate(texts)]
    return Discovery(tuple(found))


def keeps(
    *deployments: Deployment,
    binds: Mapping[str, Discovery] | None = None,
    records: Mapping[str, tuple[RecordedImage, ...]] | None = None,
    damaged: frozenset[str] = frozenset(),
    owed: str = "",
    owed_binds: tuple[str, ...] | None = None,
    unlisted: tuple[Deployment, ...] = (),
) -> Kept:
    """`binds` by the checksum of deployments, `records` and `damaged` by their key."""
    made = {key: Record(key, None, images, 1) for key, images in (records or {}).items()}
    due = Owed(owed, "os", owed, "", "", "boot", OWED_SINCE, binds=owed_binds) if owed else None
    present = Present(deployments, due, made, damaged, unlisted)
    return what_stays(present, read=lambda root, _: (binds or {}).get(str(root), Discovery()))


BOOTED = deployment("b", Role.BOOTED)
ROLLBACK = deployment("r", Role.ROLLBACK)
STAGED = deployment("s", Role.STAGED)
STORE = (
    image(1, f"{A}:1", f"{A}@{digest(1)}"),
    image(2, f"{A}:2"),
    image(3, f"{B}:1"),
)
LAYERS = (layer(9), layer(1, 9), layer(2, 9), layer(3))


def goes(
    kept: Kept,
    images: tuple[StoredImage, ...] = STORE,
    layers: tuple[StoredLayer, ...] = LAYERS,
    standing: Standing | None = None,
    arrived: Mapping[str, float] | None = None,
) -> Doomed:
    return what_goes(StoreIndex(images, layers), kept, standing or Standing(), now=NOW, arrived=arrived)


def numbers(found: tuple[StoredImage, ...] | tuple[StoredLayer, ...]) -> set[int]:
    return {int(each.id, 16) for each in found}


def names(doomed: Doomed) -> set[str]:
    return {str(name) for _, name in doomed.names}


# ---- what deployments keep ----


@pytest.mark.parametrize(
    ("kept", "gone", "layers"),
    [
        # Nothing is bound.
        (keeps(BOOTED), {1, 2, 3}, {9, 1, 2, 3}),
        # By tag, by digest (whatever name it has), by both, without a tag.
        (keeps(BOOTED, binds={"b": bound(f"{A}:1")}), {2, 3}, {2, 3}),
        (keeps(BOOTED, binds={"b": bound(f"{A}@{digest(2)}")}), {1, 3}, {1, 3}),
        (keeps(BOOTED, binds={"b": bound(f"{A}:other@{digest(2)}")}), {1, 3}, {1, 3}),
        (keeps(BOOTED, binds={"b": bound(f"docker://{A}:2")}), {1, 3}, {1, 3}),
        (keeps(BOOTED, binds={"b": bound(A)}), {1, 2, 3}, {9, 1, 2, 3}),
        # A digest counts in its own repository.
        (keeps(BOOTED, binds={"b": bound(f"{B}@{digest(2)}")}), {1, 2, 3}, {9, 1, 2, 3}),
        # Every deployment, whatever its role.
        (keeps(BOOTED, STAGED, binds={"b": bound(f"{A}:1"), "s": bound(f"{B}:1")}), {2}, {2}),
        (
            keeps(BOOTED, ROLLBACK, deployment("x"), binds={"r": bound(f"{A}@{digest(1)}"), "x": bound(f"{B}:1")}),
            {2},
            {2},
        ),
        (keeps(BOOTED, unlisted=(deployment("x"),), binds={"x": bound(f"{A}@{digest(1)}")}), {2, 3}, {2, 3}),
        # What is recorded, though the name means something else by now, and by index digest.
        (
            keeps(BOOTED, ROLLBACK, binds={"r": bound(f"{A}:2")}, records={"r.0": (recorded(f"{A}:2", 1),)}),
            {3},
            {3},
        ),
        (
            keeps(BOOTED, records={"b.0": (replace(recorded(f"{A}:9", 8), index_digest=digest(2)),)}),
            {1, 3},
            {1, 3},
        ),
        (keeps(BOOTED, records={"gone.0": (recorded(f"{A}:1", 1),)}), {1, 2, 3}, {9, 1, 2, 3}),
        # What is owed.
        (keeps(BOOTED, owed="o.0", records={"o.0": (recorded(f"{A}:1", 1),)}), {2, 3}, {2, 3}),
        # Without a record, by the names that were noted when it was staged, or not at all.
        (keeps(BOOTED, owed="o.0", owed_binds=(f"{A}:1", f"{B}:7")), {2, 3}, {2, 3}),
        (keeps(BOOTED, owed="o.0", owed_binds=(f"{A}:7",), damaged=frozenset({"o.0"})), {3}, {3}),
        (keeps(BOOTED, owed="o.0", owed_binds=()), {1, 2, 3}, {9, 1, 2, 3}),
        (keeps(BOOTED, owed="o.0"), {1, 2, 3}, {9, 1, 2, 3}),
        # The host image, where bootc keeps it in this store.
        (keeps(deployment("b", Role.BOOTED, host=HostImage(f"{B}:1"))), {1, 2}, {9, 1, 2}),
        (keeps(deployment("b", Role.BOOTED, host=HostImage("/some/dir", "oci"))), {1, 2, 3}, {9, 1, 2, 3}),
        # Nobody knows what a rollback that was never seen booted ran with: any image of that repository, not others.
        (keeps(BOOTED, ROLLBACK, binds={"r": bound(f"{A}:7")}), {3}, {3}),
        (keeps(BOOTED, unlisted=(deployment("x"),), binds={"x": bound(f"{A}:7")}), {3}, {3}),
        (keeps(BOOTED, STAGED, binds={"s": bound(f"{A}:7")}), {1, 2, 3}, {9, 1, 2, 3}),
        (keeps(BOOTED, binds={"b": bound(f"{A}:7")}), {1, 2, 3}, {9, 1, 2, 3}),
        (keeps(BOOTED, binds={"b": bound(f"{A}:7")}, damaged=frozenset({"b.0"})), {3}, {3}),
        (keeps(BOOTED, binds={"b": bound(f"{A}:1")}, damaged=frozenset({"gone.0"})), {2, 3}, {2, 3}),
        # One bad entry keeps nobody from anything; the others count.
        (
            keeps(BOOTED, binds={"b": replace(bound(f"{A}:1"), bad=(BadEntry("x.container", "It is bad."),))}),
            {2, 3},
            {2, 3},
        ),
    ],
)
def test_images_and_layers_that_go(kept: Kept, gone: set[int], layers: set[int]) -> None:
    doomed = goes(kept)
    assert (numbers(doomed.images), numbers(doomed.layers)) == (gone, layers)
    assert doomed.bytes == 10 * len(layers)
    assert len(doomed.kept_because) >= 3 - len(gone)
    assert all(why.endswith(".") and why[0].isupper() for why in doomed.kept_because.values())


def unreadable(root: Path, merges: Path | None) -> Discovery:
    raise LashdError(ErrorName.BOUND_IMAGE_INVALID, "The root cannot be read.")


@pytest.mark.parametrize(
    "kept",
    [
        keeps(),
        keeps(unlisted=(deployment("x"),)),
        what_stays(Present((BOOTED,), None, {}), read=unreadable),
        keeps(BOOTED, binds={"b": Discovery(bad=(BadEntry("bound-images.d", "It has too many entries."),))}),
        keeps(BOOTED, owed="o.0", owed_binds=("not a reference",)),
        keeps(BOOTED, records={"b.0": (recorded("not a reference", 1),)}),
        keeps(deployment("b", Role.BOOTED, host=HostImage("0" * 64, "containers-storage"))),
    ],
)
def test_in_doubt_everything_stays(kept: Kept) -> None:
    doomed = goes(kept)
    assert doomed == Doomed(kept_because=doomed.kept_because)
    assert set(doomed.kept_because.values()) == {kept.doubt}
    assert kept.doubt.endswith(".")


def test_what_came_since_something_was_staged_that_nobody_could_look_at() -> None:
    """Nothing older waits for it, so that cleaning up never does."""
    kept = keeps(BOOTED, owed="o.0")
    between = OWED_SINCE - GRACE_SECONDS + 1  # out of the grace that all have
    assert between < NOW - GRACE_SECONDS
    layers = (layer(9), layer(1, 9), layer(2, 9), layer(3, since=between), layer(4, since=between), layer(5))
    doomed = goes(kept, layers=layers, arrived={identity(1): OLD, identity(2): between, identity(3): between})
    assert (numbers(doomed.images), numbers(doomed.layers)) == ({1}, {1, 5})
    assert "deployment o.0" in doomed.kept_because[f"{A}:2"]
    assert "deployment o.0" in doomed.kept_because[identity(4)]
    # Parts of what is to come back and is not complete.
    doomed = goes(keeps(BOOTED, owed="o.0", owed_binds=(f"{B}:7",)), layers=layers)
    assert 5 not in numbers(doomed.layers)
    assert not doomed.names


def test_a_recorded_image_stays_also_when_it_has_lost_its_names() -> None:
    lost = (image(1), image(2))
    assert numbers(goes(keeps(BOOTED, records={"b.0": (recorded(f"{A}:1", 1),)}), lost).images) == {2}


def test_further_names_of_a_unit_count() -> None:
    one = BoundImage("a.container", A, parse_reference(f"{A}:2"), names=(parse_reference(f"{B}:1"),))
    assert numbers(goes(keeps(BOOTED, binds={"b": Discovery((one,))})).images) == {1}


# ---- names ----

HELD = f"{A}:lashd-{'0' * 31}1"


@pytest.mark.parametrize(
    ("has", "binds", "record", "gone"),
    [
        # A tag that nobody binds, beside one that somebody does.
        ((f"{A}:1", f"{A}:old"), f"{A}:1", None, {f"{A}:old"}),
        ((f"{A}:1", f"{B}:1"), f"{A}:1", None, {f"{B}:1"}),
        ((f"{A}:1", f"{A}:2"), f"{A}:2", 1, {f"{A}:1"}),
        # The tag that kept it in reach, once it has its own again, or a name with its digest.
        ((f"{A}:1", HELD), f"{A}:1", 1, {HELD}),
        ((f"{A}@{digest(1)}", HELD), f"{A}:1", 1, {HELD}),
        # Without another name there it could not be found by its digest.
        ((HELD,), f"{A}:1", 1, set()),
        ((f"{A}:x", HELD), f"{A}:1", 1, {f"{A}:x"}),
        ((f"{B}:1", f"{A}:x"), f"{A}@{digest(1)}", None, {f"{B}:1"}),
        ((f"{B}@{digest(1)}", f"{A}:x", f"{A}:y"), f"{A}@{digest(1)}", None, {f"{A}:y"}),
        ((f"{A}:x",), f"{A}:tag@{digest(1)}", None, set()),
        # What skopeo has no word for stays.
        ((f"{A}:1", "UPPER:1", "q.io/c@sha256:1"), f"{A}:1", None, set()),
    ],
)
def test_names_that_go(has: tuple[str, ...], binds: str, record: int | None, gone: set[str]) -> None:
    records = {"b.0": (recorded(binds, record),)} if record else None
    doomed = goes(keeps(BOOTED, binds={"b": bound(binds)}, records=records), (image(1, *has),), (layer(1),))
    assert doomed.images == ()
    assert names(doomed) == gone


def test_a_name_that_stays_without_need_is_told() -> None:
    stray = f"{B}@{digest(1)}"
    doomed = goes(keeps(BOOTED, binds={"b": bound(f"{A}:1")}), (image(1, f"{A}:1", stray),), (layer(1),))
    assert "goes only with its image" in doomed.kept_because[stray]


def test_an_image_that_stays_for_another_reason_keeps_its_names() -> None:
    one = image(1, f"{A}:1", f"{A}:2")
    standing = Standing({identity(1): "the container web"})
    doomed = goes(keeps(BOOTED), (one,), (layer(1),), standing)
    assert (doomed.images, doomed.names) == ((), ())
    assert doomed.kept_because == {f"{A}:1": "It is used by the container web."}


# ---- in use ----


def test_layers_in_use_keep_one_image_that_holds_them() -> None:
    images = (image(1, f"{A}:1"), image(2, f"{A}:2"), image(9, f"{A}:base"))
    standing = Standing(layers={identity(9): "a mount", identity(77): "another store"})
    assert numbers(goes(keeps(BOOTED), images, standing=standing).images) == {1, 2}
    assert numbers(goes(keeps(BOOTED), images[:2], standing=standing).images) == {2}
    kept = keeps(BOOTED, binds={"b": bound(f"{A}:2")})
    doomed = goes(kept, images, standing=standing)
    assert numbers(doomed.images) == {1, 9}, "a bound image holds it already"
    # A mount of a whole image keeps that one, not any other that has its lowest layer as well.
    standing = Standing(layers={identity(9): "a mount", identity(2): "a mount"})
    assert numbers(goes(keeps(BOOTED), images, standing=standing).images) == {1, 9}


# ---- layers without an image, and what is new ----


@pytest.mark.parametrize(
    ("layers", "gone"),
    [
        ((layer(5), layer(6, 5)), {5, 6}),
        ((layer(5), layer(6, 5, since=YOUNG)), set()),
        ((layer(5, since=YOUNG), layer(6)), {6}),
        ((layer(5, since=NOW + 9999),), set()),
        ((layer(5, incomplete=True, since=YOUNG),), set()),
        ((layer(5, incomplete=True),), {5}),
        ((replace(layer(5), created=""),), set()),
        # skopeo removes a layer with all that it stands on.
        ((layer(5, since=YOUNG), layer(6, 5)), set()),
        # On an image that goes, and on one that stays.
        ((layer(3, since=YOUNG), layer(5, 3)), {3, 5}),
        ((layer(3), layer(5, 3)), {3, 5}),
        ((layer(3), layer(5, 3, since=YOUNG)), set()),
        ((layer(1), layer(5, 1)), {5}),
    ],
)
def test_layers_without_an_image(layers: tuple[StoredLayer, ...], gone: set[int]) -> None:
    have = {each.id for each in layers}
    images = tuple(one for one in (image(1, f"{A}:1"), image(3, f"{B}:1")) if one.top_layer in have)
    doomed = goes(keeps(BOOTED, binds={"b": bound(f"{A}:1")}), images, layers)
    assert numbers(doomed.layers) == gone


def test_parts_of_what_is_on_its_way_stay() -> None:
    orphan = (layer(5),)
    kept = keeps(BOOTED, STAGED, binds={"s": bound(f"{A}:1")})
    assert numbers(goes(kept, (), orphan).layers) == set()
    assert numbers(goes(kept, (image(1, f"{A}:1"),), (*orphan, layer(1))).layers) == {5}
    # What the booted one lacks was not fetched in part just now.
    assert numbers(goes(keeps(BOOTED, binds={"b": bound(f"{A}:1")}), (), orphan).layers) == {5}
    kept = keeps(BOOTED, records={"b.0": (recorded(f"{A}:1", 5),)})
    assert numbers(goes(kept, (), orphan).layers) == set(), "a layer of an image that must be fetched again"
    standing = Standing(layers={identity(5): "a mount"})
    assert numbers(goes(keeps(BOOTED), (), (*orphan, layer(6, 5)), standing).layers) == set()


def test_what_nobody_recorded_stays_while_it_is_new() -> None:
    """Somebody may fetch images before the deployment that binds them is there to be seen."""
    one = (image(1, f"{A}:1"),)
    new = {identity(1): YOUNG}
    assert numbers(goes(keeps(BOOTED), one, (layer(1),), arrived=new).images) == set()
    assert numbers(goes(keeps(BOOTED), one, (layer(1),), arrived={identity(1): OLD}).images) == {1}
    gone = keeps(BOOTED, records={"gone.0": (recorded(f"{A}:1", 1),)})
    assert numbers(goes(gone, one, (layer(1, since=YOUNG),), arrived=new).images) == {1}
    assert numbers(goes(gone, (), (layer(1, since=YOUNG),), arrived=new).layers) == {1}, "killed while it was removed"


def test_what_was_made_up_to_be_removed_goes_at_once_and_means_nothing() -> None:
    left = StoredImage(NOTHING_ID, digest(4), (f"{A}:1",), None, frozenset({digest(4)}))
    kept = keeps(BOOTED, binds={"b": bound(f"{A}:1", f"{A}@{digest(4)}")})
    doomed = goes(kept, (left,), (), Standing({NOTHING_ID: "x"}), {NOTHING_ID: YOUNG})
    assert doomed.images == (left,)


# ---- any store, any deployments ----

NUMBERS = range(1, 7)
TAGS = ("1", "2", "lashd-x")


@dataclass(frozen=True)
class Case:
    index: StoreIndex
    binds: dict[str, Discovery]
    records: dict[str, tuple[RecordedImage, ...]]
    deployments: tuple[Deployment, ...]
    standing: Standing


@st.composite
def cases(draw: st.DrawFn) -> Case:
    parents = {number: draw(st.integers(0, number - 1)) for number in NUMBERS}
    layers = [layer(number, parents[number], since=draw(st.sampled_from((OLD, OLD, YOUNG)))) for number in NUMBERS]
    some = draw(st.lists(st.sampled_from(NUMBERS), unique=True, max_size=5))
    free = [f"{repository}:{tag}" for repository in (A, B) for tag in TAGS]
    images = []
    for number in some:
        own = draw(st.lists(st.sampled_from(free), unique=True, max_size=3)) if free else []
        free = [name for name in free if name not in own]
        own += [f"{home}@{digest(number)}" for home in (A, B) if draw(st.booleans())]
        images.append(image(number, *own, top=draw(st.sampled_from(NUMBERS))))
    texts = st.sampled_from(
        [f"{home}:{tag}" for home in (A, B) for tag in TAGS[:2]]
        + [f"{home}@{digest(number)}" for home in (A, B) for number in NUMBERS]
    )
    everything = (BOOTED, *draw(st.lists(st.sampled_from([STAGED, ROLLBACK]), unique=True)))
    binds, records = {}, {}
    for each in everything:
        wanted = draw(st.lists(texts, unique=True, max_size=3))
        binds[each.checksum] = bound(*wanted)
        if draw(st.booleans()):
            what = ((text, int(text[-64:], 16) if "@" in text else draw(st.sampled_from(NUMBERS))) for text in wanted)
            records[each.key] = tuple(recorded(text, number) for text, number in what)
    used = draw(st.lists(st.sampled_from(NUMBERS), unique=True, max_size=1))
    standing = Standing({identity(number): "x" for number in used}, {identity(number): "x" for number in used[:1]})
    return Case(StoreIndex(images, layers), binds, records, everything, standing)


def carry_out(index: StoreIndex, doomed: Doomed) -> StoreIndex:
    """As skopeo does it: an image goes with its layers, as far as no other image and no layer stands on them."""
    images, layers = list(index.images), dict(index.layers)

    def remove(top: str | None) -> None:
        while top is not None and top in layers:
            standing = {each for one in images for each in index.known_chain(one.top_layer)}
            if top in standing or any(each.parent == top for each in layers.values()):
                return
            top = layers.pop(top).parent

    for one in doomed.images:
        images.remove(one)
        remove(one.top_layer)
    for each in doomed.layers:
        for top in StoreIndex(images, layers.values()).orphans_on(frozenset({each.id})):
            remove(top.id)
    dropped = names(doomed)
    left = [replace(one, names=tuple(name for name in one.names if name not in dropped)) for one in images]
    return StoreIndex(left, layers.values())


@given(cases())
def test_all_that_is_kept_is_complete_and_all_else_is_gone(case: Case) -> None:
    kept = keeps(*case.deployments, binds=case.binds, records=case.records)
    doomed = what_goes(case.index, kept, case.standing, now=NOW)
    after = carry_out(case.index, doomed)

    # Just what was announced, and it stays like this.
    assert set(after.layers) == set(case.index.layers) - {each.id for each in doomed.layers}
    again = what_goes(after, kept, case.standing, now=NOW)
    assert again == Doomed(kept_because=again.kept_because)

    # Nothing wanted is gone: what each link means now, and what is recorded, wherever it was to be found.
    reasons: set[str] = set()
    by_id: set[str] = set()  # kept with whatever names it has
    for each in case.deployments:
        entries = case.records.get(each.key, ())
        for one in case.binds[each.checksum].images:
            before = case.index.image_named(one.reference)
            now = after.image_named(one.reference)
            assert (before.id if before else None) == (now.id if now else None)
            reasons |= {before.id} if before else set()
            unclear = Role.ROLLBACK in each.roles and not entries and not one.reference.pinned
            reasons |= {other.id for other in case.index.images if unclear and one.reference.name in other.repositories}
        for entry in entries:
            home = parse_reference(entry.reference).name
            before, now = case.index.image_with_digest(home, entry.digest), after.image_with_digest(home, entry.digest)
            assert (before.id if before else None) == (now.id if now else None)
            reasons |= {before.id} if before else set()
            by_id |= {entry.image_id}
    for one in after.images:
        assert after.chain(one) == case.index.chain(one) is not None
    assert all(used in after.layers for used in case.standing.layers)

    # Nothing unwanted is left: each image has a reason, and each name.
    holding = [one for one in after.images if one.id not in reasons | by_id | set(case.standing.images)]
    assert len(holding) <= len(case.standing.layers)
    meant = {str(one.reference) for found in case.binds.values() for one in found.images}
    for one in after.images:
        tags = [name for name in one.names if "@" not in name and name not in meant]
        if one.id in reasons and one.id not in case.standing.images and not unclear_names(case, one):
            for name in tags:
                others = [other for other in one.names if other != name]
                home = str(parse_reference(name).name)
                assert not any(parse_reference(other).name == home for other in others), (name, others)


def unclear_names(case: Case, one: StoredImage) -> bool:
    """Whether an image keeps its names because it may be what an unrecorded rollback ran with."""
    floating = {
        each.reference.name
        for each in case.binds.get("r", Discovery()).images
        if not each.reference.pinned and "r.0" not in case.records
    }
    return bool(one.repositories & floating)
