# SPDX-License-Identifier: Apache-2.0
"""Four writers of one store at once, inside the throwaway host's Debian; afterwards podman and lashd read all of it.

Reads a request as JSON from standard input: `rounds`, each of them {name: {digest, id, layers, files}} as `writers` has
put the images into a registry. Answers with JSON: `wrong` (a sentence for each thing that was not as it must be),
`images` and `layers` in the store at its end, `looks` while the writers were at work, `together` (rounds in which all
four were at work at one moment), `noticed` (who of lashd and podman sees a byte that is changed after all that).

The writers: lashd (its whole bind: plan, skopeo, verify, record), podman by the store's own path, podman as bootc runs
it (alias, own mount namespace, run directory as descriptor 3), and a skopeo of somebody else's with a run root of its
own. In each round each fetches images of its own and one that all fetch, under one name; all stand on a layer that is
there and on one that is new in that round.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lashd.running.walk import Walk
from lashd.steps.record import Records
from lashd.steps.verify import verify
from lashd.things.store import Store
from lashd.words.config import settings_from
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, ImageState, PlannedImage
from lashd.words.progress import ignore
from lashd.words.reference import parse_reference
from lashd.words.run import Completed, run
from tests.bench.inside import BASE, NoHost, write_deployment

SYSROOT = BASE / "sysroot"
ROOT = SYSROOT / "ostree/bootc/storage"
# bootc's alias, and its run root: what it has open as descriptor 3 before the alias is mounted over it.
ALIAS = Path("/run/bootc/storage")
WRITERS = ("lashd", "podman", "bootc", "skopeo")
# Everything is read after so many rounds, and at the end.
WHOLE_EVERY = 10
_LIMIT = 120.0  # seconds, for each process
_BOOTC = (
    f"exec 3<{ALIAS}; mount --bind {ROOT} {ALIAS}; "
    f'podman() {{ command podman --root {ALIAS} --runroot /proc/self/fd/3 "$@"; }}; '
)
# Mounts every image as podman has it and prints {id: {path: digest}} of the files in them.
_READ = """
ids=$(podman image list --quiet --no-trunc --all | sort -u | sed s/^sha256://)
for id in $ids; do echo "$id $(podman image mount $id)"; done | python3 -c '
import hashlib, json, pathlib, sys
found = {}
for line in sys.stdin:
    id, top = line.split()
    files = (path for path in pathlib.Path(top).rglob("*") if path.is_file())
    found[id] = {str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
print(json.dumps(found))'
podman image unmount --all >/dev/null
"""


Images = Mapping[str, dict[str, Any]]


@dataclass
class Writing:
    """All that was written so far must be there, whoever looks."""

    walk: Walk
    expected: dict[str, dict[str, Any]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    looks: int = 0
    together: int = 0

    async def round(self, number: int, images: Images) -> None:
        done = asyncio.Event()
        spans: list[tuple[float, float]] = []

        async def at_work(writer: str) -> None:
            began = time.monotonic()
            # What all fetch comes first for some and last for others.
            own = sorted((name for name in images if f"/{writer}" in name or "/all/" in name), reverse=number % 2 == 0)
            await getattr(self, f"_by_{writer}")(f"r{number}", own)
            spans.append((began, time.monotonic()))

        async def all_of_them() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for writer in WRITERS:
                        group.create_task(at_work(writer))
            finally:
                done.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(all_of_them())
            group.create_task(self._look_meanwhile(done))
        self.together += max(began for began, _ in spans) < min(ended for _, ended in spans)
        self.expected |= images
        self._look(f"after round {number}")

    # One of these for each of WRITERS.

    async def _by_lashd(self, name: str, images: list[str]) -> None:
        try:
            await self.walk.bind(write_deployment(name, images), ignore)
        except LashdError as error:
            self.wrong.append(f"lashd, {name}: {error.message}")

    async def _by_podman(self, name: str, images: list[str]) -> None:
        # Without --transient-store it wants its own database in the store, which is bootc's.
        podman = ["podman", "--transient-store", "--root", str(ROOT), "--runroot", "/run/podman-plain"]
        for image in images:
            await self._succeed(f"podman, {name}", [*podman, "pull", "--quiet", image])

    async def _by_bootc(self, name: str, images: list[str]) -> None:
        for image in images:
            await self._succeed(f"bootc's podman, {name}", as_bootc('podman image pull --quiet "$@"', image))

    async def _by_skopeo(self, name: str, images: list[str]) -> None:
        for image in images:
            to = f"containers-storage:[overlay@{ROOT}+/run/skopeo-other]{image}"
            await self._succeed(f"skopeo, {name}", ["skopeo", "copy", "--quiet", f"docker://{image}", to])

    async def _succeed(self, who: str, argv: list[str]) -> Completed:
        done = await run(argv, timeout=_LIMIT)
        if done.status != 0:
            self.wrong.append(f"{who}: status {done.status}: {done.stderr[-500:]}")
        return done

    async def _look_meanwhile(self, done: asyncio.Event) -> None:
        """Readers see, at any moment, at least what was there before."""
        while not done.is_set():
            self._look("while they write")
            listed = await self._succeed(
                "bootc's podman, while they write", as_bootc("podman image list --format=json")
            )
            if listed.status == 0:
                names = {name for image in json.loads(listed.stdout) for name in image.get("Names") or ()}
                self.wrong += [f"podman does not list {name}" for name in self.expected if name not in names]
            self.looks += 1
            await asyncio.sleep(0.3)

    def _look(self, when: str) -> None:
        """lashd's own look, which reads the index and lstat(2)s every layer's directory."""
        store, missing = self.walk.store, []
        try:
            index = store.index()
        except LashdError as error:
            self.wrong.append(f"{when}: {error.message}")
            return
        for name, image in self.expected.items():
            found = index.image_named(parse_reference(name))
            chain = None if found is None else index.chain(found)
            if found is None or found.id != image["id"] or image["digest"] not in found.digests:
                missing.append(f"{when}: {name} is not {image['digest']} in the store's index")
            elif chain is None or len(chain) != image["layers"] or not store.layers_on_disk(chain):
                missing.append(f"{when}: {name} has not all of its layers")
        self.wrong += missing

    async def read_whole(self, when: str) -> None:
        """Every layer of every image is read and compared with its digest, as `lashctl verify --deep` does."""
        wanted = [
            PlannedImage(parse_reference(name), image["digest"], (), True) for name, image in self.expected.items()
        ]
        try:
            found = await verify(wanted, self.walk.store, frozenset(), deep=True)
        except LashdError as error:
            self.wrong.append(f"{when}: {error.message}")
        else:
            if len(found) != len(wanted):
                self.wrong.append(f"{when}: {len(found)} of {len(wanted)} images were verified")

    async def read_by_podman(self) -> None:
        """Every file of every image, through podman's mounts, against the layers that were pushed."""
        done = await self._succeed("bootc's podman, at the end", as_bootc(_READ))
        seen: dict[str, Any] = json.loads(done.stdout or "{}")
        for name, image in self.expected.items():
            if seen.get(image["id"]) != image["files"]:
                self.wrong.append(f"podman does not see the files of {name} as they were pushed")

    def records(self, rounds: int) -> Iterator[str]:
        """What lashd says of what it bound: a sentence for each round in which not everything is present."""
        from lashd.steps.discover import discover

        for number in range(rounds):
            deployment = Deployment("os", f"r{number}", 0, BASE / "roots" / f"r{number}")
            states = self.walk.states(deployment, discover(deployment.root, deployment.merges))
            if len(states) != 3 or set(states.values()) != {ImageState.PRESENT}:
                yield f"lashd says of round {number}: {states}"


def as_bootc(script: str, *words: str) -> list[str]:
    """The command line that runs `script` where `podman` is what bootc runs."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", _BOOTC + script, "sh", *words]


def spoil(store: Store) -> None:
    """Change a byte of a file that every image has."""
    (base,) = (layer for layer in store.index().layers.values() if layer.parent is None)
    path = next(path for path in (ROOT / "overlay" / base.id / "diff").rglob("*") if path.is_file())
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


async def work(request: dict[str, Any]) -> dict[str, Any]:
    settings = settings_from({"host": {"sysroot": SYSROOT}, "paths": {"state": BASE / "state", "run": "/run/lashd"}})
    for directory in (settings.paths.state / "records", settings.paths.run, SYSROOT, ALIAS):
        directory.mkdir(parents=True, exist_ok=True)
    # bootc's own run root, as on a booted host.
    store = Store(ROOT, ALIAS, SYSROOT)
    await store.ensure()
    # bootc is the first who uses the store with podman, so its database has bootc's paths.
    subprocess.run(as_bootc("podman images"), check=True, capture_output=True)
    walk = Walk(NoHost(), store, Records(settings.paths.state / "records"), settings)  # type: ignore[arg-type]
    writing = Writing(walk)
    for number, images in enumerate(request["rounds"]):
        await writing.round(number, images)
        if number % WHOLE_EVERY == WHOLE_EVERY - 1:
            await writing.read_whole(f"after round {number}")
        print(f"round {number}: {len(writing.wrong)} wrong", file=sys.stderr, flush=True)
    await writing.read_whole("at the end")
    await writing.read_by_podman()
    writing.wrong += writing.records(len(request["rounds"]))
    index, wrong = store.index(), list(writing.wrong)
    # The measure must be able to fail.
    spoil(store)
    await writing.read_whole("lashd, spoilt")
    await writing.read_by_podman()
    noticed = [who for who in ("lashd", "podman") if any(each.startswith(who) for each in writing.wrong[len(wrong) :])]
    return {
        "noticed": noticed,
        "wrong": wrong,
        "images": len(index.images),
        "layers": len(index.layers),
        "looks": writing.looks,
        "together": writing.together,
    }


if __name__ == "__main__":
    os.environ["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "1"
    print(json.dumps(asyncio.run(work(json.load(sys.stdin)))))
