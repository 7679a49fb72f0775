# SPDX-License-Identifier: Apache-2.0
"""On a booted host on which bootc (the stand-in of the tests) stages: bound images with lashd against bootc alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

from demo import disk, images
from demo.host import Host
from demo.images import Version
from tests.bench.link import Link
from tests.bench.measure import Figure, median
from tests.support.images import Content, build, files, random_bytes
from tests.support.images import Link as SymbolicLink
from tests.support.installed import STAND_IN, alone, install_disk
from tests.support.registry import Registry

COUNT, SIZE, SHARED = 8, 2_000_000, 3_000_000
ROUND_TRIP, RATE = 0.060, 125_000_000.0  # seconds; bytes a second: link (a)
_FAR = images.REGISTRY_PORT + 1
_INDEX = "/usr/lib/bootc/storage/overlay-images/images.json"
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
    template = work / "template.img"
    layers = (*images.common_layers(), files({"usr/bin/bootc": STAND_IN}))
    first, second, apps = images.version("1", (), layers), None, []
    shared = random_bytes(SHARED, seed=1)
    more: dict[str, Content] = {}
    for number in range(COUNT):
        app = build([shared, random_bytes(SIZE, seed=100 + number)])
        apps.append(app)
        unit, place = f"app{number}.image", "usr/share/containers/systemd"
        more[f"{place}/{unit}"] = f"[Image]\nImage={images.REGISTRY}/bench/app{number}:1\nPolicy=missing\n"
        more[f"usr/lib/bootc/bound-images.d/{unit}"] = SymbolicLink(f"/{place}/{unit}")
    second = images.version("2", (), layers, more)
    install_disk(template, first, f"bt{os.getpid()}")
    taken: dict[str, list[float]] = {"bootc": [], "lashd": []}
    asked: list[float] = []
    for _ in range(repeats):
        for way, samples in taken.items():
            samples.append(await _once(work, template, second, apps, way))
            print(f"  {way}: {samples[-1]:.2f} s from staged to all present")
    asked = _asked(work, template, first)
    print(f"  asked while bootc holds its lock: {median(asked):.2f} ms, {max(asked):.2f} ms at most")
    ratio = median(taken["bootc"]) / median(taken["lashd"])
    return [
        Figure(
            *("bootc.speedup", ratio, "times", "≥ 4.0"),
            f"staged → all present: bootc alone {median(taken['bootc']):.1f} s, lashd {median(taken['lashd']):.1f} s",
            tuple(taken["lashd"]),
        ),
        Figure(
            *("bootc.ask_ms", median(asked), "ms", "≤ 5"),
            f"Describe and ListBound, call to answer, while bootc holds its lock; at most {max(asked):.1f}",
        ),
    ]


async def _once(work: Path, template: Path, second: Version, apps: list[object], way: str) -> float:
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
        times = host.run("sh", "-c", f"stat --format=%.Y {_STAGED} $(ls -t {last} | head -n 1)").output.split()
        index = json.loads(host.run("cat", _INDEX).output)
        if len(index) != COUNT:
            raise RuntimeError(f"{way}: {len(index)} images are in the store, not {COUNT}")
    staged, present = map(float, times)
    return present - staged


def _asked(work: Path, template: Path, first: Version) -> list[float]:
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
