# SPDX-License-Identifier: Apache-2.0
"""Pulls with the real skopeo from a real registry, on good days and on bad ones; every blob that crosses is counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lashd.steps.plan import plan
from lashd.steps.pull import pull
from lashd.steps.verify import mend, verify
from lashd.things.platform import architecture
from lashd.things.store import Store
from lashd.words.config import PullSettings, Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, Plan, PullOptions
from lashd.words.progress import Event, ItemProgress, StageStarted, ignore
from lashd.words.reference import parse_reference
from tests.support.faulty import Cut, Faulty, Garble, Length, Reset, Stall, Status
from tests.support.images import Image, LayerBlob, build, build_index, files, random_bytes
from tests.support.registry import Registry
from tests.support.stores import make_store, put, remove_layer_directory, stored
from tests.support.told import told

FOREIGN = "s390x" if architecture() != "s390x" else "amd64"
BASE = random_bytes(300_000, seed=1)
LARGE = random_bytes(3_000_000, seed=2)
ONE = build([BASE, {"etc/version": b"1"}])
TWO = build([BASE, {"etc/version": b"2"}])


@pytest.fixture
def store(tmp_path: Path, settings: Settings) -> Store:
    return make_store(tmp_path)


@pytest.fixture
def fast(settings: Settings) -> Settings:
    """Impatient settings."""
    return with_(settings)


def with_(settings: Settings, **pull: Any) -> Settings:
    quick = {"backoff_seconds": 0.05, "stall_seconds": 20, "reserve_bytes": 0}
    return replace(settings, pull=PullSettings(**(quick | pull)))


def bound(text: str) -> BoundImage:
    return BoundImage("agent.container", text, parse_reference(text), PullOptions())


async def planned(texts: Iterable[str], store: Store, settings: Settings) -> Plan:
    return await plan([bound(text) for text in texts], store=store, record=None, settings=settings)


async def fetched(
    texts: Iterable[str], store: Store, settings: Settings, report: Callable[[Event], None] = ignore
) -> Plan:
    """Plan, pull, and make sure that everything is there, every byte of it."""
    made = await planned(texts, store, settings)
    await pull(made, store=store, settings=settings, report=report)
    await verify(made.images, store, frozenset(), deep=True)
    assert not (settings.paths.state / "pull").exists() or not list((settings.paths.state / "pull").iterdir())
    return made


def pushed(faulty: Faulty, registry: Registry, images: Sequence[Image]) -> list[str]:
    """Push each under a name of its own: name@digest as the proxy serves it."""
    return [faulty.reference(f"a/n{number}", registry.push(f"a/n{number}", each)) for number, each in enumerate(images)]


def blob_gets(faulty: Faulty, layers: Iterable[LayerBlob]) -> dict[str, int]:
    return {layer.digest: faulty.requests(f"/blobs/{layer.digest}") for layer in layers}


# ---- each layer once ----


def own(number: int) -> LayerBlob:
    return random_bytes(60_000, seed=1000 + number)


SHARED = [random_bytes(200_000, seed=2000 + number) for number in range(10)]
PATTERNS: dict[str, list[list[LayerBlob]]] = {
    "one base": [[SHARED[0], own(number)] for number in range(10)],
    "a tower": [SHARED[: number + 1] for number in range(10)],
    "pairs": [[SHARED[number // 2], own(number)] for number in range(10)],
    "all the same": [SHARED[:3] for _ in range(10)],
    "two bases and a ring": [
        [SHARED[number % 2], SHARED[2 + number % 8], SHARED[2 + (number + 1) % 8]] for number in range(10)
    ],
    "shared on top": [[own(number), SHARED[0]] for number in range(10)],
}


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_each_layer_crosses_the_line_once(
    faulty: Faulty, registry: Registry, store: Store, fast: Settings, pattern: str
) -> None:
    images = [build(layers, labels={"number": str(number)}) for number, layers in enumerate(PATTERNS[pattern])]
    texts = pushed(faulty, registry, images)
    heard: list[Event] = []
    made = await fetched(texts, store, fast, heard.append)
    layers = {layer.digest: layer for image in images for layer in image.layers}
    assert blob_gets(faulty, layers.values()) == dict.fromkeys(layers, 1)
    assert made.bytes_to_fetch == sum(len(layer.blob) for layer in layers.values())
    # As it is told: a sum that grows to exactly what was planned, and everybody is done.
    assert heard[0] == StageStarted(heard[0].stage, made.bytes_to_fetch, 10)
    done: dict[str, ItemProgress] = {}
    for event in heard[1:]:
        assert isinstance(event, ItemProgress)
        assert event.bytes_done >= (done[event.item].bytes_done if event.item in done else 0)
        assert event.bytes_done <= event.bytes_total or event.state == "waiting"
        done[event.item] = event
    assert sum(event.bytes_done for event in done.values()) == made.bytes_to_fetch
    assert {event.state for event in done.values()} == {"done"}
    assert set(done) == set(texts)


async def test_an_image_starts_as_soon_as_the_layer_is_there(
    faulty: Faulty, registry: Registry, store: Store, settings: Settings
) -> None:
    """Not only when the whole image that fetches it is: here, that one never ends by itself."""
    patient = with_(settings, stall_seconds=300)
    slow = build([BASE, random_bytes(10_000, seed=5)])
    texts = pushed(
        faulty, registry, [slow, *(build([BASE, random_bytes(20_000, seed=6 + number)]) for number in range(3))]
    )
    faulty.on(slow.layers[1].digest, Stall(after=10))
    heard: dict[str, str] = {}

    def listen(event: Event) -> None:
        if isinstance(event, ItemProgress):
            heard[event.item] = event.state

    made = await planned(texts, store, patient)
    task = asyncio.create_task(pull(made, store=store, settings=patient, report=listen))
    await until(lambda: [heard.get(text) for text in texts] == ["fetching", "done", "done", "done"], task)
    await cancelled(task)
    assert blob_gets(faulty, [BASE]) == {BASE.digest: 1}


async def test_nothing_is_done_when_nothing_is_absent(
    faulty: Faulty, registry: Registry, store: Store, fast: Settings
) -> None:
    texts = pushed(faulty, registry, [ONE])
    await fetched(texts, store, fast)
    faulty.forget()
    before = store.signature()
    await fetched(texts, store, fast)
    assert faulty.log == []
    assert store.signature() == before


# ---- names and digests ----


def podman_sees(store: Store, name: str) -> str:
    """The image id that `name` means to podman where the store is an additional one, empty if none."""
    with tempfile.TemporaryDirectory(prefix="p-") as own_store:
        podman = ["podman", "--root", f"{own_store}/root", "--runroot", f"{own_store}/run"]
        podman += ["--storage-opt", f"additionalimagestore={store.root}"]
        argv = ["unshare", "--mount", *podman, "image", "inspect", "--format", "{{.Id}}", name]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


async def test_a_tag_that_nobody_has_is_given_and_another_ones_is_not_taken(
    registry: Registry, store: Store, fast: Settings
) -> None:
    text = registry.reference("a/one", "v1")
    registry.push("a/one", ONE, "v1")
    await fetched([text], store, fast)
    assert stored(store, text).id == ONE.image_id
    assert podman_sees(store, text) == ONE.image_id
    assert podman_sees(store, registry.reference("a/one", ONE.digest)) == ONE.image_id
    registry.push("a/one", TWO, "v1")
    await fetched([text], store, fast)
    by_digest = registry.reference("a/one", TWO.digest)
    assert podman_sees(store, text) == ONE.image_id, "what runs must go on with what it has"
    assert podman_sees(store, by_digest) == TWO.image_id
    assert stored(store, by_digest).names == (by_digest,)


@pytest.mark.parametrize("floating", [False, True])
async def test_an_index_keeps_its_digest_and_its_images(
    registry: Registry, store: Store, fast: Settings, floating: bool
) -> None:
    index = build_index([build([b"there"], arch=FOREIGN), ONE])
    registry.push("a/one", index, "v1")
    text = registry.reference("a/one", "v1" if floating else index.digest)
    made = await fetched([text], store, fast)
    assert (made.images[0].digest, made.images[0].index_digest) == (ONE.digest, index.digest)
    image = stored(store, text)
    assert (image.id, image.digests) == (ONE.image_id, {ONE.digest, index.digest})
    assert store.big_data(image, f"manifest-{index.digest}") == index.manifest
    assert store.big_data(image, f"manifest-{ONE.digest}") == ONE.manifest
    for name in (text, registry.reference("a/one", index.digest), registry.reference("a/one", ONE.digest)):
        assert podman_sees(store, name) == ONE.image_id, name


async def test_an_index_under_a_tag_that_another_image_has(registry: Registry, store: Store, fast: Settings) -> None:
    index = build_index([TWO, build([b"there"], arch=FOREIGN)])
    text = registry.reference("a/one", "v1")
    put(store, ONE, text)
    registry.push("a/one", index, "v1")
    await fetched([text], store, fast)
    assert stored(store, text).id == ONE.image_id
    assert stored(store, registry.reference("a/one", index.digest)).id == TWO.image_id


async def test_the_name_can_be_chosen(registry: Registry, store: Store, fast: Settings) -> None:
    text = registry.reference("a/one", registry.push("a/one", ONE))
    name = parse_reference(registry.reference("a/one", "other"))
    made = await planned([text], store, fast)
    await pull(made, store=store, settings=fast, names=lambda image: name)
    assert stored(store, str(name)).names == (str(name),)


# ---- bad days ----

ONCE = [
    pytest.param(BASE.digest, Status(500), id="500"),
    pytest.param(BASE.digest, Status(503), id="503"),
    pytest.param(BASE.digest, Reset(), id="reset"),
    pytest.param(BASE.digest, Cut(after=1000), id="end in a blob"),
    pytest.param(BASE.digest, Garble(), id="wrong content"),
    pytest.param(BASE.digest, Length(by=1), id="wrong length"),
    pytest.param(BASE.digest, Stall(after=1000), id="stall"),
    pytest.param(BASE.digest, Status(429, retry_after=1), id="429 for a blob"),
    pytest.param(r"/manifests/", Status(429, retry_after=1), id="429 for the manifest"),
    pytest.param(r"/manifests/", Stall(after=0), id="silence"),
]


@pytest.mark.parametrize(("where", "fault"), ONCE)
async def test_what_passes_is_tried_again(
    faulty: Faulty, registry: Registry, store: Store, settings: Settings, where: str, fault: Any
) -> None:
    texts = pushed(faulty, registry, [ONE])
    impatient = with_(settings, stall_seconds=1.0 if isinstance(fault, Stall) else 20)
    made = await planned(texts, store, impatient)
    faulty.on(where, fault, times=1)
    heard: list[Event] = []
    begun = time.monotonic()
    await pull(made, store=store, settings=impatient, report=heard.append)
    await verify(made.images, store, frozenset(), deep=True)
    assert any(request.fault for request in faulty.log)
    states = [event.state for event in heard if isinstance(event, ItemProgress)]
    if isinstance(fault, Status) and fault.retry_after:
        assert time.monotonic() - begun >= fault.retry_after
    elif isinstance(fault, Status | Cut) or fault == Reset():
        # skopeo itself tries some of these again.
        assert states[-1] == "done"
    else:
        again = next(event for event in heard if isinstance(event, ItemProgress) and event.state == "retrying")
        assert again.error
        assert again.next_attempt > time.time() - 60
        assert heard[-1] == replace(
            again, state="done", attempt=2, next_attempt=0.0, error="", bytes_done=again.bytes_total
        )


async def test_a_stall_is_told_as_what_it_is(
    faulty: Faulty, registry: Registry, store: Store, settings: Settings
) -> None:
    texts = pushed(faulty, registry, [ONE])
    once = with_(settings, stall_seconds=0.5, attempts=1)
    made = await planned(texts, store, with_(settings))
    faulty.on(BASE.digest, Stall(after=1000))
    with pytest.raises(LashdError, match="stalled") as caught:
        await pull(made, store=store, settings=once)
    assert caught.value.name is ErrorName.TIMEOUT
    assert caught.value.retryable
    assert texts[0] in caught.value.message


TINY = build([BASE, files({"a": b""})])
FOR_GOOD = [
    pytest.param(r"/a/n0/manifests/", Status(404), ErrorName.NOT_FOUND, False, id="404"),
    pytest.param(r"/a/n0/manifests/", Status(401), ErrorName.AUTHENTICATION_FAILED, False, id="401"),
    pytest.param(r"/a/n0/manifests/", Status(403), ErrorName.AUTHENTICATION_FAILED, False, id="403"),
    pytest.param(TINY.layers[1].digest, Garble(), ErrorName.DIGEST_MISMATCH, True, id="wrong content"),
    pytest.param(TINY.layers[1].digest, Cut(after=100), ErrorName.PULL_FAILED, True, id="end in a blob"),
]


@pytest.mark.parametrize(("where", "fault", "name", "retryable"), FOR_GOOD)
async def test_one_that_fails_does_not_stop_the_others(
    faulty: Faulty,
    registry: Registry,
    store: Store,
    settings: Settings,
    where: str,
    fault: Any,
    name: ErrorName,
    retryable: bool,
) -> None:
    """The one that fails is the one that would have fetched the shared layer."""
    texts = pushed(
        faulty, registry, [TINY, *(build([BASE, random_bytes(9000, seed=6 + number)]) for number in range(3))]
    )
    twice = with_(settings, attempts=2)
    made = await planned(texts, store, twice)
    faulty.forget()
    faulty.on(where, fault)
    with pytest.raises(LashdError) as caught:
        await pull(made, store=store, settings=twice)
    assert (caught.value.name, caught.value.retryable) == (name, retryable)
    assert texts[0] in caught.value.message
    await verify(made.images[1:], store, frozenset(), deep=True)
    if not retryable:
        assert faulty.requests(where) == 1, "what is permanent is not tried again"
    faulty.heal()
    faulty.forget()
    await fetched(texts, store, twice)
    assert blob_gets(faulty, [BASE]) == {BASE.digest: 0}, "the others brought it"


async def test_all_failures_are_in_one_error(
    faulty: Faulty, registry: Registry, store: Store, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    texts = pushed(faulty, registry, [ONE, TWO, build([b"3"])])
    once = with_(settings, attempts=1)
    made = await planned(texts, store, once)
    faulty.on(r"/a/n0/blobs/", Garble())
    faulty.on(r"/a/n1/manifests/", Status(404))
    with pytest.raises(LashdError) as caught:
        await pull(made, store=store, settings=once)
    assert (caught.value.name, caught.value.retryable) == (ErrorName.NOT_FOUND, False)
    assert "2 of 3" in caught.value.message
    assert texts[0] in caught.value.message
    assert texts[1] in caught.value.message
    # Each is told once, with what is needed to find it, and whether anybody has to do something.
    entries = {entry["LASHD_REFERENCE"]: entry for entry in told(caplog)}
    assert set(entries) == {str(image.reference) for image in made.images[:2]}
    for image, name, retryable in zip(made.images, ("DigestMismatch", "NotFound"), ("yes", "no"), strict=False):
        assert entries[str(image.reference)] == {
            "NAME": "IMAGE_FAILED",
            "LASHD_ERROR": name,
            "LASHD_RETRYABLE": retryable,
            "LASHD_DIGEST": image.digest,
            "LASHD_REFERENCE": str(image.reference),
        }
    caplog.clear()
    with pytest.raises(LashdError):
        await pull(made, store=store, settings=once, complain=False)
    assert told(caplog) == []


async def test_a_registry_that_is_gone(faulty: Faulty, registry: Registry, store: Store, settings: Settings) -> None:
    text = registry.reference("a/one", registry.push("a/one", ONE))
    twice = with_(settings, attempts=2)
    made = await planned([text], store, twice)
    registry.stop()
    with pytest.raises(LashdError) as caught:
        await pull(made, store=store, settings=twice)
    assert caught.value.name is ErrorName.NETWORK_UNAVAILABLE
    assert caught.value.retryable
    registry.start()
    await fetched([text], store, twice)


# ---- cut short ----


async def until(true: Callable[[], bool], task: asyncio.Task[None], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if task.done():
            task.result()
        assert not task.done()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


def skopeos(settings: Settings) -> list[int]:
    """The processes that fetch for this test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0] == b"skopeo" and str(settings.paths.state).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


