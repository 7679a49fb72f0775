# SPDX-License-Identifier: Apache-2.0
"""What is measured inside the throwaway host's Debian: one bind, by lashd or in bootc's way, timed in the process.

Reads a request as JSON from standard input: `way` (lashd or bootc), `images` (references), `run` (a name; the same
name means the same deployment). Answers with JSON: `seconds`, `processes` started, `states` of the images afterwards.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BASE = Path("/mnt")


def main() -> None:
    request = json.load(sys.stdin)
    answer = by_bootc(request) if request["way"] == "bootc" else asyncio.run(by_lashd(request))
    print(json.dumps(answer))


def by_bootc(request: dict[str, Any]) -> dict[str, Any]:
    """As bootc does it: for each image `podman image exists`, and when it does not, `podman image pull`."""
    podman = ["podman", "--root", f"{BASE}/bootc/storage", "--runroot", "/run/bootc", "--storage-driver", "overlay"]
    subprocess.run([*podman, "images"], check=True, capture_output=True)
    processes, started = 0, time.perf_counter()
    for image in request["images"]:
        processes += 1
        if subprocess.run([*podman, "image", "exists", image], check=False).returncode != 0:
            processes += 1
            subprocess.run([*podman, "image", "pull", image], check=True, capture_output=True)
    return {"seconds": time.perf_counter() - started, "processes": processes}


class NoHost:
    """Nothing is booted here; only binding is measured."""

    def deployments(self) -> tuple[()]:
        return ()

    async def make_readable(self) -> None:
        pass


def write_deployment(name: str, images: list[str]) -> Any:
    """A deployment called `name` whose root binds `images`, each by an .image unit; it may be there already."""
    from lashd.words.model import Deployment

    root = BASE / "roots" / name
    links = root / "usr/lib/bootc/bound-images.d"
    units = root / "usr/share/containers/systemd"
    for directory in (links, units):
        directory.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        unit = units / f"app{number}.image"
        unit.write_text(f"[Image]\nImage={image}\nPolicy=missing\n")
        link = links / unit.name
        if not link.is_symlink():
            link.symlink_to(f"/usr/share/containers/systemd/{unit.name}")
    return Deployment("os", name, 0, root)


async def by_lashd(request: dict[str, Any]) -> dict[str, Any]:
    from lashd.running.walk import Walk
    from lashd.steps.record import Records
    from lashd.things.store import Store
    from lashd.words import run
    from lashd.words.config import settings_from
    from lashd.words.progress import ignore

    settings = settings_from(
        {
            "host": {"sysroot": BASE / "sysroot"},
            "paths": {"state": BASE / "state", "run": "/run/lashd"},
            "pull": request.get("pull", {}),
        }
    )
    for directory in (settings.paths.state / "records", Path("/run/lashd"), settings.host.sysroot):
        directory.mkdir(parents=True, exist_ok=True)
    deployment = write_deployment(request["run"], request["images"])
    store = Store(settings.store, settings.store_run, settings.host.sysroot)
    await store.ensure()
    walk = Walk(NoHost(), store, Records(settings.paths.state / "records"), settings)  # type: ignore[arg-type]

    processes, create = 0, asyncio.create_subprocess_exec

    async def counted(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        nonlocal processes
        processes += 1
        return await create(*arguments, **options)

    asyncio.create_subprocess_exec = counted  # type: ignore[assignment]
    assert run.asyncio.create_subprocess_exec is counted
    # A running daemon has these parts loaded and its index read; a first look is not what is measured.
    found = walk_warm(walk, deployment)
    started = time.perf_counter()
    bound = await walk.bind(deployment, ignore)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "processes": processes,
        "fetched": bound.plan.bytes_to_fetch,
        "states": sorted(walk.states(deployment, found).values()),
    }


def walk_warm(walk: Any, deployment: Any) -> Any:
    from lashd.steps.discover import discover

    found = discover(deployment.root, deployment.merges)
    walk.states(deployment, found)
    return found


if __name__ == "__main__":
    main()
