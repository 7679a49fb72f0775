# SPDX-License-Identifier: Apache-2.0
"""Bound images are fetched while their host image is being staged, and the upgrade ends as it does without that.

A real repository, store and registry; on booted hosts, with bootc: tests/host/bootc.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lashd.running.ahead import NO_HEADWAY, Ahead, Headway
from lashd.running.walk import Walk
from lashd.steps.discover import discover
from lashd.steps.record import Records
from lashd.things.host import Arrived, Fetched, nobody
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.ostree.commitroot import CommitRoot
from lashd.things.ostree.lockfile import Lock, read_lock, write_lock
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage, Layer, Plan, PlannedImage, Role
from lashd.words.progress import Event, ItemProgress, Report, Stage, StageStarted, ignore
from lashd.words.reference import parse_reference
from tests.bench.service import settings_below
from tests.support.faulty import Faulty, Stall, Status
from tests.support.host import write_root
from tests.support.images import Content, Image, Link, build, files, random_bytes
from tests.support.registry import Registry
from tests.support.stores import layer_file
from tests.support.told import told
from tests.things.ostree.conftest import needs_root

pytestmark = needs_root
APPS = ("web", "agent", "probe")


async def nothing() -> None:
    pass


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.02)


class StagingBackend(OstreeBackend):
    """A host in a directory that has booted what was installed there first; to stage takes as long as `staging` does.

    With `late` it does not tell of an image before that is staged.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.booted = ""
        self.late = False
        self.staging: Callable[[], Awaitable[None]] = nothing
        self.content: str | None = None  # the commit that is told of instead of the one that has arrived

    def deployments(self) -> tuple[Deployment, ...]:
        return tuple(
            replace(one, roles=frozenset({Role.BOOTED})) if one.key == self.booted else self._as_staged(one)
            for one in super().deployments()
        )

    def _as_staged(self, deployment: Deployment) -> Deployment:
        lock = read_lock(self._settings.paths.ostree_run)
        declared = lock is not None and lock.ready
        return replace(
            deployment,
            roles=frozenset({Role.STAGED}) if self.booted else frozenset(),
            locked=lock is not None and not declared,
            declared=declared,
        )

    async def fetch(
        self,
        image: HostImage,
        *,
        expected_digest: str | None,
        report: Report,
        arrived: Arrived = nobody,
        by_digest: bool = False,
    ) -> Fetched:
        told = nobody if self.late else arrived
        if self.content is not None:
            arrived(partial(CommitRoot, self._sysroot.repository, self.content))
        return await super().fetch(image, expected_digest=expected_digest, report=report, arrived=told)

    async def stage(self, fetched: Fetched, image: HostImage) -> Deployment:
        await self.staging()
        return await super().stage(fetched, image)

    async def release(self, deployment: Deployment) -> None:
        write_lock(self._settings.paths.ostree_run, Lock(deployment.key, ready=True))


