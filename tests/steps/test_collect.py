# SPDX-License-Identifier: Apache-2.0
"""Collect on real stores: what goes is gone from the disk, and podman reads what is left, also after a kill."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lashd.steps import collect as collecting
from lashd.steps.collect import Collected, collect
from lashd.steps.keep import Present
from lashd.steps.leave import GRACE_SECONDS
from lashd.steps.record import Records
from lashd.things.store import Store
from lashd.things.store_index import NOTHING_ID
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Record, RecordedImage, Role
from lashd.words.progress import Event, ItemProgress, Stage, StageStarted
from tests.support.containers import LIMITS, Podman, sleeper
from tests.support.images import Image, Link, build, files
from tests.support.stores import edit_index, make_store, put, remove_layer_directory, stored

WEB, AGENT = "quay.io/edge/web", "quay.io/edge/agent"
BASE = files({"bin/tool": b"tool" * 1000})
ONE, TWO, LONE = (build([BASE, {"v": b"1"}]), build([BASE, {"v": b"2"}]), build([{"lone": b"x" * 100_000}]))
LATER = GRACE_SECONDS + 60


class Host:
    """A host with a store, records and deployments; each binds what its bound-images.d links to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = make_store(directory)
        self.records = Records(directory / "records")
        self.root = directory / "root"
        self.root.mkdir()
        self.deployments: list[Deployment] = []

    def deploy(self, name: str, *texts: str, role: Role = Role.BOOTED) -> Deployment:
        root = self.directory / "deploy" / name
        quadlets, bound = root / "usr/share/containers/systemd", root / "usr/lib/bootc/bound-images.d"
        for each in (quadlets, bound):
            each.mkdir(parents=True)
        for number, text in enumerate(texts):
            (quadlets / f"a{number}.container").write_text(f"[Container]\nImage={text}\n")
            (bound / f"a{number}.container").symlink_to(f"/usr/share/containers/systemd/a{number}.container")
        made = Deployment("os", name, 0, root, frozenset({role}))
        self.deployments.append(made)
        return made

    def record(self, deployment: Deployment, *pairs: tuple[str, Image]) -> None:
        images = tuple(RecordedImage(text, each.digest, each.image_id, self.chain(each)) for text, each in pairs)
        self.records.write(Record(deployment.key, None, images, 1))

    def chain(self, image: Image) -> tuple[str, ...]:
        index = self.store.index()
        return tuple(index.known_chain(next(each.top_layer for each in index.images if each.id == image.image_id)))

    def present(self) -> Present:
        return Present(tuple(self.deployments), None, self.records.load_all(), self.records.damaged())

    async def collect(self, *, dry_run: bool = False, later: float = LATER, **options: object) -> Collected:
        """As it would be done so many seconds later."""
        store = options.pop("store", self.store)
        assert isinstance(store, Store)
        clock = collecting.time.time
        return await collect(
            store,
            self.records,
            self.present,
            self.root,
            dry_run=dry_run,
            clock=lambda: clock() + later,
            **options,  # type: ignore[arg-type]
        )

    def images(self) -> set[str]:
        return {image.id for image in self.store.index().images}

    def on_disk(self) -> set[str]:
        """Ids of the layers whose directories are there."""
        return {path.name for path in (self.store.root / "overlay").iterdir() if len(path.name) == 64}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def podman_reads(store: Store) -> dict[str, set[str]]:
    """Names by image id, as podman sees them in the store; of every image a container can be made and mounted."""
    with Podman(store) as podman:
        found = json.loads(podman("images", "--all", "--format=json"))
        for each in found:
            if each["Id"] == NOTHING_ID:
                continue  # what a kill left; nobody can use it, and nobody is bound to it
            place = podman("mount", podman("create", *LIMITS, each["Id"], "/x"))
            assert os.listdir(place)  # noqa: PTH208
        return {each["Id"]: set(each.get("Names") or ()) for each in found}


def tree_bytes(root: Path) -> int:
    return sum(path.lstat().st_size for path in (root / "overlay").rglob("*") if path.is_file())


