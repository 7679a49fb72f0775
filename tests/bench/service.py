# SPDX-License-Identifier: Apache-2.0
"""The daemon: how soon it is there, how much memory it takes, how fast it answers; on a real sysroot, store and bus."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from lashd.bus.contract import MANAGER, NAME, ROOT
from lashd.bus.library import BUS, BUS_PATH, LIBRARY, Match, Message, Variant, connect
from lashd.running.service import Service
from lashd.running.walk import Walk
from lashd.steps.record import Records
from lashd.things.host import HostBackend, find_host
from lashd.things.store import Store
from lashd.words.config import Settings, settings_from
from lashd.words.model import HostImage
from lashd.words.progress import ignore
from tests.bench.measure import Figure, median
from tests.bus.conftest import REPOSITORY, private_bus
from tests.support.host import write_root
from tests.support.images import Content, Link, build, files, random_bytes
from tests.support.registry import Registry

IMAGES = 100


async def service(work: Path, repeats: int) -> list[Figure]:
    """Bars `daemon.start_ms`, `daemon.rss_mib`, `list_bound_100.ms`."""
    settings = settings_below(work)
    with Registry() as registry:
        key = await furnish(registry, settings, IMAGES)
    directory = work / "settings"
    directory.mkdir(exist_ok=True)
    (directory / "bench.toml").write_text(
        f"[host]\nsysroot = '{settings.host.sysroot}'\n"
        f"[paths]\nstate = '{settings.paths.state}'\nrun = '{settings.paths.run}'\n"
        f"ostree_run = '{settings.paths.ostree_run}'\nroot = '{settings.paths.root}'\n"
    )
    starts: list[float] = []
    memory: list[float] = []
    with private_bus() as (address, _daemon):
        for _ in range(max(repeats, 5)):
            started, resident = await once(address, directory, key)
            starts.append(started)
            memory.append(resident)
        answers, anew = await list_bound(address, settings, find_host(settings), key)
    print(
        f"  start {median(starts):.0f} ms, {median(memory):.1f} MiB, ListBound {median(answers):.2f} ms, "
        f"{median(anew):.2f} ms when the answer is made anew ({LIBRARY})"
    )
    return [
        Figure("daemon.start_ms", median(starts), "ms", "≤ 500", "process start to name owned", tuple(starts)),
        Figure(
            *("daemon.rss_mib", median(memory), "MiB", "≤ 45"),
            f"resident, at rest, after it has answered ListBound of {IMAGES} images",
            tuple(memory),
        ),
        Figure(
            *("list_bound_100.ms", median(answers), "ms", "≤ 3"),
            f"call received to reply handed to the bus, {IMAGES} images, {LIBRARY}; first time {median(anew):.1f}",
            (min(answers), max(answers)),
        ),
    ]


def settings_below(work: Path) -> Settings:
    sysroot = work / "sysroot"
    sysroot.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ostree", "admin", "init-fs", "--modern", str(sysroot)], check=True)
    subprocess.run(["ostree", "admin", "os-init", f"--sysroot={sysroot}", "bench"], check=True, capture_output=True)
    repository = f"--repo={sysroot}/ostree/repo"
    subprocess.run(["ostree", "config", repository, "set", "sysroot.bootloader", "none"], check=True)
    names = {name: work / name for name in ("state", "run", "ostree_run", "root")}
    for path in names.values():
        path.mkdir(exist_ok=True)
    return settings_from({"host": {"sysroot": sysroot}, "paths": names, "pull": {"reserve_bytes": 0}})


async def furnish(registry: Registry, settings: Settings, images: int) -> str:
    """Install a host image that binds `images` images, and bind it; returns the deployment's key."""
    write_root(settings.paths.root, insecure=[registry.address])
    shared = random_bytes(10_000, seed=1)
    tree: dict[str, Content] = {
        "usr/lib/modules/1/vmlinuz": "kernel",
        "usr/lib/modules/1/initramfs.img": "initramfs",
        "usr/lib/os-release": "ID=bench\nVERSION_ID=1\n",
    }
    for number in range(images):
        name = f"app{number}"
        image = build([shared, random_bytes(5_000, seed=number + 2), random_bytes(1_000, seed=number + 1000)])
        registry.push(f"bench/{name}", image, tag="1")
        tree[f"usr/share/containers/systemd/{name}.image"] = (
            f"[Image]\nImage={registry.address}/bench/{name}:1\nPolicy=missing\n"
            "GlobalArgs=--storage-opt=additionalimagestore=/usr/lib/bootc/storage\n"
        )
        tree[f"usr/lib/bootc/bound-images.d/{name}.image"] = Link(f"/usr/share/containers/systemd/{name}.image")
    registry.push("bench/os", build([files(tree)]), tag="1")
    backend = find_host(settings)
    image = HostImage(registry.reference("bench/os", "1"))
    deployment = await backend.stage(await backend.fetch(image, expected_digest=None, report=ignore), image)
    store = Store(settings.store, settings.store_run, settings.host.sysroot)
    await Walk(backend, store, Records(settings.paths.state / "records"), settings).bind(deployment, ignore)
    return deployment.key


async def once(address: str, directory: Path, key: str) -> tuple[float, float]:
    """Start the daemon: (milliseconds until it owns the name, MiB resident at rest)."""
    client = await connect(address)
    owned = Match(sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arguments={0: NAME})
    argv = [sys.executable, "-m", "lashd.bus.service", "--settings", str(directory), "--bus", address]
    async with await client.watch(owned) as news:
        began = time.perf_counter()
        daemon = await asyncio.create_subprocess_exec(*argv, cwd=REPOSITORY)
        try:
            async with asyncio.timeout(30):
                async for message in news:
                    if message.body[0] == NAME and message.body[2]:
                        break
            started = (time.perf_counter() - began) * 1000
            rows = (await client.call(NAME, ROOT, MANAGER, "ListBound", "a{sv}", [{"deployment": Variant("s", key)}]))[
                0
            ]
            assert len(rows) == IMAGES
            await asyncio.sleep(1)
            status = Path(f"/proc/{daemon.pid}/status").read_text()
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        finally:
            daemon.terminate()
            await daemon.wait()
            await client.disconnect()
    return started, resident / 1024


async def list_bound(
    address: str, settings: Settings, backend: HostBackend, key: str
) -> tuple[list[float], list[float]]:
    """Milliseconds from a ListBound call's arrival to its reply in the library's hands.

    First those of the same question about an unchanged state, which is what who asks every second gets; then those
    whose answer has to be put together anew.
    """
    from lashd.bus.service import open_doors

    serving, client = await connect(address), await connect(address)
    running = Service(settings, backend)
    await running.start()
    dispatcher = await open_doors(serving, running)
    spent: list[float] = []

    def timed(message: Message) -> None:
        began = time.perf_counter()
        dispatcher.handle(message)
        if message.member == "ListBound":
            spent.append((time.perf_counter() - began) * 1000)

    serving.serve(timed)
    for number in range(80):
        rows = (await client.call(NAME, ROOT, MANAGER, "ListBound", "a{sv}", [{"deployment": Variant("s", key)}]))[0]
        assert len(rows) == IMAGES
        if number >= 40:
            # Another question in between, so that nothing of the last answer is left.
            await client.call(NAME, ROOT, MANAGER, "ListBound", "a{sv}", [{"deployment": Variant("s", "pinned")}])
            spent.pop()
    await dispatcher.stop()
    await running.stop()
    await serving.disconnect()
    await client.disconnect()
    return spent[5:40], spent[41:]
