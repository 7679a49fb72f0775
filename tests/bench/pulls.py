# SPDX-License-Identifier: Apache-2.0
"""Pulling, against bootc's way: one after the other with podman. Cold stores, the same driver, alternating runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.bench.link import Link
from tests.bench.measure import Figure, median
from tests.bench.trixie import Trixie
from tests.support.images import build, random_bytes
from tests.support.registry import Registry

MB = 1_000_000
MBIT = 125_000  # bytes a second


def fill(registry: Registry, count: int, size: int, shared: int) -> tuple[list[str], int]:
    """Push `count` images of `size` bytes and one layer that all share: (name@digest of each, unique bytes)."""
    base, names, unique = random_bytes(shared, seed=1), [], 0
    unique += len(base.blob)
    for number in range(count):
        own = random_bytes(size, seed=100 + number)
        image = build([base, own], labels={"number": str(number)})
        name = f"bench-{size}/app{number}"
        names.append(f"{name}@{registry.push(name, image, tag='latest')}")
        unique += len(own.blob)
    return names, unique


async def latency(work: Path, repeats: int) -> list[Figure]:
    """Bar (a): 30 images of 2 MB and a shared layer of 3 MB; 60 ms round trip, 1 Gbit/s."""
    with Registry() as registry:
        names, unique = fill(registry, 30, 2 * MB, 3 * MB)
        podman: list[float] = []
        lashd: list[float] = []
        crossed: list[float] = []
        for number in range(repeats):
            for way, samples in (("bootc", podman), ("lashd", lashd)):
                answer, carried = await once(work, registry, names, way, f"a{number}", 0.060, 1000 * MBIT)
                samples.append(answer["seconds"])
                if way == "lashd":
                    crossed.append(carried)
                print(f"  (a) {way}: {answer['seconds']:.2f} s, {carried / MB:.1f} MB crossed")
    ratio = median(podman) / median(lashd)
    return [
        Figure(
            *("pull_latency.speedup", ratio, "times", "≥ 4.0"),
            f"podman one after the other: {median(podman):.1f} s, lashd {median(lashd):.1f} s",
            tuple(lashd),
        ),
        Figure(
            *("pull_latency.bytes_factor", round(median(crossed) / unique, 3), "×", "≤ 1.01"),
            f"unique layer bytes {unique / MB:.1f} MB; crossed with manifests, configurations and HTTP",
            tuple(crossed),
        ),
    ]


async def bandwidth(work: Path, repeats: int) -> list[Figure]:
    """Bar (b): 8 images of 40 MB and a shared layer of 10 MB; 50 ms, 200 Mbit/s."""
    with Registry() as registry:
        names, unique = fill(registry, 8, 40 * MB, 10 * MB)
        limit = unique / (200 * MBIT)
        samples = []
        for number in range(repeats):
            answer, _ = await once(work, registry, names, "lashd", f"b{number}", 0.050, 200 * MBIT)
            samples.append(answer["seconds"])
            print(f"  (b) lashd: {answer['seconds']:.2f} s, the line alone {limit:.2f} s")
        podman, _ = await once(work, registry, names, "bootc", "b", 0.050, 200 * MBIT)
    return [
        Figure(
            *("pull_bandwidth.over_limit", median(samples) / limit, "×", "≤ 1.30"),
            f"unique bytes ÷ bandwidth: {limit:.1f} s; podman one after the other: {podman['seconds']:.1f} s",
            tuple(samples),
        )
    ]


async def once(
    work: Path, registry: Registry, names: list[str], way: str, run: str, round_trip: float, rate: float
) -> tuple[dict[str, Any], int]:
    trixie = Trixie(work)
    trixie.fresh()
    async with Link(("127.0.0.1", registry.port), round_trip=round_trip, rate=rate) as link:
        address = f"127.0.0.1:{link.port}"
        trixie.trust([address])
        request = {"way": way, "run": run, "images": [f"{address}/{name}" for name in names]}
        answer = await asyncio.to_thread(trixie.run, "tests.bench.inside", request)
        carried = await link.carried()
    if way == "lashd" and set(answer["states"]) != {"present"}:
        raise RuntimeError(f"not all images are present afterwards: {answer['states']}")
    return answer, carried.down


async def present(work: Path, repeats: int) -> list[Figure]:
    """Bars (c) and (d): a bind with everything there; pinned without any process, floating through 60 ms."""
    trixie = Trixie(work)
    trixie.fresh()
    pinned_ms: list[float] = []
    floating_s: list[float] = []
    processes: list[float] = []
    with Registry() as registry:
        names, _ = fill(registry, 50, 20_000, 10_000)
        async with Link(("127.0.0.1", registry.port), round_trip=0.060, rate=1000 * MBIT) as link:
            address = f"127.0.0.1:{link.port}"
            trixie.trust([address])
            pinned = [f"{address}/{name}" for name in names]
            floating = [name.partition("@")[0] for name in pinned]

            def bind(run: str, images: list[str]) -> dict[str, Any]:
                return trixie.run("tests.bench.inside", {"way": "lashd", "run": run, "images": images})

            await asyncio.to_thread(bind, "first", pinned)
            await asyncio.to_thread(bind, "named", floating)
            for number in range(repeats):
                answer = await asyncio.to_thread(bind, f"pinned{number}", pinned)
                pinned_ms.append(answer["seconds"] * 1000)
                processes.append(answer["processes"])
                answer = await asyncio.to_thread(bind, f"floating{number}", floating)
                floating_s.append(answer["seconds"])
                print(f"  (c) {pinned_ms[-1]:.1f} ms, {processes[-1]:.0f} processes  (d) {floating_s[-1]:.2f} s")
            # The measure must be able to fail: an image whose layer directory is gone is not called present.
            layers = [
                path
                for path in (trixie.data / "sysroot/ostree/bootc/storage/overlay").iterdir()
                if len(path.name) == 64
            ]
            victim = max(layers, key=lambda path: path.stat().st_mtime_ns)
            victim.rename(trixie.data / "gone")
            answer = await asyncio.to_thread(bind, "after-damage", pinned)
            if answer["fetched"] == 0 or set(answer["states"]) != {"present"}:
                raise RuntimeError(f"a removed layer directory was not noticed and repaired: {answer}")
    return [
        Figure("bind_present.processes", max(processes), "processes", "≤ 0", "50 pinned images, all present"),
        Figure(
            *("bind_present.ms", median(pinned_ms), "ms", "≤ 50"),
            "50 pinned images, all present, recorded anew",
            tuple(pinned_ms),
        ),
        Figure(
            *("bind_floating.s", median(floating_s), "s", "≤ 1.5"),
            "50 floating images, all present, 60 ms round trip, not recorded yet",
            tuple(floating_s),
        ),
    ]
