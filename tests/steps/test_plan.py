# SPDX-License-Identifier: Apache-2.0
"""Plans made with the real skopeo, a real registry and real stores: what is asked, what is to be fetched, what fits."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lashd.steps import plan as planning
from lashd.steps.plan import human, plan, require_resolved, require_space
from lashd.things.platform import architecture
from lashd.things.store import Store
from lashd.words.config import PullSettings, Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, Plan, PlannedImage, PullOptions, Record, RecordedImage
from lashd.words.progress import Event, ItemProgress
from lashd.words.reference import parse_reference
from tests.support.faulty import Faulty, Reset, Status
from tests.support.images import Image, build, build_index, files, random_bytes
from tests.support.registry import Registry
from tests.support.stores import make_store, put, remove_layer_directory
from tests.support.told import told

FOREIGN = "s390x" if architecture() != "s390x" else "amd64"
BASE = random_bytes(50_000, seed=1)
ONE = build([BASE, {"etc/version": b"1"}])
TWO = build([BASE, {"etc/version": b"2"}])


@pytest.fixture
def store(tmp_path: Path, settings: Settings) -> Store:
    return make_store(tmp_path)


@pytest.fixture
def fast(settings: Settings) -> Settings:
    return replace(settings, pull=PullSettings(backoff_seconds=0.01, stall_seconds=5))


def bound(text: str, **options: Any) -> BoundImage:
    return BoundImage("agent.container", text, parse_reference(text), PullOptions(**options))


def recorded(text: str, digest: str, index_digest: str | None = None) -> Record:
    return Record("os.0", None, (RecordedImage(text, digest, "0" * 64, index_digest=index_digest),), 0)


async def planned(store: Store, settings: Settings, *texts: str, record: Record | None = None, **more: Any) -> Plan:
    return await plan([bound(text) for text in texts], store=store, record=record, settings=settings, **more)


def only(plan: Plan) -> PlannedImage:
    assert len(plan.images) == 1
    return plan.images[0]


def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)


# ---- present ----


async def test_what_is_there_needs_no_process_and_no_registry(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index([TWO, build([b"there"], arch=FOREIGN)])
    texts = [f"quay.io/a/one@{ONE.digest}", f"quay.io/a/two@{index.digest}", f"quay.io/a/two@{TWO.digest}"]
    put(store, ONE, texts[0])
    put(store, index, texts[1])
    no_process(monkeypatch)
    made = await planned(store, settings, *texts)
    assert [(image.digest, image.index_digest) for image in made.images] == [
        (ONE.digest, None),
        (TWO.digest, index.digest),
        (TWO.digest, None),
    ]
    assert made.absent == ()
    assert (made.bytes_to_fetch, made.bytes_on_disk) == (0, 0)
    require_space(replace(made, bytes_free=0, reserve=1))


async def test_a_tag_means_what_the_record_says(
    store: Store, settings: Settings, faulty: Faulty, registry: Registry
) -> None:
    text = faulty.reference("a/one", "v1")
    registry.push("a/one", ONE, "v1")
    registry.push("a/one", TWO, "v1")
    record = recorded(text, ONE.digest)
    image = only(await planned(store, settings, text, record=record))
    assert (image.digest, image.present) == (ONE.digest, False)
    assert faulty.requests(r"manifests/v1", method="") == faulty.requests(r"manifests/v1") == 0
    put(store, TWO, text)
    put(store, ONE, f"{image.reference.name}@{ONE.digest}")
    faulty.forget()
    image = only(await planned(store, settings, text, record=record))
    assert (image.digest, image.present) == (ONE.digest, True)
    assert faulty.log == []


@pytest.mark.parametrize("by_index", [False, True])
async def test_a_recorded_digest_that_is_an_index_is_asked_for_as_such(
    store: Store, settings: Settings, registry: Registry, by_index: bool
) -> None:
    index = build_index([ONE, build([b"there"], arch=FOREIGN)])
    registry.push("a/one", index, "v1")
    text = registry.reference("a/one", "v1")
    record = recorded(text, index.digest) if by_index else recorded(text, ONE.digest, index.digest)
    image = only(await planned(store, settings, text, record=record))
    assert (image.digest, image.index_digest) == (ONE.digest, index.digest)


async def test_a_tag_without_record_is_asked_for(store: Store, settings: Settings, registry: Registry) -> None:
    text = registry.reference("a/one", "v1")
    registry.push("a/one", ONE, "v1")
    put(store, ONE, text)
    image = only(await planned(store, settings, text))
    assert (image.digest, image.present, image.missing) == (ONE.digest, True, ())
    registry.push("a/one", TWO, "v1")
    image = only(await planned(store, settings, text))
    assert (image.digest, image.present) == (TWO.digest, False)
    assert [layer.digest for layer in image.missing] == [TWO.layers[1].digest], "the base is there"
    registry.stop()
    assert only(await planned(store, settings, text, refresh=False)).digest == ONE.digest


async def test_another_index_with_the_same_image_is_still_to_be_copied(
    store: Store, settings: Settings, registry: Registry
) -> None:
    old = build_index([ONE, build([b"there"], arch=FOREIGN)])
    new = build_index([ONE, build([b"there, new"], arch=FOREIGN)])
    registry.push("a/one", new, "v1")
    by_digest, by_tag = registry.reference("a/one", new.digest), registry.reference("a/one", "v1")
    put(store, old, f"{parse_reference(by_tag).name}@{old.digest}")
    image = only(await planned(store, settings, by_digest))
    assert (image.present, image.missing, image.index_digest) == (False, (), new.digest)
    assert only(await planned(store, settings, by_tag)).present, "its content is what the tag means"


async def test_the_image_of_another_platform_is_not_ours(store: Store, settings: Settings, registry: Registry) -> None:
    there = build([b"there"], arch=FOREIGN)
    index = build_index([ONE, there])
    text = registry.reference("a/one", index.digest)
    registry.push("a/one", index)
    put(store, index, text)
    foreign = BoundImage("a.image", text, parse_reference(text), PullOptions(arch=FOREIGN))
    image = only(await plan([foreign], store=store, record=None, settings=settings))
    assert (image.digest, image.present) == (there.digest, False)


# ---- absent ----


async def test_shared_layers_count_once(store: Store, settings: Settings, registry: Registry) -> None:
    texts = []
    for name, image in (("one", ONE), ("two", TWO)):
        registry.push(f"a/{name}", image)
        texts.append(registry.reference(f"a/{name}", image.digest))
    made = await planned(store, settings, *texts)
    assert [image.bytes_to_fetch for image in made.images] == [
        sum(len(layer.blob) for layer in image.layers) for image in (ONE, TWO)
    ]
    unique = {layer.digest: len(layer.blob) for image in (ONE, TWO) for layer in image.layers}
    assert made.bytes_to_fetch == sum(unique.values())
    assert made.bytes_on_disk == made.bytes_to_fetch + round(made.bytes_to_fetch * planning.UNPACKED_FACTOR)
    assert made.bytes_free > 0
    assert made.reserve == settings.pull.reserve_bytes


async def test_a_layer_that_comes_twice_in_an_image_is_fetched_once(
    store: Store, settings: Settings, registry: Registry
) -> None:
    image = build([BASE, {"a": b"1"}, BASE])
    registry.push("a/one", image)
    made = await planned(store, settings, registry.reference("a/one", image.digest))
    assert len(only(made).missing) == 2
    assert made.bytes_to_fetch == len(BASE.blob) + len(image.layers[1].blob)


@pytest.mark.parametrize(("depth", "missing"), [(0, [1]), (1, [0, 1])])
async def test_a_damaged_image_is_absent_and_what_is_damaged_missing(
    store: Store, settings: Settings, registry: Registry, depth: int, missing: list[int]
) -> None:
    text = registry.reference("a/one", ONE.digest)
    registry.push("a/one", ONE)
    put(store, ONE, text)
    remove_layer_directory(store, text, depth)
    image = only(await planned(store, settings, text))
    assert not image.present
    assert [layer.digest for layer in image.missing] == [ONE.layers[number].digest for number in missing]


async def test_what_means_the_same_is_one_planned_image(store: Store, settings: Settings, registry: Registry) -> None:
    registry.push("a/one", ONE, "v1")
    registry.push("a/one", ONE, "v2")
    registry.push("b/one", ONE, "v1")
    names = [("a/one", ONE.digest), ("a/one", "v1"), ("a/one", "v2"), ("b/one", "v1"), ("a/one", "v1")]
    made = await planned(store, settings, *(registry.reference(*name) for name in names))
    assert [str(image.reference).partition("/")[2] for image in made.images] == ["a/one:v1", "b/one:v1"]
    assert [len(image.bound) for image in made.images] == [4, 1]


# ---- failures ----


async def test_all_are_asked_and_every_failure_is_named(
    store: Store, settings: Settings, faulty: Faulty, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.push("a/good", ONE, "v1")
    faulty.on(r"a/secret", Status(401))
    heard: list[Event] = []
    names = ("a/absent", "a/secret", "a/good")
    made = await planned(store, settings, *(faulty.reference(name, "v1") for name in names), report=heard.append)
    assert [image.reference.path for image in made.images] == ["a/good"], "the others are planned all the same"
    with pytest.raises(LashdError) as caught:
        require_resolved(made)
    assert caught.value.name is ErrorName.NOT_FOUND
    assert not caught.value.retryable
    assert "2 of 3" in caught.value.message
    assert "a/absent" in caught.value.message
    assert "a/secret" in caught.value.message
    states = {event.item.partition("/")[2]: event.state for event in heard if isinstance(event, ItemProgress)}
    assert states == {"a/absent:v1": "failed", "a/secret:v1": "failed", "a/good:v1": "done"}
    assert told(caplog) == [], "who only asks has not failed to fetch"
    await planned(store, settings, *(faulty.reference(name, "v1") for name in names), complain=True)
    assert {(entry["NAME"], entry["LASHD_ERROR"], entry["LASHD_RETRYABLE"]) for entry in told(caplog)} == {
        ("IMAGE_FAILED", "NotFound", "no"),
        ("IMAGE_FAILED", "AuthenticationFailed", "no"),
    }


@pytest.mark.parametrize("fault", [Status(500), Reset()])
async def test_what_may_pass_is_asked_again(
    store: Store, fast: Settings, faulty: Faulty, registry: Registry, fault: Any
) -> None:
    registry.push("a/one", ONE, "v1")
    faulty.on(r"/manifests/", fault, times=2)
    assert only(await planned(store, fast, faulty.reference("a/one", "v1"))).digest == ONE.digest
    faulty.forget()
    faulty.on(r"/manifests/", fault)
    with pytest.raises(LashdError) as caught:
        require_resolved(await planned(store, fast, faulty.reference("a/one", "v1")))
    assert caught.value.retryable
    assert "a/one:v1" in caught.value.message


async def test_a_registry_that_holds_something_else_now(store: Store, settings: Settings, registry: Registry) -> None:
    index = build_index([TWO, build([b"there"], arch=FOREIGN)])
    registry.push("a/one", index, "v1")
    text = registry.reference("a/one", "v1")
    with pytest.raises(LashdError, match="is recorded with") as caught:
        require_resolved(await planned(store, settings, text, record=recorded(text, ONE.digest, index.digest)))
    assert caught.value.name is ErrorName.DIGEST_MISMATCH


# ---- space ----


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 16 MB of its own."""
    disk, place = tmp_path / "disk", tmp_path / "small"
    with disk.open("wb") as file:
        file.truncate(16 * 1024 * 1024)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("where", "size", "reserve", "fits"),
    [
        ("store", 2_000_000, 1_000_000, True),
        ("store", 6_000_000, 1_000_000, False),  # 15 MB unpacked; the downloads lie elsewhere
        ("store", 2_000_000, 10_000_000, False),
        ("downloads", 6_000_000, 1_000_000, True),
        ("downloads", 16_000_000, 1_000_000, False),
        ("both", 3_000_000, 1_000_000, True),
        ("both", 4_000_000, 1_000_000, False),  # 14 MB together
    ],
)
async def test_it_is_refused_before_the_first_byte(
    small: Path, tmp_path: Path, settings: Settings, registry: Registry, where: str, size: int, reserve: int, fits: bool
) -> None:
    image = build([random_bytes(size, seed=9)])
    registry.push("a/one", image)
    sysroot = tmp_path / "sysroot" if where == "downloads" else small
    paths = replace(settings.paths, state=tmp_path / "state" if where == "store" else small)
    asked = replace(settings, pull=PullSettings(reserve_bytes=reserve), paths=paths)
    store = Store(sysroot / "ostree/bootc/storage", tmp_path / "run", sysroot)
    made = await planned(store, asked, registry.reference("a/one", image.digest))
    status = os.statvfs(small)
    assert made.fits is fits
    if fits:
        require_space(made)
        return
    assert made.bytes_free == status.f_bavail * status.f_frsize
    with pytest.raises(LashdError) as caught:
        require_space(made)
    assert caught.value.name is ErrorName.NO_SPACE
    for figure in (made.bytes_on_disk, made.bytes_to_fetch, made.bytes_free, reserve):
        assert human(figure) in caught.value.message