async def test_what_nobody_binds_goes_and_the_bytes_are_right(host: Host) -> None:
    for image, name in ((ONE, f"{WEB}:1"), (TWO, f"{WEB}:2"), (LONE, f"{AGENT}:1")):
        put(host.store, image, name)
    host.deploy("v2", f"{WEB}:2")
    before, layers = tree_bytes(host.store.root), host.on_disk()

    told = await host.collect(dry_run=True)
    assert set(told.images) == {f"{WEB}:1", f"{AGENT}:1"}
    assert told.bytes == ONE.layers[1].size + LONE.layers[0].size, "the shared layer stays"
    assert told.kept_because == {f"{WEB}:2": f"Deployment v2.0 is bound to it as {WEB}:2."}
    assert host.on_disk() == layers

    events: list[Event] = []
    done = await host.collect(report=events.append)
    assert done == told
    assert events[0] == StageStarted(Stage.COLLECT, items_total=2)
    assert {event.item for event in events[1:] if isinstance(event, ItemProgress)} == set(told.images)
    assert host.images() == {TWO.image_id}
    assert host.on_disk() == set(host.chain(TWO))
    assert tree_bytes(host.store.root) <= before - 100_000
    assert podman_reads(host.store) == {TWO.image_id: {f"{WEB}:2"}}
    assert not (await host.collect()).changed


async def test_names_go_one_by_one(host: Host) -> None:
    """Two names of one image, a tag beside a digest, the tag that had kept it in reach."""
    host.store.sysroot.mkdir(parents=True)
    put(host.store, ONE, f"{WEB}:1", f"{WEB}:old", f"{AGENT}:old", f"{WEB}@{ONE.digest}", f"{WEB}:lashd-abc")
    put(host.store, TWO, f"{WEB}:lashd-x", f"{WEB}:other")
    put(host.store, LONE, f"{AGENT}:1")
    host.deploy("v1", f"{WEB}:1", f"{AGENT}:ignored@{LONE.digest}")
    host.record(host.deploy("v0", role=Role.ROLLBACK), (f"{WEB}:1", TWO))
    done = await host.collect()
    assert done.images == ()
    assert set(done.names) == {f"{WEB}:old", f"{AGENT}:old", f"{WEB}:lashd-abc", f"{WEB}:other"}
    assert podman_reads(host.store) == {
        ONE.image_id: {f"{WEB}:1", f"{WEB}@{ONE.digest}"},
        TWO.image_id: {f"{WEB}:lashd-x"},
        LONE.image_id: {f"{AGENT}:1"},
    }
    assert host.store.index().image_with_digest(WEB, TWO.digest) is not None
    assert not (await host.collect()).changed


async def test_records_of_deployments_that_are_gone_go_last(host: Host) -> None:
    put(host.store, ONE, f"{WEB}:1")
    put(host.store, TWO, f"{WEB}:2")
    host.record(host.deploy("v2", f"{WEB}:2"), (f"{WEB}:2", TWO))
    host.record(Deployment("os", "gone", 0, Path("/x")), (f"{WEB}:1", ONE))
    (host.directory / "records/broken.0.json").write_text("{")
    assert set((await host.collect(dry_run=True)).images) == {f"{WEB}:1"}
    assert set(host.records.load_all()) == {"v2.0", "gone.0"}
    # What some record names was no part of anything on its way: it goes at once.
    done = await host.collect(later=0)
    assert done.images == (f"{WEB}:1",)
    assert set(host.records.load_all()) == {"v2.0"}
    assert host.records.problems() == ()


async def test_what_came_just_now_stays(host: Host) -> None:
    """bootc may fetch images before the deployment that binds them is there."""
    put(host.store, ONE, f"{WEB}:1")
    host.deploy("v2")
    done = await host.collect(later=0)
    assert not done.changed
    assert "less than an hour" in done.kept_because[f"{WEB}:1"]
    assert (await host.collect()).images == (f"{WEB}:1",)


async def test_a_damaged_record_keeps_what_it_might_mean(host: Host) -> None:
    put(host.store, ONE, f"{WEB}:1")
    put(host.store, LONE, f"{AGENT}:1")
    host.record(host.deploy("v2", f"{WEB}:2"), (f"{WEB}:2", ONE))
    path = host.directory / "records/v2.0.json"
    path.write_text(path.read_text()[:-20])
    assert (await host.collect()).images == (f"{AGENT}:1",)
    assert path.exists()
    host.deployments[0].root.joinpath("usr/lib/bootc/bound-images.d").rename(host.directory / "away")
    host.deployments[0].root.joinpath("usr/lib/bootc/bound-images.d").write_text("no directory")
    done = await host.collect()
    assert not done.changed
    assert "not known to its end" in done.kept_because[f"{WEB}:1"]