class Host:
    """Runs version 1, which binds `web`; version 2 is in the registry."""

    def __init__(self, settings: Settings, registry: Registry, faulty: Faulty) -> None:
        write_root(settings.paths.root, insecure=[registry.address, faulty.address])
        self.settings = replace(settings, pull=replace(settings.pull, backoff_seconds=0.01, attempts=3))
        self.registry, self.faulty = registry, faulty
        self.backend = StagingBackend(self.settings)
        self.store = Store(settings.store, settings.store_run, settings.host.sysroot)
        self.records = Records(settings.paths.state / "records")
        self.events: list[Event] = []

    @property
    def image(self) -> HostImage:
        return HostImage(self.faulty.reference("bench/os", "1"))

    @property
    def walk(self) -> Walk:
        return Walk(self.backend, self.store, self.records, self.settings)

    def publish(self, version: str, apps: Mapping[str, Image]) -> str:
        """A host image that binds `apps`; answers its digest."""
        tree: dict[str, Content] = {
            "usr/lib/modules/1/vmlinuz": "kernel",
            "usr/lib/modules/1/initramfs.img": "initramfs",
            "etc/hostname": "bench\n",
            "usr/lib/os-release": f"ID=bench\nVERSION_ID={version}\n",
        }
        for name, app in apps.items():
            self.registry.push(f"bench/{name}", app, tag="1")
            unit = f"[Image]\nImage={self.name(name)}\nPolicy=missing\n"
            tree[f"usr/share/containers/systemd/{name}.image"] = unit
            tree[f"usr/lib/bootc/bound-images.d/{name}.image"] = Link(f"/usr/share/containers/systemd/{name}.image")
        return self.registry.push("bench/os", build([files(tree)]), tag="1")

    def name(self, app: str) -> str:
        return self.faulty.reference(f"bench/{app}", "1")

    async def install(self) -> None:
        self.publish("1", {"web": images("1")["web"]})
        fetched = await self.backend.fetch(self.image, expected_digest=None, report=ignore)
        deployment = await self.backend.stage(fetched, self.image)
        self.backend.booted = deployment.key
        await self.walk.bind(self.backend.deployments()[0], ignore)
        self.publish("2", images("2"))
        self.faulty.forget()

    async def upgrade(self) -> Mapping[str, Any] | None:
        return await self.walk.upgrade(None, self.events.append)

    async def until_here(self, *apps: str) -> None:
        """Wait until the second version of `apps` is in the store."""
        wanted = {images("2")[app].digest for app in apps}
        await until(lambda: wanted <= self.here)

    @property
    def here(self) -> set[str]:
        return {digest for image in self.store.index().images for digest in image.digests}

    @property
    def meaning(self) -> str:
        """The digest that the name of `web`, which the running system binds, means in the store."""
        holder = next((one for one in self.store.index().images if self.name("web") in one.names), None)
        assert holder is not None
        return holder.digest

    @property
    def at_work(self) -> bool:
        """Whether anything is being fetched."""
        processes = subprocess.run(["pgrep", "--full", str(self.settings.store)], capture_output=True, text=True)
        return bool(processes.stdout.split()) or any((self.settings.paths.state / "pull").glob("*"))


def images(version: str) -> dict[str, Image]:
    shared = random_bytes(30_000, seed=1)
    return {
        name: build([shared, random_bytes(20_000, seed=int(version) * 10 + number)]) for number, name in enumerate(APPS)
    }


@pytest.fixture
async def host(tmp_path: Path, registry: Registry, faulty: Faulty) -> Host:
    made = Host(settings_below(tmp_path), registry, faulty)
    await made.install()
    return made


@pytest.fixture(autouse=True)
def removable(tmp_path: Path) -> Iterator[None]:
    yield
    # ostree makes deployments immutable.
    subprocess.run(["chattr", "-R", "-f", "-i", str(tmp_path)], check=False)


async def test_all_is_there_before_it_is_staged(host: Host) -> None:
    """And the name that the running system binds means what it meant; nothing is recorded before the bind."""

    async def staging() -> None:
        await host.until_here(*APPS)
        assert host.meaning == images("1")["web"].digest
        assert len(host.records.load_all()) == 1
        asked.append(host.faulty.requests("bench/(web|agent|probe)/manifests/1"))

    asked: list[int] = []
    host.backend.staging = staging
    facts = await host.upgrade()
    # Once each, and no more after it was staged.
    assert asked == [host.faulty.requests("bench/(web|agent|probe)/manifests/1")]
    assert facts is not None
    assert (facts["images"], facts["images-to-fetch"]) == (3, 3)
    assert facts["bytes-to-fetch"] > 3 * 20_000
    stages = [event.stage for event in host.events if isinstance(event, StageStarted)]
    assert stages.index(Stage.HOLD) < stages.index(Stage.PULL) < stages.index(Stage.RECORD)
    (staged,) = (one for one in host.backend.deployments() if Role.STAGED in one.roles)
    assert staged.declared
    assert host.meaning == images("1")["web"].digest


async def test_the_same_without_it(tmp_path: Path, registry: Registry, faulty: Faulty) -> None:
    """What the job tells, records and names, which layers there are, and what registries were asked for."""
    results = []
    for late in (True, False):
        host = Host(settings_below(tmp_path / str(late)), registry, faulty)
        await host.install()
        host.backend.late = late
        if not late:
            host.backend.staging = partial(host.until_here, *APPS)
        facts = dict(await host.upgrade() or {})
        del facts["bytes-free"]
        records = [
            replace(record, created=0, images=tuple(replace(image, stamps=()) for image in record.images))
            for record in sorted(host.records.load_all().values(), key=lambda record: record.deployment)
        ]
        names = sorted((image.digest, sorted(image.names)) for image in host.store.index().images)
        layers = sorted(str(layer.uncompressed_digest) for layer in host.store.index().layers.values())
        results.append((facts, records, names, layers, sorted(each.path for each in faulty.matching("/bench/"))))
    assert results[0] == results[1]