async def test_cancel_in_the_middle_and_carry_on(
    registry: Registry, store: Store, settings: Settings, tmp_path: Path
) -> None:
    with Faulty(registry.address, rate=1_000_000) as slow:
        (settings.paths.root / "etc/containers/registries.conf").write_text(
            f'[[registry]]\nlocation = "{slow.address}"\ninsecure = true\n'
        )
        text = slow.reference("a/one", registry.push("a/one", build([BASE, LARGE])))
        patient = with_(settings)
        made = await planned([text], store, patient)
        done: list[int] = []

        def listen(event: Event) -> None:
            if isinstance(event, ItemProgress):
                done.append(event.bytes_done)

        task = asyncio.create_task(pull(made, store=store, settings=patient, report=listen))
        await until(lambda: bool(store.index().layer_with_blob(BASE.digest)) and done[-1] > len(BASE.blob), task)
        begun = time.monotonic()
        await cancelled(task)
        assert time.monotonic() - begun < 3
        assert skopeos(settings) == []
        assert list((settings.paths.state / "pull").iterdir()) == []
        assert store.index().layer_with_blob(LARGE.digest) is None
        slow.rate = 0
        slow.forget()
        made = await fetched([text], store, patient)
        assert made.bytes_to_fetch == len(LARGE.blob)
        assert blob_gets(slow, [BASE, LARGE]) == {BASE.digest: 0, LARGE.digest: 1}


