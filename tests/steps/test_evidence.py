# SPDX-License-Identifier: Apache-2.0
"""What the gate sees by itself, in real stores: with records and without, of this boot and of an earlier one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lashd.steps import evidence
from lashd.steps.evidence import came_between, gather
from lashd.steps.record import Records
from lashd.things.store import Store, StoredLayer
from lashd.words.model import Deployment
from tests.support.images import build, files
from tests.support.stores import edit_index, make_store, put, remove_layer_directory, stored

AGENT, DB = "quay.io/edge/agent:v1", "quay.io/edge/db"
BASE = files({"bin/tool": b"tool" * 100})
ONE, TWO = build([BASE, {"etc/version": b"1"}]), build([BASE, {"etc/version": b"2"}])
LAYER = StoredLayer("0" * 64, None, None, 0, None, 0, None, False)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, float]:
    """A store with both images, and a moment just before it was filled."""
    before = time.time()
    store = make_store(tmp_path_factory.mktemp("store"))
    put(store, ONE, AGENT)
    put(store, TWO, f"{DB}@{TWO.digest}")
    return store, before


@pytest.fixture
def store(filled: tuple[Store, float], tmp_path: Path) -> Store:
    shutil.copytree(filled[0].sysroot, tmp_path / "sysroot", symlinks=True)
    return Store(tmp_path / "sysroot/ostree/bootc/storage", tmp_path / "run", tmp_path / "sysroot")


@pytest.fixture
def since(filled: tuple[Store, float]) -> float:
    return filled[1]


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    root = tmp_path / "root"
    for unit, image in (("agent.image", AGENT), ("db.image", f"{DB}@{TWO.digest}")):
        for name in ("usr/share/containers/systemd", "usr/lib/bootc/bound-images.d"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "usr/share/containers/systemd" / unit).write_text(f"[Image]\nImage={image}\n")
        (root / "usr/lib/bootc/bound-images.d" / unit).symlink_to(f"/usr/share/containers/systemd/{unit}")
    return Deployment("os", "a" * 64, 0, root, digest=f"sha256:{'d' * 64}")


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "records")


def codes(deployment: Deployment, store: Store, records: Records, since: float, **more: bool) -> list[str]:
    found = gather(deployment, store, records, since=since, now=time.time(), **more)
    assert found.decision.release is (not found.decision.reasons)
    return [code for code, _ in found.decision.reasons]


def test_of_this_boot_counts_once_it_is_synced(deployment, store, records, since) -> None:
    found = gather(deployment, store, records, since=since, now=time.time())
    assert found.decision.release
    assert found.unsynced
    assert found.new is not None
    assert (found.new.deployment, found.new.host_digest) == (deployment.key, deployment.digest)
    assert {image.reference: image.digest for image in found.new.images} == {
        AGENT: ONE.digest,
        f"{DB}@{TWO.digest}": TWO.digest,
    }
    # With that record nothing is left to be done, and the time does not matter any more.
    records.write(found.new)
    now = gather(deployment, store, records, since=time.time(), now=time.time())
    assert (now.decision.release, now.unsynced, now.new) == (True, False, None)
    # Another deployment of the same images: no sync, and a record of its own.
    other = gather(replace(deployment, serial=1), store, records, since=time.time(), now=time.time())
    assert (other.decision.release, other.unsynced) == (True, False)
    assert other.new == replace(found.new, deployment=f"{'a' * 64}.1", created=other.new.created)


def test_of_an_earlier_boot_does_not_count_without_a_record(deployment, store, records) -> None:
    assert codes(deployment, store, records, time.time()) == ["unverified", "unverified"]
    # What is installed was there before.
    found = gather(deployment, store, records, since=time.time(), now=time.time(), installed=True)
    assert (found.decision.release, found.unsynced) == (True, True)


def test_from_the_future_does_not_count(deployment, store, records, since) -> None:
    found = gather(deployment, store, records, since=since - 20, now=since - 10)
    assert not found.decision.release


def test_a_layer_fetched_again_needs_a_new_record(deployment, store, records, since) -> None:
    found = gather(deployment, store, records, since=since, now=time.time())
    assert found.new is not None
    stale = replace(found.new, images=tuple(replace(i, stamps=("then",) * len(i.stamps)) for i in found.new.images))
    records.write(stale)
    again = gather(deployment, store, records, since=since, now=time.time())
    assert (again.unsynced, again.new and again.new.images) == (True, found.new.images)
    assert codes(deployment, store, records, time.time()) == ["unverified", "unverified"]


def test_what_was_found_damaged_never_counts(deployment, store, records, since) -> None:
    found = gather(deployment, store, records, since=since, now=time.time())
    assert found.new is not None
    records.write(found.new)
    top = stored(store, AGENT).top_layer
    assert records.distrust([store.index().layers[str(top)]])
    assert codes(deployment, store, records, since) == ["unverified"], "although it came in this boot"
    assert codes(deployment, store, records, since, installed=True) == ["unverified"]
    # Fetched again, it is another copy.
    edit_index(store, "layers", lambda all: [each | ({"created": now()} if each["id"] == top else {}) for each in all])
    assert codes(deployment, store, records, since) == []


def now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat()


def mark_incomplete(store: Store) -> None:
    top = stored(store, AGENT).top_layer
    flags = {"incomplete": True}
    edit_index(store, "layers", lambda all: [each | ({"flags": flags} if each["id"] == top else {}) for each in all])


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda store: remove_layer_directory(store, AGENT), ["incomplete"]),
        # The base of both.
        (lambda store: remove_layer_directory(store, AGENT, 1), ["incomplete", "incomplete"]),
        (mark_incomplete, ["incomplete"]),
        (lambda store: edit_index(store, "images", lambda all: all[:1]), ["missing"]),
        (lambda store: (store.root / "overlay-layers/layers.json").write_text("{"), ["unknown"]),
        (lambda store: shutil.rmtree(store.root), ["missing", "missing"]),
        (lambda store: shutil.rmtree(store.root / "overlay"), ["incomplete", "incomplete"]),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_what_is_not_whole_never_counts(
    deployment, store, records, since, harm: Callable[[Store], object], expected: list[str], recorded, installed
) -> None:
    if recorded:
        records.write(gather(deployment, store, records, since=since, now=time.time()).new)
    harm(store)
    assert codes(deployment, store, records, since, installed=installed) == expected


def test_bad_entries_and_lost_roots(deployment, store, records, since) -> None:
    (deployment.root / "usr/lib/bootc/bound-images.d/broken.container").symlink_to("/nowhere.container")
    assert codes(deployment, store, records, since) == ["bad-entry"]
    shutil.rmtree(deployment.root)
    assert codes(deployment, store, records, since) == ["unknown"]


def test_local_changes_that_it_will_get_count(deployment, store, records, since, tmp_path) -> None:
    running = tmp_path / "running"
    (running / "usr/etc").mkdir(parents=True)
    (running / "etc/containers/systemd").mkdir(parents=True)
    deployment = replace(deployment, merges=running)
    assert codes(deployment, store, records, since) == []
    (running / "etc/containers/systemd/agent.image").write_text("[Image]\nImage=quay.io/edge/other:v1\n")
    assert codes(deployment, store, records, since) == ["missing"]
    assert codes(replace(deployment, merges=None), store, records, since) == []


def test_nothing_bound_needs_nothing(deployment, store, records, since) -> None:
    shutil.rmtree(deployment.root / "usr/lib/bootc")
    found = gather(deployment, store, records, since=since, now=time.time())
    assert (found.decision.release, found.unsynced, found.new) == (True, False, None)


def test_records_that_cannot_be_read_are_none(deployment, store, records, since, tmp_path) -> None:
    (tmp_path / "records").write_text("a file")
    assert codes(deployment, store, records, since) == []
    assert codes(deployment, store, records, time.time()) == ["unverified", "unverified"]


@pytest.mark.parametrize(
    ("created", "counts"),
    [
        ("1970-01-01T00:00:15Z", True),
        ("1970-01-01T00:00:10Z", True),
        ("1970-01-01T02:00:15.123456789+02:00", True),
        ("1970-01-01T00:00:09.999Z", False),
        ("1970-01-01T00:00:21Z", False),
        # No zone: whose time is it?
        ("1970-01-01T00:00:15", False),
        ("0001-01-01T00:00:00Z", False),
        ("", False),
        ("yesterday", False),
        ("9999-12-31T23:59:59-23:59", False),
    ],
)
def test_when_a_layer_came(created: str, counts: bool) -> None:
    assert came_between(replace(LAYER, created=created), 10, 20) is counts


def test_whatever_goes_wrong_holds(deployment, store, records, since, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(evidence, "discover", broken)
    found = gather(deployment, store, records, since=since, now=time.time())
    ((code, why),) = found.decision.reasons
    assert (found.decision.release, code) == (False, "unknown")
    assert "unforeseen" in why
