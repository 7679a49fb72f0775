# SPDX-License-Identifier: Apache-2.0
"""Verification reads the store: what is not as it was fetched is found, named, taken out, and can be fetched again."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lashd.steps.examine import examine
from lashd.steps.verify import classify, damaged, mend, repair, verify
from lashd.things import layers as layering
from lashd.things.store import Store
from lashd.things.store_index import big_data_name
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, ImageState, PlannedImage, Record, RecordedImage
from lashd.words.progress import Event, ItemProgress, Stage, StageStarted
from lashd.words.reference import parse_reference
from tests.support.images import Image, build, build_index, files
from tests.support.stores import edit_index, layer_file, make_store, put, remove_layer_directory, stored

AGENT, OTHER = "quay.io/edge/agent", "quay.io/edge/other"
BASE = files({"bin/tool": b"tool" * 100})
ONE = build([BASE, {"etc/version": b"1"}])
TWO = build([BASE, {"etc/version": b"2"}])
LONE = build([{"lone": b"lone"}])

Harm = Callable[[Store], object]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def bound(text: str, unit: str = "agent.container") -> BoundImage:
    return BoundImage(unit, text, parse_reference(text))


def planned(image: Image, text: str, *more: BoundImage) -> PlannedImage:
    one = bound(text)
    return PlannedImage(one.reference, image.digest, (one, *more), present=True)


def layer_ids(store: Store, name: str) -> tuple[str, ...]:
    chain = store.index().chain(stored(store, name))
    assert chain is not None
    return tuple(layer.id for layer in chain)


def record(image: Image, text: str) -> Record:
    return Record("key", None, (RecordedImage(text, image.digest, image.image_id),), 1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def harm_byte(store: Store) -> None:
    flip(layer_file(store, f"{AGENT}:v1", "etc/version"))


def harm_base(store: Store) -> None:
    flip(layer_file(store, f"{AGENT}:v1", "bin/tool"))


def harm_empty(store: Store) -> None:
    layer_file(store, f"{AGENT}:v1", "bin/tool").write_bytes(b"")


def harm_directory(store: Store) -> None:
    remove_layer_directory(store, f"{AGENT}:v1", 1)


def harm_top_directory(store: Store) -> None:
    remove_layer_directory(store, f"{AGENT}:v1", 0)


def harm_incomplete(store: Store) -> None:
    top, _ = layer_ids(store, f"{AGENT}:v1")
    flags = {"incomplete": True}
    edit_index(store, "layers", lambda all: [each | ({"flags": flags} if each["id"] == top else {}) for each in all])


def harm_parent(store: Store) -> None:
    _, base = layer_ids(store, f"{AGENT}:v1")
    edit_index(store, "layers", lambda all: [each for each in all if each["id"] != base])


def harm_big_data(key: str, change: Callable[[Path], object]) -> Harm:
    def act(store: Store) -> None:
        change(store.root / "overlay-images" / stored(store, f"{AGENT}:v1").id / big_data_name(key))

    return act


# ---- classify ----


@pytest.mark.parametrize(
    ("held", "text", "recorded", "vouched", "named", "state"),
    [
        ({"v1": ONE}, f"{AGENT}:v1", None, True, False, ImageState.PRESENT),
        ({"v1": ONE}, f"{AGENT}:v1", None, False, False, ImageState.UNVERIFIED),
        ({"v1": ONE}, f"{AGENT}:v2", None, True, False, ImageState.MISSING),
        ({"v1": ONE}, f"{OTHER}:v1", None, True, False, ImageState.MISSING),
        ({"v1": ONE}, f"{AGENT}@{ONE.digest}", None, True, False, ImageState.PRESENT),
        ({"v1": ONE}, f"{AGENT}@{TWO.digest}", None, True, False, ImageState.MISSING),
        ({"v1": ONE}, f"{AGENT}:v1", ONE, True, True, ImageState.PRESENT),
        # fetched by digest for the next boot; the name still means what the booted system runs
        ({"v1": ONE, TWO.digest: TWO}, f"{AGENT}:v1", TWO, True, False, ImageState.PRESENT),
        ({"v1": ONE, TWO.digest: TWO}, f"{AGENT}:v1", TWO, True, True, ImageState.DRIFTED),
        # the name moved on, and what is recorded is not there any more
        ({"v1": ONE}, f"{AGENT}:v1", TWO, True, False, ImageState.DRIFTED),
        ({"other": ONE}, f"{AGENT}:v1", TWO, True, False, ImageState.MISSING),
        # there, and without the name: no container would find it, but it gets that at boot
        ({ONE.digest: ONE}, f"{AGENT}:v1", ONE, True, False, ImageState.PRESENT),
        ({ONE.digest: ONE}, f"{AGENT}:v1", ONE, True, True, ImageState.DRIFTED),
        ({ONE.digest: ONE}, f"{AGENT}:v1", None, True, False, ImageState.MISSING),
    ],
)
def test_the_state_of_a_bound_image(
    held: dict[str, Image],
    text: str,
    recorded: Image | None,
    vouched: bool,
    named: bool,
    state: ImageState,
    store: Store,
) -> None:
    for tag, image in held.items():
        put(store, image, f"{AGENT}{'@' if tag.startswith('sha256:') else ':'}{tag}")
    layers = frozenset(store.index().layers) if vouched else frozenset()
    found, image = classify(bound(text), recorded and record(recorded, text), store, layers, named=named)
    assert found is state
    assert (image is None) is (state is ImageState.MISSING)


@pytest.mark.parametrize("harm", [harm_directory, harm_top_directory, harm_incomplete, harm_parent])
def test_an_image_without_a_layer_is_incomplete(harm: Harm, store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1")
    layers = frozenset(store.index().layers)
    harm(store)
    assert classify(bound(f"{AGENT}:v1"), None, store, layers)[0] is ImageState.INCOMPLETE


def test_one_layer_that_nobody_vouches_for_is_enough(store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1")
    top, base = layer_ids(store, f"{AGENT}:v1")
    for vouched in ({top}, {base}):
        assert classify(bound(f"{AGENT}:v1"), None, store, frozenset(vouched))[0] is ImageState.UNVERIFIED


# ---- verify ----


async def test_what_is_sound_is_told_for_the_record(store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1", f"{AGENT}:latest")
    put(store, LONE, f"{OTHER}@{LONE.digest}")
    wanted = [
        planned(ONE, f"{AGENT}:v1", bound(f"{AGENT}:latest", "late.container"), bound(f"{AGENT}:v1", "also.image")),
        planned(LONE, f"{OTHER}@{LONE.digest}"),
    ]
    events: list[Event] = []
    recorded = await verify(wanted, store, frozenset(), report=events.append)
    one = layer_ids(store, f"{AGENT}:v1")
    assert [(each.reference, each.digest, each.image_id, each.layers, each.units) for each in recorded] == [
        (f"{AGENT}:v1", ONE.digest, ONE.image_id, one, ("agent.container", "also.image")),
        (f"{AGENT}:latest", ONE.digest, ONE.image_id, one, ("late.container",)),
        (
            f"{OTHER}@{LONE.digest}",
            LONE.digest,
            LONE.image_id,
            layer_ids(store, f"{OTHER}@{LONE.digest}"),
            ("agent.container",),
        ),
    ]
    layers = store.index().layers
    assert all(each.stamps == tuple(layers[layer].created for layer in each.layers) for each in recorded)
    assert all(all(each.stamps) for each in recorded)
    assert events[0] == StageStarted(Stage.VERIFY, items_total=2)
    assert events[1:] == [ItemProgress(str(each.reference), "done") for each in wanted]


async def test_an_image_of_several_platforms_is_verified_by_its_own_manifest(store: Store) -> None:
    index = build_index([ONE, build([{"other": b"1"}], arch="s390x")])
    text = f"{AGENT}@{index.digest}"
    put(store, index, text)
    wanted = PlannedImage(parse_reference(text), ONE.digest, (bound(text),), present=True, index_digest=index.digest)
    (recorded,) = await verify([wanted], store, frozenset())
    assert (recorded.digest, recorded.index_digest) == (ONE.digest, index.digest)
    vouched = frozenset(recorded.layers)
    assert classify(bound(text), Record("key", None, (recorded,), 1), store, vouched)[0] is ImageState.PRESENT


async def test_a_name_that_was_moved_is_still_verified(store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1", f"{AGENT}@{ONE.digest}")
    put(store, TWO, f"{AGENT}@{TWO.digest}")
    await store.give_name(parse_reference(f"{AGENT}@{TWO.digest}"), parse_reference(f"{AGENT}:v1"))
    assert len(await verify([planned(TWO, f"{AGENT}:v1")], store, frozenset(), deep=True)) == 1


DAMAGE = {
    "byte": harm_byte,
    "base": harm_base,
    "empty": harm_empty,
    "directory": harm_directory,
    "top directory": harm_top_directory,
    "incomplete": harm_incomplete,
    "parent": harm_parent,
    "manifest empty": harm_big_data(f"manifest-{ONE.digest}", lambda path: path.write_bytes(b"")),
    "manifest changed": harm_big_data(f"manifest-{ONE.digest}", flip),
    "configuration gone": harm_big_data(ONE.config_digest, Path.unlink),
    "configuration changed": harm_big_data(ONE.config_digest, flip),
}


@pytest.mark.parametrize("what", DAMAGE)
async def test_damage_is_found_taken_out_and_fetched_again(what: str, store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1")
    put(store, TWO, f"{AGENT}:v2")
    put(store, LONE, f"{OTHER}:v1")
    wanted = [planned(ONE, f"{AGENT}:v1"), planned(LONE, f"{OTHER}:v1")]
    DAMAGE[what](store)
    with pytest.raises(LashdError) as caught:
        await verify(wanted, store, frozenset())
    assert caught.value.name is ErrorName.STORE_DAMAGED
    assert f"{AGENT}:v1" in caught.value.message
    assert f"{OTHER}:v1" not in caught.value.message, "only what fails is named"
    assert await repair(wanted, store)
    assert store.index().image_with_digest(AGENT, ONE.digest) is None
    assert stored(store, f"{OTHER}:v1"), "what is sound stays"
    put(store, ONE, f"{AGENT}:v1")
    assert len(await verify(wanted, store, frozenset(), deep=True)) == 2
    assert await repair(wanted, store) == ()


async def test_without_repair_a_pull_would_take_the_damage_over(store: Store) -> None:
    """Why what stands on a damaged layer must go: skopeo asks the index whether it has a layer, not the disk."""
    put(store, ONE, f"{AGENT}:v1")
    harm_base(store)
    put(store, ONE, f"{AGENT}:v1")
    with pytest.raises(LashdError):
        await verify([planned(ONE, f"{AGENT}:v1")], store, frozenset())


async def test_everything_that_stands_on_a_damaged_layer_is_taken_out(store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1")
    put(store, TWO, f"{AGENT}:v2")
    put(store, LONE, f"{OTHER}:v1")
    harm_base(store)
    wanted = [planned(ONE, f"{AGENT}:v1")]
    findings = await examine(wanted, store, frozenset())
    assert {image.id for image in damaged(findings, store.index())} == {ONE.image_id, TWO.image_id}
    assert len(await repair(wanted, store)) == 2
    assert {image.id for image in store.index().images} == {LONE.image_id}
    assert set(store.index().layers) == set(layer_ids(store, f"{OTHER}:v1"))


async def test_what_is_mounted_stays_whole_for_whoever_uses_it(store: Store, tmp_path: Path) -> None:
    put(store, ONE, f"{AGENT}:v1")
    put(store, LONE, f"{OTHER}:v1")
    lowers = [store.root / "overlay" / layer / "diff" for layer in layer_ids(store, f"{AGENT}:v1")]
    names = sorted(str(path.relative_to(lower)) for lower in lowers for path in lower.rglob("*") if path.is_file())
    (tmp_path / "container").mkdir()
    script = (
        'mount -t overlay o -o "lowerdir=$0" "$1" && while read -r name; do sha256sum < "$1/$name" || echo gone; done'
    )
    container = subprocess.Popen(
        ["unshare", "--mount", "--", "sh", "-c", script, ":".join(map(str, lowers)), tmp_path / "container"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def seen(name: str) -> str:
        assert container.stdin is not None
        assert container.stdout is not None
        container.stdin.write(f"{name}\n")
        container.stdin.flush()
        return container.stdout.readline()

    try:
        harm_byte(store)
        # One file is known to the container, the others it has never looked at.
        first = seen(names[0])
        contents = {name: next(each / name for each in lowers if (each / name).exists()).read_bytes() for name in names}
        assert await repair([planned(ONE, f"{AGENT}:v1")], store)
        assert not any(lower.exists() for lower in lowers)
        put(store, ONE, f"{AGENT}:v1")
        assert seen(names[0]) == first
        for name, content in contents.items():
            assert seen(name).split()[0] == hashlib.sha256(content).hexdigest()
        await verify([planned(ONE, f"{AGENT}:v1")], store, frozenset(), deep=True)
        aside = store.root / "lashd-aside"
        (boot,) = aside.iterdir()
        await store.drop_set_aside()
        assert boot.exists(), "it may be mounted"
        boot.rename(aside / "an-earlier-boot")
        await store.drop_set_aside()
        assert list(aside.iterdir()) == []
    finally:
        container.communicate(timeout=10)
    # What nobody uses is just removed.
    harm_byte(store)
    assert await repair([planned(ONE, f"{AGENT}:v1")], store)
    assert list(aside.iterdir()) == []


async def test_what_is_only_missing_is_not_damaged(store: Store) -> None:
    put(store, LONE, f"{OTHER}:v1")
    wanted = [planned(ONE, f"{AGENT}:v1"), planned(TWO, f"{AGENT}:v2"), planned(LONE, f"{OTHER}:v1")]
    with pytest.raises(LashdError) as caught:
        await verify(wanted, store, frozenset())
    assert caught.value.name is ErrorName.BOUND_IMAGE_MISSING
    assert all(name in caught.value.message for name in (f"{AGENT}:v1", f"{AGENT}:v2"))
    assert await repair(wanted, store) == ()


async def test_every_image_that_fails_is_named(store: Store) -> None:
    await store.ensure()
    wanted = [planned(ONE, f"{AGENT}:v{number}") for number in range(30)]
    with pytest.raises(LashdError) as caught:
        await verify(wanted, store, frozenset())
    assert all(f"{AGENT}:v{number}" in caught.value.message for number in range(30))


async def test_an_image_must_be_there_under_each_name_that_units_use(store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1")
    with pytest.raises(LashdError, match="not in the store"):
        await verify([planned(ONE, f"{AGENT}:v1", bound(f"{OTHER}:v1"))], store, frozenset())


@pytest.mark.parametrize("trusted", ["vouched", "fresh", "deep", "neither"])
async def test_only_what_nobody_vouches_for_is_read(trusted: str, store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1")
    harm_byte(store)
    layers = frozenset(store.index().layers)
    wanted = [planned(ONE, f"{AGENT}:v1")]
    vouched = layers if trusted in ("vouched", "deep") else frozenset()
    fresh = layers if trusted == "fresh" else frozenset()
    verifying = verify(wanted, store, vouched, fresh=fresh, deep=trusted == "deep")
    if trusted in ("vouched", "fresh"):
        assert await verifying
    else:
        with pytest.raises(LashdError):
            await verifying


async def test_what_cannot_be_read_again_is_trusted_only_if_it_was(store: Store) -> None:
    put(store, LONE, f"{OTHER}:v1")
    (layer,) = layer_ids(store, f"{OTHER}:v1")
    (store.root / "overlay-layers" / f"{layer}.tar-split.gz").unlink()
    wanted = [planned(LONE, f"{OTHER}:v1")]
    assert await verify(wanted, store, frozenset({layer}), deep=True)
    assert await verify(wanted, store, frozenset(), fresh=frozenset({layer}), deep=True)
    with pytest.raises(LashdError, match="cannot be verified"):
        await verify(wanted, store, frozenset())


async def test_the_store_is_synced_before_anything_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, ONE, f"{AGENT}:v1")
    synced: list[Path] = []

    async def sync(self: Store) -> None:
        synced.append(self.root)

    monkeypatch.setattr(Store, "sync", sync)
    await verify([planned(ONE, f"{AGENT}:v1")], store, frozenset())
    assert synced == [store.root]
    with pytest.raises(LashdError):
        await verify([planned(TWO, f"{AGENT}:v2")], store, frozenset())
    assert synced == [store.root]


async def test_an_image_that_is_removed_meanwhile_is_noticed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, ONE, f"{AGENT}:v1")
    real = Store.sync

    async def sync(self: Store) -> None:
        await real(self)
        await self.remove(stored(self, f"{AGENT}:v1"))

    monkeypatch.setattr(Store, "sync", sync)
    with pytest.raises(LashdError) as caught:
        await verify([planned(ONE, f"{AGENT}:v1")], store, frozenset())
    assert caught.value.name is ErrorName.BOUND_IMAGE_MISSING


async def test_an_image_that_is_fetched_again_meanwhile_is_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, ONE, f"{AGENT}:v1")
    real, reads, syncs = layering.read_layers, 0, 0
    real_sync = Store.sync

    async def counted(*arguments):  # type: ignore[no-untyped-def]
        nonlocal reads
        reads += 1
        return await real(*arguments)

    async def sync(self: Store) -> None:
        nonlocal syncs
        syncs += 1
        await real_sync(self)
        if syncs == 1:
            await self.remove(stored(self, f"{AGENT}:v1"))
            put(self, ONE, f"{AGENT}:v1")

    monkeypatch.setattr(layering, "read_layers", counted)
    monkeypatch.setattr(Store, "sync", sync)
    (recorded,) = await verify([planned(ONE, f"{AGENT}:v1")], store, frozenset())
    assert (reads, syncs) == (2, 2)
    assert recorded.stamps == tuple(store.index().layers[layer].created for layer in recorded.layers)


async def test_nothing_wanted_is_nothing_to_do(store: Store) -> None:
    await store.ensure()
    assert await verify([], store, frozenset()) == ()


# ---- mend ----


@pytest.mark.parametrize("name", ["images", "layers"])
async def test_a_truncated_index_is_found_and_mended(name: str, store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1")
    path = store.root / f"overlay-{name}/{name}.json"
    path.write_bytes(path.read_bytes()[:-20])
    wanted = [planned(ONE, f"{AGENT}:v1")]
    with pytest.raises(LashdError) as caught:
        await verify(wanted, store, frozenset())
    assert caught.value.name is ErrorName.STORE_DAMAGED
    (done,) = await mend(store)
    assert f"{name}.json.damaged-" in done
    await repair(wanted, store)
    put(store, ONE, f"{AGENT}:v1")
    assert await verify(wanted, store, frozenset())


async def test_a_layer_without_image_and_directory_is_no_obstacle_after_mending(store: Store) -> None:
    put(store, ONE, f"{AGENT}:v1")
    remove_layer_directory(store, f"{AGENT}:v1", 1)
    edit_index(store, "images", lambda all: [])
    assert len(await mend(store)) == 1
    assert dict(store.index().layers) == {}
    assert await mend(store) == ()
    put(store, ONE, f"{AGENT}:v1")
    assert await verify([planned(ONE, f"{AGENT}:v1")], store, frozenset())


async def test_mending_a_sound_or_missing_store_does_nothing(store: Store) -> None:
    assert await mend(store) == ()
    put(store, ONE, f"{AGENT}:v1")
    before = store.signature()
    assert await mend(store) == ()
    assert store.signature() == before


async def test_where_nothing_is_wanted_there_need_be_no_store(tmp_path: Path) -> None:
    """A host image that binds nothing, on a host where nothing was ever bound."""
    assert await verify((), Store(tmp_path / "nowhere", tmp_path / "run", tmp_path), frozenset()) == ()