async def test_only_so_many_compressed_layers_lie_about_at_once(
    store: Store, settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "unpacking_at_once", lambda: 1)
    one = replace(settings, pull=PullSettings(parallel=1))
    images: list[Image] = [build([random_bytes(size, seed=size)]) for size in (10_000, 20_000, 30_000)]
    texts = [registry.reference(f"a/{size}", registry.push(f"a/{size}", each)) for size, each in enumerate(images)]
    made = await planned(store, one, *texts)
    sizes = [len(image.layers[0].blob) for image in images]
    unpacked = round(sum(sizes) * planning.UNPACKED_FACTOR)
    assert made.bytes_on_disk == unpacked + sizes[1] + sizes[2]


async def test_the_stores_own_experience_and_plain_layers(
    store: Store, settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "EXPERIENCE_BYTES", 1000)
    kept = build([files({"a": bytes(300_000)})])
    put(store, kept, "quay.io/a/kept:v1")
    image = build([random_bytes(20_000, seed=3)])
    plain = build([random_bytes(20_000, seed=4, compression="none")])
    gzipped, as_is = len(image.layers[0].blob), len(plain.layers[0].blob)
    for each in (image, plain):
        registry.push("a/one", each)
    made = await planned(store, settings, registry.reference("a/one", image.digest))
    most = planning.FACTOR_LIMITS[1]
    factor = min(kept.layers[0].size / len(kept.layers[0].blob), most)
    assert factor != planning.UNPACKED_FACTOR
    assert made.bytes_on_disk == gzipped + round(gzipped * factor)
    made = await planned(store, settings, registry.reference("a/one", plain.digest))
    assert made.bytes_on_disk == 2 * as_is


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_499, "999 kB"),
        (1_500_000, "1.5 MB"),
        (12_400_000_000, "12 GB"),
        (10**16, "10000 TB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human(size) == text
