# SPDX-License-Identifier: Apache-2.0
"""Floating images that have moved on, by a real registry."""

from __future__ import annotations

from lashd.steps.moved import moved
from lashd.words.config import Settings
from lashd.words.model import BoundImage, Record, RecordedImage
from lashd.words.reference import parse_reference
from tests.support.images import Image, build, build_index
from tests.support.registry import Registry

ONE, TWO = build([{"version": b"1"}]), build([{"version": b"2"}])
OTHER = build([{"version": b"1"}], arch="s390x")


def bound(name: str) -> BoundImage:
    return BoundImage("x.container", name, parse_reference(name))


def recorded(image: BoundImage, content: Image) -> RecordedImage:
    return RecordedImage(str(image.reference), content.digest, content.image_id)


async def test_only_what_means_something_else_has_moved(registry: Registry, settings: Settings) -> None:
    place = f"127.0.0.1:{registry.port}"
    registry.push("stays", ONE, "1")
    registry.push("moves", TWO, "1")
    registry.push("index", build_index([OTHER, ONE]), "1")
    pinned = f"{place}/moves@{ONE.digest}"
    images = [bound(f"{place}/{name}") for name in ("stays:1", "moves:1", "index:1", "gone:1", "new:1")]
    record = Record("a.0", None, tuple(recorded(image, ONE) for image in [*images[:4], bound(pinned)]), 0)
    found = await moved([*images, bound(pinned), images[1]], record, settings)
    assert found.references == (f"{place}/moves:1",)
    (sentence,) = found.unknown
    assert f"{place}/gone:1" in sentence
    assert await moved(images, None, settings) == await moved([], record, settings)