async def test_leftovers_of_a_killed_run_go(registry: Registry, store: Store, settings: Settings) -> None:
    left = settings.paths.state / "pull/0123/container_images_storage1/1"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 1000)
    await fetched([registry.reference("a/one", registry.push("a/one", ONE))], store, with_(settings))
    assert not left.exists()


MANY = files({f"many/{number}": b"" for number in range(12_000)})


async def test_a_skopeo_killed_while_it_unpacks(
    faulty: Faulty, registry: Registry, store: Store, settings: Settings
) -> None:
    """The layer stays behind incomplete; the next attempt clears it away and does not take it for a whole one."""
    texts = pushed(faulty, registry, [build([BASE, MANY]), TWO])
    for number in range(8):
        # To be killed at the right moment takes luck on a busy machine: a store of its own for each try.
        tried = Store(store.root.with_name(f"storage{number}"), store.run_root, store.sysroot)
        made = await planned(texts, tried, with_(settings))
        task = asyncio.create_task(pull(made, store=tried, settings=with_(settings)))
        layers = tried.root / "overlay-layers/layers.json"
        await until(lambda: half_made(layers, ""), task)  # noqa: B023
        stop_all(signal.SIGSTOP, settings)
        incomplete = half_made(layers, "")
        stop_all(signal.SIGKILL, settings)
        await task
        assert not any(layer.incomplete for layer in tried.index().layers.values())
        await verify(made.images, tried, frozenset(), deep=True)
        if incomplete:
            return
    pytest.fail("it was always killed too late to show anything")


