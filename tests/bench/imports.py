# SPDX-License-Identifier: Apache-2.0
"""Importing an upgrade that changes one of five layers, against importing all of it: bytes and time."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from lashd.things.host import HostBackend, find_host
from lashd.words.model import HostImage
from lashd.words.progress import Event, ItemProgress
from tests.bench.measure import Figure, median
from tests.bench.service import settings_below
from tests.support.host import write_root
from tests.support.images import Image, LayerBlob, build, files, random_bytes
from tests.support.registry import Registry

SIZE = 30_000_000


async def imports(work: Path, repeats: int) -> list[Figure]:
    """Bars `import_delta.bytes_factor` and `import_delta.speedup`: five layers of 30 MB, of which one changes."""
    kernel = files({"usr/lib/modules/1/vmlinuz": "kernel", "usr/lib/modules/1/initramfs.img": "initramfs"})
    same = [random_bytes(SIZE, seed=number, count=300, path=f"usr/share/data{number}") for number in range(4)]
    full: list[tuple[float, int, int]] = []
    delta: list[tuple[float, int, int]] = []
    with Registry() as registry:
        for number in range(repeats):
            below = work / str(number)
            settings = settings_below(below)
            write_root(settings.paths.root, insecure=[registry.address])
            backend = find_host(settings)
            for version, samples in ((1, full), (2, delta)):
                image = changed(kernel, same, 1000 * (number + 1) + version)
                registry.push("bench/os", image, tag="stable")
                samples.append(await fetched(backend, HostImage(registry.reference("bench/os", "stable")), below))
                seconds, read, written = samples[-1]
                print(f"  v{version}: {seconds:.2f} s, {read / 1e6:.1f} MB fetched, repository +{written / 1e6:.1f} MB")
            shutil.rmtree(below)
    ratio = [new[0] / old[0] for old, new in zip(delta, full, strict=True)]
    read = [new[1] / old[1] for old, new in zip(full, delta, strict=True)]
    written = [new[2] / old[2] for old, new in zip(full, delta, strict=True)]
    return [
        Figure(
            *("import_delta.bytes_factor", max(median(read), median(written)), "×", "≤ 0.21"),
            f"one of five equal layers; fetched ×{median(read):.3f}, written ×{median(written):.3f} of a full import",
            tuple(written),
        ),
        Figure(
            *("import_delta.speedup", median(ratio), "times", "≥ 2.5"),
            f"full import {median([seconds for seconds, _, _ in full]):.2f} s",
            tuple(ratio),
        ),
    ]


def changed(kernel: LayerBlob, same: list[LayerBlob], seed: int) -> Image:
    return build([kernel, *same, random_bytes(SIZE, seed=seed, count=300, path="usr/share/changing")])


async def fetched(backend: HostBackend, image: HostImage, below: Path) -> tuple[float, int, int]:
    """Fetch and import once: (seconds, bytes of layers fetched, bytes by which the repository grew)."""
    items: dict[str, int] = {}

    def note(event: Event) -> None:
        if isinstance(event, ItemProgress):
            items[event.item] = max(items.get(event.item, 0), event.bytes_done)

    before, began = used(below), time.perf_counter()
    await backend.fetch(image, expected_digest=None, report=note)
    return time.perf_counter() - began, sum(items.values()), used(below) - before


def used(folder: Path) -> int:
    """Bytes on disk of everything below `folder`."""
    return sum(os.lstat(Path(where, name)).st_blocks * 512 for where, _, names in os.walk(folder) for name in names)