async def test_containers_keep_their_image_until_they_are_gone(host: Host) -> None:
    """A running one with --rm, and one that was only made."""
    one, two = sleeper("collect 1"), sleeper("collect 2")
    put(host.store, one, f"{WEB}:1")
    put(host.store, two, f"{WEB}:2")
    gone = Deployment("os", "gone", 0, Path("/x"))
    host.record(gone, (f"{WEB}:1", one), (f"{WEB}:2", two))
    host.deploy("v3")
    with Podman(host.store) as podman:
        host.root = podman.root
        podman("run", "--detach", "--rm", "--name=running", *LIMITS, f"{WEB}:1")
        podman("create", "--name=made", *LIMITS, f"{WEB}:2")
        done = await host.collect(later=0)
        assert not done.changed
        assert done.kept_because == {
            f"{WEB}:1": "It is used by the container running.",
            f"{WEB}:2": "It is used by the container made.",
        }
        assert set(host.records.load_all()) == {"gone.0"}
        podman("stop", "--time=0", "running")
        podman.wait_until_gone("running")
        done = await host.collect(later=0)
        assert done.images == (f"{WEB}:1",)
        assert done.bytes == one.layers[1].size
        podman("start", "made")
        assert podman("exec", "made", "/usr/bin/sleep", "0") == ""
        podman("rm", "--force", "--time=0", "made")
        assert (await host.collect(later=0)).images == (f"{WEB}:2",)
    assert host.on_disk() == set()
    assert host.records.load_all() == {}


async def test_what_cannot_be_told_removes_nothing(host: Host) -> None:
    put(host.store, ONE, f"{WEB}:1")
    host.deploy("v2")
    containers = host.root / "var/lib/containers/storage/overlay-containers/containers.json"
    containers.parent.mkdir(parents=True)
    containers.write_text("[")
    with pytest.raises(LashdError) as caught:
        await host.collect()
    assert caught.value.name is ErrorName.STORE_DAMAGED
    assert host.images() == {ONE.image_id}


async def test_somebody_binds_an_image_while_others_are_removed(host: Host) -> None:
    """Before each removal everything is looked at anew."""
    for number, image in enumerate((ONE, TWO, LONE)):
        put(host.store, image, f"{WEB}:{number}")
    host.deploy("v2")
    asked = 0

    def present() -> Present:
        nonlocal asked
        asked += 1
        if asked == 4:
            index = host.store.index()
            assert len(index.images) == 1
            host.deploy("v3", index.images[0].names[0], role=Role.STAGED)
        return host.present()

    done = await collect(host.store, host.records, present, host.root, clock=lambda: collecting.time.time() + LATER)
    assert len(done.images) == 2
    assert len(host.images()) == 1


@pytest.mark.parametrize("harm", ["directory", "incomplete", "parent"])
async def test_damaged_images_and_layers_go_as_well(host: Host, harm: str) -> None:
    put(host.store, ONE, f"{WEB}:1")
    put(host.store, LONE, f"{AGENT}:1")
    top, base = host.chain(ONE)
    if harm == "directory":
        remove_layer_directory(host.store, f"{WEB}:1", 1)
    elif harm == "incomplete":
        flags = {"incomplete": True}
        edit_index(
            host.store, "layers", lambda all: [each | ({"flags": flags} if each["id"] == top else {}) for each in all]
        )
    else:
        edit_index(host.store, "layers", lambda all: [each for each in all if each["id"] != base])
    host.deploy("v2", f"{AGENT}:1")
    assert (await host.collect()).images == (f"{WEB}:1",)
    assert podman_reads(host.store) == {LONE.image_id: {f"{AGENT}:1"}}
    assert set(host.store.index().layers) == set(host.chain(LONE))