def stop_all(number: signal.Signals, settings: Settings) -> None:
    for pid in skopeos(settings):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def half_made(layers: Path, digest: str) -> bool:
    """Whether a layer on top of another one is being unpacked."""
    try:
        entries = json.loads(layers.read_text())
    except (OSError, ValueError):
        return False
    return any((entry.get("flags") or {}).get("incomplete") and entry.get("parent") for entry in entries)


async def test_what_was_killed_with_the_daemon_is_fetched_again(
    faulty: Faulty, registry: Registry, store: Store, settings: Settings
) -> None:
    """As above, but nobody tries again at once: a later plan does not count the incomplete layer as there."""
    image = build([BASE, MANY])
    texts = pushed(faulty, registry, [image])
    once = with_(settings, attempts=1)
    made = await planned(texts, store, once)
    task = asyncio.create_task(pull(made, store=store, settings=once))
    await until(lambda: half_made(store.root / "overlay-layers/layers.json", ""), task)
    for pid in skopeos(settings):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(LashdError) as caught:
        await task
    assert caught.value.retryable
    made = await fetched(texts, store, once)
    assert [layer.digest for layer in made.images[0].missing] == [image.layers[1].digest]


async def test_a_skopeo_that_hangs_is_ended(
    faulty: Faulty, registry: Registry, store: Store, settings: Settings
) -> None:
    impatient = with_(settings, stall_seconds=1.0)
    texts = pushed(faulty, registry, [ONE])
    made = await planned(texts, store, impatient)
    faulty.on(BASE.digest, Stall(after=100), times=1)
    heard: list[Event] = []
    task = asyncio.create_task(pull(made, store=store, settings=impatient, report=heard.append))
    await until(lambda: bool(skopeos(impatient)) and faulty.bytes_sent(BASE.digest) > 0, task)
    for pid in skopeos(impatient):
        os.kill(pid, signal.SIGSTOP)
    await task
    assert any(isinstance(event, ItemProgress) and "stalled" in event.error for event in heard)


