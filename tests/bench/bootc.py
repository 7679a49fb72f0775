# SPDX-License-Identifier: Apache-2.0
"""On a booted host on which bootc (the stand-in of the tests) stages: bound images with lashd against bootc alone.

Counted is from "staged" to "all present". What goes before that matters too, because lashd fetches while bootc stages:
so once with a host image of a few thousand files, and once with as many as real ones have.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from demo import disk, images
from demo.host import Host
from demo.images import Version
from lashd.things.ostree import names
from tests.bench.link import Link
from tests.bench.measure import Figure, median
from tests.support.images import Content, Image, LayerBlob, build, files, random_bytes
from tests.support.images import Link as SymbolicLink
from tests.support.installed import STAND_IN, alone, install_disk
from tests.support.registry import Registry

COUNT, SIZE, SHARED = 8, 2_000_000, 3_000_000
FILES = 30_000  # of a real host image; some have more
ROUND_TRIP, RATE = 0.060, 125_000_000.0  # seconds; bytes a second: link (a)
_FAR = images.REGISTRY_PORT + 1
_INDEX = "/usr/lib/bootc/storage/overlay-images/images.json"
_REF = f"/ostree/repo/refs/heads/{names.image_ref('registry', images.HOST_REFERENCE)}"
_STAGED = "/run/ostree/staged-deployment"
# In the guest: how long Describe and ListBound take, in milliseconds, while bootc holds its lock.
_ASK = """
import asyncio, json, time
from lashd.bus.library import connect
from lashd.bus.contract import MANAGER, NAME, ROOT

async def main():
    client, taken = await connect(), []
    for _ in range(100):
        for member, signature, body in (("Describe", "", []), ("ListBound", "a{sv}", [{}])):
            began = time.perf_counter()
            await client.call(NAME, ROOT, MANAGER, member, signature, body)
            taken.append((time.perf_counter() - began) * 1000)
    print(json.dumps(taken))

asyncio.run(main())
"""


async def bootc(work: Path, repeats: int) -> list[Figure]:
    """Bars `bootc.speedup` (8 bound images through link (a)) and `bootc.ask_ms` (while bootc holds its lock)."""
    stand_in = files({"usr/bin/bootc": STAND_IN})
    small = await _compared(work / "small.img", (*images.common_layers(), stand_in), repeats, "a small host image")
    whole = f"a host image of {FILES} files more"
    large = await _compared(work / "large.img", (*images.common_layers(), stand_in, _many()), repeats, whole)
    asked = _asked(work, work / "small.img")
    print(f"  asked while bootc holds its lock: {median(asked):.2f} ms, {max(asked):.2f} ms at most")
    return [
        large.figure("bootc.speedup", "≥ 4.0"),
        small.figure("bootc.small", "≥ 2.0"),
        Figure(
            *("bootc.ask_ms", median(asked), "ms", "≤ 5"),
            f"Describe and ListBound, call to answer, while bootc holds its lock; at most {max(asked):.1f}",
        ),
    ]


@dataclass
class _Sample:
    """Seconds from the new host image's commit to staged, and from staged to all bound images present."""

    staging: float
    binding: float


@dataclass
class _Compared:
    what: str
    bootc: list[_Sample] = field(default_factory=list)
    lashd: list[_Sample] = field(default_factory=list)

    def figure(self, name: str, bar: str) -> Figure:
        alone, ours = (median([one.binding for one in samples]) for samples in (self.bootc, self.lashd))
        staging = [median([one.staging for one in samples]) for samples in (self.bootc, self.lashd)]
        return Figure(
            *(name, alone / ours, "times", bar),
            f"staged → all present, {self.what}: bootc alone {alone:.1f} s, lashd {ours:.1f} s; before that, commit → "
            f"staged: bootc alone {staging[0]:.1f} s, lashd, which fetches meanwhile, {staging[1]:.1f} s",
            tuple(one.binding for one in self.lashd),
        )


def _many() -> LayerBlob:
    """As many files as real host images have, so that to stage one takes the time that it takes there."""
    return files({f"usr/share/bench/{number // 50}/{number}": f"{number}\n" * 20 for number in range(FILES)})


async def _compared(template: Path, layers: tuple[LayerBlob, ...], repeats: int, what: str) -> _Compared:
    apps, shared = [], random_bytes(SHARED, seed=1)
    more: dict[str, Content] = {}
    for number in range(COUNT):
        apps.append(build([shared, random_bytes(SIZE, seed=100 + number)]))
        unit, place = f"app{number}.image", "usr/share/containers/systemd"
        more[f"{place}/{unit}"] = f"[Image]\nImage={images.REGISTRY}/bench/app{number}:1\nPolicy=missing\n"
        more[f"usr/lib/bootc/bound-images.d/{unit}"] = SymbolicLink(f"/{place}/{unit}")
    second = images.version("2", (), layers, more)
    install_disk(template, images.version("1", (), layers), f"bt{os.getpid()}")
    found = _Compared(what)
    for _ in range(repeats):
        for way, samples in (("bootc", found.bootc), ("lashd", found.lashd)):
            samples.append(await _once(template.parent, template, second, apps, way))
            print(
                f"  {what}, {way}: {samples[-1].staging:.2f} s from commit to staged, "
                f"{samples[-1].binding:.2f} s to all present"
            )
    return found


async def _once(work: Path, template: Path, second: Version, apps: list[Image], way: str) -> _Sample:
    host = Host(f"b{os.getpid()}", work / "host")
    with host, Registry(netns=host.network.path, port=_FAR, storage=work / "registry") as registry:
        disk.copy(template, host.disk)
        for number, app in enumerate(apps):
            registry.push(f"bench/app{number}", app, "1")
        registry.push(images.HOST_REPOSITORY, second.image, images.HOST_TAG)
        near = {"netns": host.network.path, "port": images.REGISTRY_PORT}
        async with Link(("127.0.0.1", _FAR), round_trip=ROUND_TRIP, rate=RATE, **near):
            host.start()
            if way == "bootc":
                alone(host)
            argv = ["bootc", "upgrade", "--quiet"] if way == "bootc" else ["lashctl", "upgrade", "--json"]
            host.run(*argv, timeout=300)
        # lashd calls an image present once a record vouches for it; for podman that is when it is in the index.
        last = _INDEX if way == "bootc" else "/var/lib/lashd/records/*.json"
        times = host.run("sh", "-c", f"stat --format=%.Y {_REF} {_STAGED} $(ls -t {last} | head -n 1)").output.split()
        index = json.loads(host.run("cat", _INDEX).output)
        if len(index) != COUNT:
            raise RuntimeError(f"{way}: {len(index)} images are in the store, not {COUNT}")
    committed, staged, present = map(float, times)
    return _Sample(staged - committed, present - staged)


def _asked(work: Path, template: Path) -> list[float]:
    host = Host(f"b{os.getpid()}", work / "host")
    with host:
        disk.copy(template, host.disk)
        host.start()
        host.run("lashctl", "status")
        host.run("sh", "-c", "printf '{\"locked_seconds\": 30}' > /etc/bootc-stand-in.json")
        host.run("sh", "-c", "systemd-run --quiet --unit=busy bootc status --json; sleep 1")
        taken = json.loads(host.run("python3", "-", input=_ASK.encode(), timeout=60).output)
        if host.run("systemctl", "is-active", "busy", check=False).output != "active\n":
            raise RuntimeError("bootc did not hold its lock all the time")
    return list(taken)
