# SPDX-License-Identifier: Apache-2.0
"""What another program's clean-up has taken comes back as it was, without any registry."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.steps.keep import Kept
from lashd.steps.leave import what_goes
from lashd.steps.protect import Protection
from lashd.steps.verify import verify
from lashd.things.standing import Standing
from lashd.things.store import Store
from lashd.words.model import PlannedImage, Record, RecordedImage
from lashd.words.reference import parse_reference
from tests.support.images import Image, Index, build, build_index, files, random_bytes
from tests.support.stores import make_store, podman_remove, put, stored

AGENT = "quay.io/edge/agent"
SHARED = files({"usr/lib/base": b"base" * 1000})
ONE = build([SHARED, random_bytes(200_000, seed=1)])
OTHER = build([SHARED, random_bytes(200_000, seed=2)], arch="s390x")
BOTH = build_index([OTHER, ONE])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


@pytest.fixture
def protection(store: Store, tmp_path: Path) -> Protection:
    return Protection(store, tmp_path / "images")


def record(store: Store, image: Image, index: Index | None = None, name: str = f"{AGENT}:1") -> Record:
    """That a deployment is bound to `image`, which is in the store."""
    found = store.index().image_with_digest(AGENT, image.digest)
    assert found is not None
    chain = store.index().chain(found)
    assert chain is not None
    recorded = RecordedImage(
        *(name, image.digest, found.id, tuple(layer.id for layer in chain), ("agent.container",)),
        index_digest=index.digest if index else None,
        stamps=tuple(layer.created for layer in chain),
    )
    return Record("abc.0", None, (recorded,), 0)


@pytest.mark.parametrize("index", [None, BOTH])
async def test_what_was_removed_is_back_as_it_was(store: Store, protection: Protection, index: Index | None) -> None:
    name = f"{AGENT}@{(index or ONE).digest}"
    put(store, index or ONE, name)
    kept, before = record(store, ONE, index), stored(store, name)
    await protection.protect([kept])
    assert not protection.lost(kept)
    podman_remove(store, before.id)
    assert len(protection.lost(kept)) == 1
    assert await protection.bring_back(kept)
    after = stored(store, name)
    assert (after.id, after.digest, after.digests, after.names) == (
        before.id,
        before.digest,
        before.digests,
        before.names,
    )
    # The record's word for the layers still counts: they are the same copies.
    wanted = PlannedImage(parse_reference(kept.images[0].reference), ONE.digest, (), True)
    (verified,) = await verify([wanted], store, frozenset(kept.images[0].layers))
    assert verified.stamps == kept.images[0].stamps
    assert not await protection.bring_back(kept)


async def test_every_digest_that_somebody_is_bound_to_is_back(store: Store, protection: Protection) -> None:
    """One image of two indexes, because another one in them has changed; and one that was kept before it had any."""
    later, others = build_index([ONE]), "quay.io/edge/other"
    put(store, ONE, f"{others}@{ONE.digest}", f"{AGENT}@{ONE.digest}")
    plain = [record(store, ONE), record(store, ONE, name=f"{others}@{ONE.digest}")]
    await protection.protect(plain)
    put(store, BOTH, f"{AGENT}@{BOTH.digest}")
    put(store, later, f"{AGENT}@{later.digest}")
    kept = [record(store, ONE, index, f"{AGENT}@{index.digest}") for index in (BOTH, later)] + plain
    assert not await protection.protect(kept)
    names = stored(store, f"{AGENT}@{ONE.digest}").names
    podman_remove(store, ONE.image_id, "--force")
    for each in kept:
        await protection.bring_back(each)
        assert not protection.lost(each)
    assert {stored(store, name).id for name in names} == {ONE.image_id}


async def test_an_image_whose_configuration_names_another_platform_is_back(
    store: Store, protection: Protection
) -> None:
    crossed = build([SHARED], arch="s390x")
    index = build_index([replace(crossed, arch=ONE.arch)])
    put(store, index, f"{AGENT}@{index.digest}")
    kept = record(store, crossed, index)
    assert not await protection.protect([kept])
    podman_remove(store, crossed.image_id)
    assert await protection.bring_back(kept)


async def test_an_image_without_layers_is_kept_too(store: Store, protection: Protection) -> None:
    bare = build([])
    put(store, bare, f"{AGENT}@{bare.digest}")
    kept = record(store, bare)
    assert not await protection.protect([kept])
    podman_remove(store, bare.image_id)
    assert await protection.bring_back(kept)


async def test_what_is_to_be_left_alone_is(store: Store, protection: Protection) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    kept = record(store, ONE)
    await protection.protect([kept], leave=lambda image_id: image_id == ONE.image_id)
    assert not store.index().anchored()
    await protection.protect([kept])
    podman_remove(store, ONE.image_id)
    assert not await protection.bring_back(kept, leave=lambda image_id: image_id == ONE.image_id)
    assert protection.lost(kept)


async def test_what_nobody_kept_is_not_brought_back(store: Store, protection: Protection) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    kept = record(store, ONE)
    podman_remove(store, ONE.image_id)
    assert not protection.lost(kept)
    assert not await protection.bring_back(kept)
    assert not await protection.bring_back(None)


async def test_what_is_kept_of_others_is_given_up(store: Store, protection: Protection) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    kept = record(store, ONE)
    await protection.protect([kept])
    assert [path.name for path in protection.folder.iterdir()] == [ONE.digest.removeprefix("sha256:")]
    await protection.protect([])
    assert not list(protection.folder.iterdir())


async def test_what_is_described_wrongly_is_not_kept_and_said(store: Store, protection: Protection) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    kept = record(store, ONE)
    for path in (store.root / "overlay-images" / ONE.image_id).iterdir():
        path.write_bytes(b"{}")
    (problem,) = (await protection.protect([kept])).values()
    assert "cannot be kept from other programs' clean-up" in problem
    podman_remove(store, ONE.image_id)
    assert not protection.lost(kept)


async def test_a_layer_that_is_gone_as_well_is_left_to_the_registry(store: Store, protection: Protection) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    kept = record(store, ONE)
    await protection.protect([kept])
    podman_remove(store, ONE.image_id)
    await store.remove_layer(next(layer for layer in store.index().layers.values() if layer.anchors))
    assert not protection.lost(kept)


async def test_anchors_go_with_the_deployment(store: Store, protection: Protection) -> None:
    """Collect leaves them as long as a deployment is bound to what they keep, and then takes all."""
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    kept = record(store, ONE)
    await protection.protect([kept])
    far = 4e9
    bound = Kept(digests={(AGENT, ONE.digest): "v1"}, layers=frozenset(kept.images[0].layers))
    assert not what_goes(store.index(), bound, Standing(), now=far).layers
    podman_remove(store, ONE.image_id)
    assert not what_goes(store.index(), bound, Standing(), now=far).layers
    gone = what_goes(store.index(), Kept(), Standing(), now=far).layers
    assert {layer.id for layer in gone} == set(store.index().layers)
    # Records of deployments that are gone say of the layers, but not of the anchor, that nobody is about to bind them.
    known = Kept(known=frozenset(kept.images[0].layers))
    assert what_goes(store.index(), known, Standing(), now=time.time()).layers == gone
    for layer in gone:
        await store.remove_layer(layer)
    assert not store.index().layers