async def test_layers_that_a_pull_left_go(host: Host) -> None:
    put(host.store, ONE, f"{WEB}:1")
    put(host.store, LONE, f"{AGENT}:1")
    host.deploy("v2", f"{AGENT}:1")
    edit_index(host.store, "images", lambda all: [each for each in all if each["id"] != ONE.image_id])
    assert not (await host.collect(later=0)).changed
    done = await host.collect()
    assert (done.images, len(done.layers), done.bytes) == ((), 2, sum(layer.size for layer in ONE.layers))
    assert host.on_disk() == set(host.chain(LONE))


async def test_a_layer_that_was_never_finished_goes(host: Host) -> None:
    """Nothing else is to be removed, so that its writer has to be made to clean up."""
    put(host.store, ONE, f"{WEB}:1")
    put(host.store, LONE, f"{AGENT}:1")
    host.deploy("v2", f"{AGENT}:1")
    top, _ = host.chain(ONE)
    edit_index(host.store, "images", lambda all: [each for each in all if each["id"] != ONE.image_id])
    flags = {"incomplete": True}
    edit_index(
        host.store, "layers", lambda all: [each | ({"flags": flags} if each["id"] == top else {}) for each in all]
    )
    assert not (await host.collect(later=0)).changed, "somebody may be writing it"
    await host.collect()
    assert host.on_disk() == set(host.chain(LONE))
    assert host.images() == {LONE.image_id}


async def test_a_store_that_is_not_there(host: Host) -> None:
    host.deploy("v2", f"{AGENT}:1")
    assert not (await host.collect()).changed


# ---- killed ----


@pytest.fixture
def killing(host: Host) -> Iterator[Callable[[int], Store]]:
    """Makes stores whose skopeo is killed after so many milliseconds, every second time that it is started."""
    with tempfile.TemporaryDirectory(prefix="lashd-skopeo-") as folder:

        def make(milliseconds: int) -> Store:
            script = Path(folder, "skopeo")
            script.write_text(
                f'#!/bin/sh\nif rmdir {folder}/spared 2>/dev/null; then exec skopeo "$@"; fi\nmkdir {folder}/spared\n'
                f'exec timeout --signal=KILL {milliseconds / 1000} skopeo "$@"\n'
            )
            script.chmod(0o755)
            return Store(host.store.root, host.store.run_root, host.store.sysroot, skopeo=str(script))

        yield make


async def test_killed_at_any_moment_it_carries_on(host: Host, killing: Callable[[int], Store]) -> None:
    """After each kill what is bound is there, and podman reads the store; at the end all that was to go is gone."""
    kept = build([BASE, {"kept": b"kept"}])
    put(host.store, kept, f"{WEB}:1", *(f"{WEB}:surplus{number}" for number in range(2)))
    many = {f"d{number}/f": Link("x" * 50) for number in range(300)}
    doomed = [build([BASE, {**many, "v": str(number).encode()}]) for number in range(2)]
    orphans = [build([BASE, {**many, "orphan": str(number).encode()}]) for number in range(2)]
    for number, image in enumerate((*doomed, *orphans)):
        put(host.store, image, f"{AGENT}:{number}")
    gone = {image.image_id for image in orphans}
    edit_index(host.store, "images", lambda all: [each for each in all if each["id"] not in gone])
    host.deploy("v1", f"{WEB}:1")
    killed = 0
    for milliseconds in itertools.cycle((18, 26, 22, 30, 14, 34)):
        try:
            await host.collect(store=killing(milliseconds))
            break
        except LashdError:
            killed += 1
        chain = host.store.index().chain(stored(host.store, f"{WEB}:1"))
        assert chain is not None
        assert host.store.layers_on_disk(chain)
        if killed in (2, 5):
            assert f"{WEB}:1" in podman_reads(host.store)[kept.image_id]
    assert killed
    await host.collect()
    assert podman_reads(host.store) == {kept.image_id: {f"{WEB}:1"}}
    assert host.on_disk() == set(host.chain(kept))
    assert set(host.store.index().layers) == set(host.chain(kept))


async def test_cancelled_it_leaves_nothing_running(host: Host) -> None:
    put(host.store, ONE, f"{WEB}:1")
    host.deploy("v2")

    def cancel(event: Event) -> None:
        if isinstance(event, ItemProgress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await host.collect(report=cancel)
    done = subprocess.run(["pgrep", "-P", str(os.getpid()), "-x", "skopeo"], capture_output=True, check=False)
    assert done.stdout == b""