async def test_what_fails_is_left_to_the_bind(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The only attempt before it was staged fails, for the one in its manifest, for the other in a layer."""
    agent, probe = (images("2")[name].layers[-1].digest for name in ("agent", "probe"))
    host.faulty.on("bench/web/manifests/1", Status(404), times=1)
    host.faulty.on(f"bench/agent/blobs/{agent}", Status(503), times=1)

    async def staging() -> None:
        await host.until_here("probe")
        await until(lambda: not host.at_work)
        assert images("2")["agent"].digest not in host.here

    host.backend.staging = staging
    facts = await host.upgrade()
    assert {image.digest for image in images("2").values()} <= host.here
    assert host.faulty.requests(f"bench/probe/blobs/{probe}") == 1
    assert told(caplog) == [], "nobody is alerted about what the bind has made good"
    # All of it was this job's work, whichever part of it fetched what; and it is told as one walk.
    assert facts is not None
    layers = {layer.digest: len(layer.blob) for image in images("2").values() for layer in image.layers[1:]}
    assert (facts["images-to-fetch"], facts["bytes-to-fetch"], facts["fits"]) == (3, sum(layers.values()), True)
    stages = [event.stage for event in host.events if isinstance(event, StageStarted)]
    assert stages == sorted(stages, key=list(Stage).index)


async def test_what_a_name_meant_when_it_could_not_be_fetched_is_forgotten(host: Host) -> None:
    """A tag has moved on meanwhile, and its registry keeps nothing that has no tag."""
    agent, newer = images("2")["agent"], images("7")["agent"]
    host.faulty.on(f"bench/agent/blobs/{agent.layers[-1].digest}", Status(404))

    async def staging() -> None:
        await host.until_here("web", "probe")
        await until(lambda: not host.at_work)
        host.registry.push("bench/agent", newer, tag="1")

    host.backend.staging = staging
    facts = await host.upgrade()
    assert newer.digest in host.here
    assert facts is not None
    assert facts["images-to-fetch"] == 3
    # What was fetched is not asked for again.
    assert host.faulty.requests("bench/(web|probe)/manifests/1") == 2


async def test_what_was_staged_is_another(host: Host) -> None:
    """What nobody wants any more is not waited for."""
    host.publish("3", {"other": build([random_bytes(500_000, seed=99)])})
    other = await host.backend.fetch(host.image, expected_digest=None, report=ignore)
    host.publish("2", images("2"))
    host.faulty.on("bench/other/blobs/", Stall(after=1000))
    host.backend.content = other.checksum

    async def staging() -> None:
        await until(lambda: host.faulty.requests("bench/other/blobs/"))

    host.backend.staging = staging
    async with asyncio.timeout(30):
        assert await host.upgrade() is not None
    assert not host.at_work
    assert {image.digest for image in images("2").values()} <= host.here
    assert not any("bench/other" in name for image in host.store.index().images for name in image.names)


@pytest.mark.parametrize("fails", [True, False])
async def test_nothing_goes_on_after_the_end(host: Host, fails: bool) -> None:
    """Whether it could not be staged or was cancelled meanwhile: no process goes on, and the next try is as ever."""
    last_layer = f"bench/probe/blobs/{images('2')['probe'].layers[-1].digest}"
    host.faulty.on(last_layer, Stall(after=1000))
    waiting = asyncio.Event()

    async def staging() -> None:
        await until(lambda: host.faulty.requests(last_layer))
        assert host.at_work
        waiting.set()
        if fails:
            raise LashdError(ErrorName.SYSROOT_LOCKED)
        await asyncio.sleep(60)

    host.backend.staging = staging
    job = asyncio.create_task(host.upgrade())
    await waiting.wait()
    if fails:
        with pytest.raises(LashdError) as caught:
            await job
        assert caught.value.name is ErrorName.SYSROOT_LOCKED
    else:
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
    assert not host.at_work
    assert len(host.records.load_all()) == 1
    assert host.meaning == images("1")["web"].digest
    host.faulty.heal()
    host.backend.staging = nothing
    assert await host.upgrade() is not None


async def test_begin_and_join(host: Host) -> None:
    fetched = await host.backend.fetch(host.image, expected_digest=None, report=ignore)
    wanted = discover((await host.backend.stage(fetched, host.image)).root).images
    before, content = host.here, partial(CommitRoot, host.settings.host.sysroot / "ostree/repo")

    # A commit that cannot be read.
    async with Ahead(host.backend, host.store, host.records, host.settings) as ahead:
        ahead.begin(partial(content, "0" * 64))
        assert await ahead.join(wanted, ignore) == NO_HEADWAY

    # Not a byte without space.
    tight = replace(host.settings, pull=replace(host.settings.pull, reserve_bytes=1 << 60))
    async with Ahead(host.backend, host.store, host.records, tight) as ahead:
        ahead.begin(partial(content, fetched.checksum))
        headway = await ahead.join(wanted, ignore)
    assert headway.plan is not None
    assert not headway.plan.fits
    # What did not fit then does not tell of the bind that came later.
    roomy = replace(headway.plan, reserve=0)
    assert headway.figures(roomy) == roomy
    assert (headway.before, host.here) == (None, before)
    assert host.faulty.requests("/blobs/") == host.faulty.requests("bench/os/blobs/")

    # Whoever joins hears of the stage and how far each image is, and what follows as it comes.
    host.faulty.on(f"bench/probe/blobs/{images('2')['probe'].layers[-1].digest}", Stall(after=1000))
    events: list[Event] = []
    async with Ahead(host.backend, host.store, host.records, host.settings) as ahead:
        ahead.begin(partial(content, fetched.checksum))
        await host.until_here("web", "agent")
        joining = asyncio.create_task(ahead.join(wanted, events.append))
        await until(lambda: len(events) >= 4)
        assert isinstance(events[0], StageStarted)
        assert (events[0].stage, events[0].items_total) == (Stage.PULL, 3)
        states = {event.item: event.state for event in events if isinstance(event, ItemProgress)}
        assert states[host.name("probe")] == "fetching"
        joining.cancel()
        await asyncio.wait([joining])
    assert not host.at_work

    # Somebody damages the index of the store: the bind will say so, and mend it.
    async with Ahead(host.backend, host.store, host.records, host.settings) as ahead:
        host.faulty.heal()
        ahead.begin(partial(content, fetched.checksum))
        await host.until_here(*APPS)
        # The last of those who write it has ended.
        await until(lambda: not host.at_work)
        (host.store.root / "overlay-images/images.json").write_text("[{")
        assert (await ahead.join(wanted, ignore)).told == {}


def test_figures_of_two_parts() -> None:
    """Of an image that only the bind has heard of, one that was fetched ahead, and one that both had to fetch."""
    shared, lower, upper = (Layer(f"sha256:{number * 64}", 10, "tar") for number in "abc")

    def image(name: str, *missing: Layer, present: bool = False) -> PlannedImage:
        return PlannedImage(parse_reference(f"registry.example/{name}:1"), f"sha256:{name}", (), present, None, missing)

    failed = LashdError(ErrorName.NETWORK_UNAVAILABLE)
    first = Plan((image("web", shared, lower), image("agent", shared)), 20, 50, 180, 100, failed)
    then = Plan((image("web", present=True), image("agent", shared), image("probe", upper, lower)), 30, 40, 140, 100)
    figures = Headway({}, frozenset(), first).figures(then)
    assert [one.missing for one in figures.images] == [(shared, lower), (shared,), (upper, lower)]
    assert (len(figures.absent), figures.bytes_to_fetch, figures.bytes_on_disk) == (3, 30, 80)
    assert figures.fits
    assert figures.unresolved is None


async def test_layers_that_this_job_has_fetched_are_not_read_again(host: Host) -> None:
    """As with those that the bind itself fetches: what becomes of one a moment later is seen by the next that reads."""
    victims: list[Path] = []
    agent = images("2")["agent"].digest

    async def staging() -> None:
        await host.until_here(*APPS)
        await until(lambda: not host.at_work)
        name = next(one.names[0] for one in host.store.index().images if agent in one.digests)
        (victim,) = (layer_file(host.store, name, "") / "opt").glob("*/*")
        victim.write_bytes(bytes(victim.stat().st_size))
        victims.append(victim)

    host.backend.staging = staging
    assert await host.upgrade() is not None
    (staged,) = (one for one in host.backend.deployments() if Role.STAGED in one.roles)
    record = host.records.get(staged.key)
    assert record is not None
    assert agent in {image.digest for image in record.images}
    (victim,) = victims
    assert victim.read_bytes() == bytes(victim.stat().st_size)
