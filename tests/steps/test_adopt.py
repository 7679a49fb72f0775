# SPDX-License-Identifier: Apache-2.0
"""A host that was running before lashd: its record is what its names mean now."""

from __future__ import annotations

from pathlib import Path

import pytest

from lashd.steps.adopt import adopt
from lashd.steps.record import parse_record, print_record
from lashd.steps.verify import classify
from lashd.things.store import Store
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BadEntry, BoundImage, Deployment, Discovery, ImageState, Role
from lashd.words.reference import parse_reference
from tests.support.images import build, build_index
from tests.support.stores import layer_file, make_store, put, stored

AGENT, OTHER, THIRD = "quay.io/edge/agent", "quay.io/edge/other", "quay.io/edge/third"
ONE, TWO, THREE = (build([{"shared": b"1"}, {"version": bytes([number])}]) for number in (1, 2, 3))
DIGEST = f"sha256:{'d' * 64}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def bound(text: str, unit: str) -> BoundImage:
    return BoundImage(unit, text, parse_reference(text))


def deployment(*roles: Role) -> Deployment:
    return Deployment("default", "c" * 64, 0, Path("/nowhere"), frozenset(roles), digest=DIGEST)


async def test_the_booted_deployment_is_recorded_as_it_is(store: Store) -> None:
    put(store, ONE, f"{AGENT}:latest")
    put(store, TWO, f"{OTHER}@{TWO.digest}")
    found = Discovery(
        (
            bound(f"{AGENT}:latest", "a.container"),
            bound(f"{AGENT}:latest", "b.container"),
            bound(f"{OTHER}@{TWO.digest}", "c.image"),
            bound(f"{THIRD}:v1", "absent.container"),
        ),
        (BadEntry("bad.container", "It names no image."),),
    )
    record = await adopt(deployment(Role.BOOTED), found, store, 42)
    assert (record.deployment, record.host_digest, record.created, record.adopted) == (
        f"{'c' * 64}.0",
        DIGEST,
        42,
        True,
    )
    one = record.image(f"{AGENT}:latest")
    assert (one.digest, one.image_id, one.units) == (ONE.digest, ONE.image_id, ("a.container", "b.container"))
    assert len(one.layers) == len(one.stamps) == 2
    assert record.image(f"{OTHER}@{TWO.digest}").digest == TWO.digest
    assert [image.reference for image in record.images] == [f"{AGENT}:latest", f"{OTHER}@{TWO.digest}"]
    assert parse_record(print_record(record)) == record
    vouched = frozenset(one.layers)
    assert classify(found.images[0], record, store, vouched, named=True)[0] is ImageState.PRESENT
    # The name moves on: the deployment is still bound to what it ran with.
    put(store, THREE, f"{AGENT}:latest")
    assert classify(found.images[0], record, store, vouched)[0] is ImageState.DRIFTED


async def test_an_image_of_several_platforms_is_recorded_by_its_own_manifest(store: Store) -> None:
    index = build_index([ONE, build([{"other": b"1"}], arch="s390x")])
    put(store, index, f"{AGENT}:latest")
    put(store, index, f"{OTHER}@{index.digest}")
    images = (bound(f"{AGENT}:latest", "a.container"), bound(f"{OTHER}@{index.digest}", "b.container"))
    record = await adopt(deployment(Role.BOOTED), Discovery(images), store, 1)
    assert [(each.digest, each.index_digest) for each in record.images] == [(ONE.digest, index.digest)] * 2


async def test_a_name_that_was_moved_offline_keeps_the_digest_that_a_registry_knows(store: Store) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    await store.give_name(parse_reference(f"{AGENT}@{ONE.digest}"), parse_reference(f"{AGENT}:latest"))
    found = Discovery((bound(f"{AGENT}:latest", "a.container"),))
    record = await adopt(deployment(Role.BOOTED), found, store, 1)
    assert record.images[0].digest == ONE.digest
    assert record.images[0].layers


async def test_a_damaged_image_is_recorded_by_digest_and_vouched_for_by_nobody(store: Store) -> None:
    put(store, ONE, f"{AGENT}:latest")
    put(store, TWO, f"{OTHER}:latest")
    layer_file(store, f"{AGENT}:latest", "version").write_bytes(b"9")
    images = (bound(f"{AGENT}:latest", "a.container"), bound(f"{OTHER}:latest", "b.container"))
    record = await adopt(deployment(Role.BOOTED), Discovery(images), store, 1)
    damaged, sound = record.images
    assert (damaged.digest, damaged.layers, damaged.stamps) == (ONE.digest, (), ())
    assert (sound.digest, len(sound.layers)) == (TWO.digest, 2)


async def test_what_a_record_vouches_for_is_not_read_again(store: Store) -> None:
    put(store, ONE, f"{AGENT}:latest")
    layer_file(store, f"{AGENT}:latest", "version").write_bytes(b"9")
    chain = store.index().chain(stored(store, f"{AGENT}:latest"))
    vouched = frozenset(layer.id for layer in chain)
    found = Discovery((bound(f"{AGENT}:latest", "a.container"),))
    record = await adopt(deployment(Role.BOOTED), found, store, 1, vouched=vouched)
    assert record.images[0].layers


async def test_a_host_without_store_or_bound_images_is_adopted_too(store: Store) -> None:
    record = await adopt(deployment(Role.BOOTED), Discovery(), store, 1)
    assert record.images == ()
    record = await adopt(deployment(Role.BOOTED), Discovery((bound(f"{AGENT}:v1", "a.container"),)), store, 1)
    assert record.images == ()


@pytest.mark.parametrize("roles", [(), (Role.ROLLBACK,), (Role.PINNED,), (Role.STAGED,)])
async def test_only_the_booted_deployment_is_adopted(roles: tuple[Role, ...], store: Store) -> None:
    put(store, ONE, f"{AGENT}:latest")
    with pytest.raises(LashdError) as caught:
        await adopt(deployment(*roles), Discovery((bound(f"{AGENT}:latest", "a.container"),)), store, 1)
    assert caught.value.name is ErrorName.INVALID_ARGUMENT


async def test_the_booted_deployment_may_have_other_roles(store: Store) -> None:
    assert (await adopt(deployment(Role.BOOTED, Role.PINNED), Discovery(), store, 1)).adopted