# ---- a damaged store, a full one ----


@pytest.mark.parametrize("depth", [0, 1])
async def test_a_damaged_layer_is_fetched_again_after_mending(
    faulty: Faulty, registry: Registry, store: Store, fast: Settings, depth: int
) -> None:
    texts = pushed(faulty, registry, [ONE, TWO])
    await fetched(texts, store, fast)
    remove_layer_directory(store, texts[0], depth)
    faulty.forget()
    await mend(store)
    await fetched(texts, store, fast)
    assert blob_gets(faulty, [ONE.layers[1], BASE]) == {ONE.layers[1].digest: 1, BASE.digest: depth}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 40 MB of its own."""
    disk, place = tmp_path / "disk", tmp_path / "small"
    with disk.open("wb") as file:
        file.truncate(40 * 1024 * 1024)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("downloads", ["there", "elsewhere"])
async def test_a_disk_that_fills_up_in_the_middle(
    registry: Registry, settings: Settings, small: Path, tmp_path: Path, downloads: str
) -> None:
    state = small / "state" if downloads == "there" else tmp_path / "state"
    # One after the other: of two at once either may be the one for which nothing is left.
    base = with_(settings, parallel=1)
    full = replace(base, paths=replace(base.paths, state=state))
    store = Store(small / "ostree/bootc/storage", tmp_path / "run", small)
    texts = [
        registry.reference(name, registry.push(name, image))
        for name, image in (("a/one", ONE), ("a/big", build([BASE, random_bytes(10_000_000, seed=7)])))
    ]
    made = await planned(texts, store, full)
    await store.ensure()
    filler = small / "filler"
    filler.write_bytes(bytes(max(os.statvfs(small).f_bavail * os.statvfs(small).f_frsize - 6_000_000, 0)))
    with pytest.raises(LashdError) as caught:
        await pull(made, store=store, settings=full)
    assert caught.value.name is ErrorName.NO_SPACE
    assert not caught.value.retryable
    assert texts[1] in caught.value.message
    assert list((state / "pull").iterdir()) == []
    assert podman_sees(store, texts[0]) == ONE.image_id, "the small one fits, and the store can be read"
    assert not any(layer.incomplete for layer in store.index().layers.values())
    filler.unlink()
    made = await fetched(texts, store, full)
    assert [str(image.reference) for image in made.absent] == [texts[1]]


async def test_downloads_that_cannot_be_kept_anywhere(registry: Registry, store: Store, settings: Settings) -> None:
    (settings.paths.state / "pull").write_text("a file in the way")
    made = await planned([registry.reference("a/one", registry.push("a/one", ONE))], store, with_(settings))
    with pytest.raises(LashdError, match="folder") as caught:
        await pull(made, store=store, settings=with_(settings))
    assert caught.value.name is ErrorName.PULL_FAILED
    assert not caught.value.retryable
