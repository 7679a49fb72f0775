# SPDX-License-Identifier: Apache-2.0
"""What the walk does when something happens between two of its steps: a real store, a real registry that has bad days.

Whole walks on booted hosts are in tests/host.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.running.walk import Walk
from lashd.steps.record import Records
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.ostree.lockfile import Lock, read_lock, write_lock
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage, Role
from lashd.words.progress import ignore
from tests.bench.service import furnish, settings_below
from tests.support.faulty import Fault, Faulty, Reset, Status
from tests.support.host import write_root
from tests.support.images import build, random_bytes
from tests.support.registry import Registry
from tests.support.stores import remove_layer_directory, stored
from tests.support.told import told


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield settings_below(tmp_path)
    # ostree makes deployments immutable, and pytest could not remove them.
    subprocess.run(["chattr", "-R", "-f", "-i", str(tmp_path)], check=False)


class StagingBackend(OstreeBackend):
    """A host in a directory that has booted what is installed there, but for the deployment `staged`.

    Who holds that is told by the real lock file. Only to release it takes a booted host, with its worker.
    """

    def __init__(self, settings: Settings, staged: str = "") -> None:
        super().__init__(settings)
        self.run = settings.paths.ostree_run
        self.staged = staged

    def deployments(self) -> tuple[Deployment, ...]:
        return tuple(
            self._as_staged(one) if one.key == self.staged else replace(one, roles=frozenset({Role.BOOTED}))
            for one in super().deployments()
        )

    def _as_staged(self, deployment: Deployment) -> Deployment:
        lock = read_lock(self.run)
        declared = lock is not None and lock.ours and lock.ready
        held = lock is not None and not declared
        return replace(deployment, roles=frozenset({Role.STAGED}), locked=held, declared=declared)

    async def release(self, deployment: Deployment) -> None:
        write_lock(self.run, Lock(deployment.key, ready=True))


# Released, and looked at once more


class Interrupted(StagingBackend):
    """Somebody is quick: `then` happens as soon as the deployment has been released, the first time."""

    then: Callable[[], Awaitable[None]] | None = None

    async def release(self, deployment: Deployment) -> None:
        await super().release(deployment)
        if self.then is not None:
            then, self.then = self.then, None
            await then()


async def nothing(store: Store, image: str) -> None:
    pass


async def layer_lost(store: Store, image: str) -> None:
    remove_layer_directory(store, image)


async def removed(store: Store, image: str) -> None:
    await store.remove(stored(store, image))


async def index_broken(store: Store, image: str) -> None:
    (store.root / "overlay-images/images.json").write_text("[{")


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (nothing, None),
        (layer_lost, ErrorName.HELD),
        (removed, ErrorName.HELD),
        (index_broken, ErrorName.STORE_DAMAGED),
    ],
)
async def test_an_image_that_goes_while_its_deployment_is_released(
    settings: Settings, registry: Registry, what: Callable[[Store, str], Awaitable[None]], error: ErrorName | None
) -> None:
    """It is held again; and the next bind fetches what is gone and releases."""
    backend = Interrupted(settings, await furnish(registry, settings, 2))
    store = Store(settings.store, settings.store_run, settings.host.sysroot)
    walk = Walk(backend, store, Records(settings.paths.state / "records"), settings)
    backend.then = lambda: what(store, f"{registry.address}/bench/app1:1")
    (staged,) = backend.deployments()
    if error is None:
        await walk.bind(staged, ignore)
    else:
        with pytest.raises(LashdError) as caught:
            await walk.bind(staged, ignore)
        assert caught.value.name is error
        assert error is not ErrorName.HELD or "bench/app1:1 (app1.image)" in caught.value.message
        (staged,) = backend.deployments()
        assert staged.locked
        await walk.bind(staged, ignore)
    assert backend.then is None, "it was released at some time"
    (staged,) = backend.deployments()
    assert not staged.locked


# Is there a newer host image?


class AskingBackend(StagingBackend):
    """Follows `image`, and notes when its registry was asked and when it answered (seconds)."""

    image: HostImage

    def __init__(self, settings: Settings, image: HostImage) -> None:
        super().__init__(settings)
        self.image = image
        self.asked: list[tuple[float, float]] = []

    def deployments(self) -> tuple[Deployment, ...]:
        booted = Deployment("bench", "0" * 64, 0, Path("/nowhere"), frozenset({Role.BOOTED}), self.image)
        return (booted,)

    async def check(self, image: HostImage) -> str:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await super().check(image)
        finally:
            self.asked.append((began, loop.time()))

    @property
    def waits(self) -> list[float]:
        return [after[0] - before[1] for before, after in zip(self.asked, self.asked[1:], strict=False)]


def asking(settings: Settings, faulty: Faulty, tag: str = "1", **pull: float) -> tuple[Walk, AskingBackend]:
    write_root(settings.paths.root, insecure=[faulty.address])
    settings = replace(settings, pull=replace(settings.pull, **pull))
    backend = AskingBackend(settings, HostImage(faulty.reference("bench/os", tag)))
    store = Store(settings.store, settings.store_run, settings.host.sysroot)
    return Walk(backend, store, Records(settings.paths.state / "records"), settings), backend


async def test_what_is_damaged_stays_until_it_can_be_fetched_again(
    settings: Settings, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """A container runs from it, and is started from it again: better damaged than gone."""
    backend = StagingBackend(settings)
    await furnish(registry, settings, 2)
    store = Store(settings.store, settings.store_run, settings.host.sysroot)
    walk = Walk(backend, store, Records(settings.paths.state / "records"), settings)
    (booted,) = backend.deployments()
    await walk.bind(booted, ignore)
    (victim,) = (settings.store / "overlay").glob("*/diff/opt/data-1/0")
    content = victim.read_bytes()
    victim.write_bytes(bytes(len(content)))
    layer = store.index().layers[victim.relative_to(settings.store / "overlay").parts[0]]
    assert walk.records.distrust([layer])
    images = {image.id for image in store.index().images}
    registry.stop()
    try:
        with pytest.raises(LashdError, match="left as it is") as caught:
            await walk.bind(booted, ignore)
        assert (caught.value.name, caught.value.retryable) == (ErrorName.NETWORK_UNAVAILABLE, True)
        assert {image.id for image in store.index().images} == images
        assert victim.read_bytes() == bytes(len(content))
        assert {entry["NAME"] for entry in told(caplog)} == {"STORE_DAMAGED"}
    finally:
        registry.start()
    await walk.bind(booted, ignore)
    assert {entry["NAME"] for entry in told(caplog)} == {"STORE_DAMAGED", "STORE_MENDED"}
    (again,) = (settings.store / "overlay").glob("*/diff/opt/data-1/0")
    assert again.read_bytes() == content


@pytest.mark.parametrize("fault", [Status(503), Status(500), Reset()])
async def test_a_registry_that_recovers_is_asked_again(
    settings: Settings, registry: Registry, faulty: Faulty, fault: Fault
) -> None:
    digest = registry.push("bench/os", build([random_bytes(100, seed=1)]), tag="1")
    walk, backend = asking(settings, faulty, backoff_seconds=0.01)
    faulty.on("/manifests/", fault, times=1)
    found = await walk.newest()
    assert (found["newest"], found["newest-version"]) == (digest, "")
    assert found["newest-bytes"] > 100
    assert len(backend.asked) == 2


@pytest.mark.parametrize(("attempts", "times"), [(100, 3), (2, 2), (1, 1)])
async def test_a_registry_that_stays_broken_is_asked_a_few_times_ever_later(
    settings: Settings, registry: Registry, faulty: Faulty, attempts: int, times: int
) -> None:
    registry.push("bench/os", build([random_bytes(100, seed=1)]), tag="1")
    walk, backend = asking(settings, faulty, attempts=attempts, backoff_seconds=0.2)
    faulty.on("/manifests/", Status(503))
    with pytest.raises(LashdError) as caught:
        await walk.newest()
    assert caught.value.retryable
    assert len(backend.asked) == times
    # Each is at least half of what it may be: 0.2 s, 0.4 s, …
    assert all(wait >= 0.1 * 2**number for number, wait in enumerate(backend.waits)), backend.waits


@pytest.mark.parametrize(
    ("tag", "fault", "backoff", "name"),
    [
        ("unknown", None, 0.01, ErrorName.NOT_FOUND),
        ("1", Status(403), 0.01, ErrorName.AUTHENTICATION_FAILED),
        # It would pass, but not soon: that is for whoever asks again.
        ("1", Status(503), 20.0, ErrorName.PULL_FAILED),
    ],
)
async def test_what_does_not_pass_soon_is_not_waited_for(
    settings: Settings,
    registry: Registry,
    faulty: Faulty,
    tag: str,
    fault: Fault | None,
    backoff: float,
    name: ErrorName,
) -> None:
    registry.push("bench/os", build([random_bytes(100, seed=1)]), tag="1")
    walk, backend = asking(settings, faulty, tag, backoff_seconds=backoff)
    if fault is not None:
        faulty.on("/manifests/", fault)
    with pytest.raises(LashdError) as caught:
        await walk.newest()
    assert (caught.value.name, len(backend.asked)) == (name, 1)
