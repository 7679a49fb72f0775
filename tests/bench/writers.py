# SPDX-License-Identifier: Apache-2.0
"""Four writers of one store at once: nothing may be missing or damaged afterwards. What they do is in `writing`."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

from tests.bench.measure import Figure
from tests.bench.trixie import Trixie
from tests.bench.writing import WRITERS
from tests.support.images import Image, LayerBlob, build, random_bytes
from tests.support.registry import Registry

ROUNDS = 50
_ROUND_SECONDS = 30.0
_FILES = 20  # in each layer


def images_of(number: int) -> dict[str, Image]:
    """The images of round `number` by their name in the registry: two own ones for lashd, one for each other, one for
    all; on a layer of all rounds and one of this round."""
    below = [_layer(200_000, 0), _layer(100_000, 1 + number)]
    names = [*(f"own/{writer}{number}" for writer in WRITERS), f"own/lashd{number}-too", f"all/{number}"]
    return {
        name: build([*below, _layer(150_000, 10_000 + 10 * number + place)], labels={"name": name})
        for place, name in enumerate(names)
    }


def _layer(size: int, seed: int) -> LayerBlob:
    return random_bytes(size, seed=seed, count=_FILES)


def _facts(image: Image) -> dict[str, Any]:
    """What must be found of it: {digest, id, layers (how many), files ({path: digest})}."""
    files = {}
    for layer in image.layers:
        with tarfile.open(fileobj=io.BytesIO(zlib.decompress(layer.blob, wbits=31))) as archive:
            for member in archive:
                if (content := archive.extractfile(member)) is not None:
                    files[member.name] = hashlib.sha256(content.read()).hexdigest()
    return {"digest": image.digest, "id": image.image_id, "layers": len(image.layers), "files": files}


def write(work: Path, rounds: int) -> dict[str, Any]:
    """What `writing` answers after so many rounds; `work` must be on a file system that a store can be on."""
    trixie = Trixie(work)
    trixie.fresh()
    with Registry(storage=work / "registry") as registry:
        request: dict[str, Any] = {"rounds": []}
        for number in range(rounds):
            images = images_of(number)
            for name, image in images.items():
                registry.push(name, image, tag="1")
            facts = {f"{registry.address}/{name}:1": _facts(image) for name, image in images.items()}
            request["rounds"].append(facts)
        trixie.trust([registry.address])
        return trixie.run("tests.bench.writing", request, timeout=120 + rounds * _ROUND_SECONDS)


async def writers(work: Path, repeats: int) -> list[Figure]:
    """lashd, podman, bootc's podman and another skopeo write one store at once, 50 rounds; `repeats` is not heeded."""
    answer = await asyncio.to_thread(write, work, ROUNDS)
    for sentence in answer["wrong"]:
        print(f"  {sentence}")
    if answer["noticed"] != ["lashd", "podman"]:
        raise RuntimeError(f"a file that was changed afterwards was noticed by {answer['noticed']} only")
    seen = f"{answer['images']} images, {answer['layers']} layers, {answer['looks']} looks meanwhile"
    return [
        Figure("writers.wrong", len(answer["wrong"]), "things", "≤ 0", seen),
        Figure("writers.together", answer["together"], "rounds", f"≥ {ROUNDS * 0.9:.0f}", "all four at one moment"),
    ]
