# SPDX-License-Identifier: Apache-2.0
"""Layers that stay although somebody else has removed their image, and the image that comes back without a registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from lashd.things.store import Store
from lashd.words.errors import LashdError
from tests.support.images import build, files, random_bytes
from tests.support.stores import make_store, podman_remove, put, stored

AGENT = "quay.io/edge/agent"
SHARED = files({"usr/lib/base": b"base" * 1000})
ONE = build([SHARED, random_bytes(200_000, seed=1)])
TWO = build([SHARED, random_bytes(200_000, seed=2)])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def gone(store: Store, image_id: str) -> bool:
    return all(image.id != image_id for image in store.index().images)


async def test_layers_stay_when_their_image_is_removed_by_somebody_else(store: Store) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    put(store, TWO, f"{AGENT}:2")
    one, before = stored(store, f"{AGENT}@{ONE.digest}"), set(store.index().layers)
    assert await store.anchor(one)
    assert {image.id for image in store.index().images} == {ONE.image_id, TWO.image_id}
    assert len(set(store.index().layers) - before) == 1
    podman_remove(store, ONE.image_id)
    podman_remove(store, TWO.image_id)
    assert gone(store, ONE.image_id)
    chain = store.index().chain(one)
    assert chain is not None
    assert store.layers_on_disk(chain)
    # Of the other one nothing is left but what they share.
    assert len(store.index().layers) == 3


async def test_without_an_anchor_they_go(store: Store) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    podman_remove(store, ONE.image_id)
    assert not store.index().layers


async def test_an_anchor_is_set_once(store: Store) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    one = stored(store, f"{AGENT}@{ONE.digest}")
    assert await store.anchor(one)
    index = store.index()
    assert await store.anchor(one)
    assert store.index() is index
    (anchor,) = [layer for layer in index.layers.values() if layer.anchors]
    assert index.anchored() == {one.top_layer} == {anchor.parent}


async def test_an_anchor_that_is_removed_takes_what_no_image_stands_on(store: Store) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    put(store, TWO, f"{AGENT}:2")
    await store.anchor(stored(store, f"{AGENT}@{ONE.digest}"))
    podman_remove(store, ONE.image_id)
    (anchor,) = [layer for layer in store.index().layers.values() if layer.anchors]
    await store.remove_layer(anchor)
    two = stored(store, f"{AGENT}:2")
    chain = store.index().chain(two)
    assert chain is not None
    assert set(store.index().layers) == {layer.id for layer in chain}
    assert store.complete(two)


async def test_a_store_that_cannot_be_written_is_told(store: Store) -> None:
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    broken = Store(store.root, store.run_root, store.sysroot, skopeo="false")
    with pytest.raises(LashdError, match="Keeping the layers of"):
        await broken.anchor(stored(store, f"{AGENT}@{ONE.digest}"))
