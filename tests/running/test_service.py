# SPDX-License-Identifier: Apache-2.0
"""The running service on a real sysroot (not booted), with a real store and registry."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lashd.running import bind as binding
from lashd.running.delay import Delay
from lashd.running.jobs import Initiator, Job
from lashd.running.service import Service
from lashd.things.host import Fetched, find_host
from lashd.things.logind import inhibited
from lashd.things.ostree.lockfile import LOCK, STAGING, Lock, read_lock, remove_lock, write_lock
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage
from tests.bench.service import furnish, settings_below
from tests.running.test_walk import StagingBackend
from tests.support.images import build, files
from tests.support.registry import Registry
from tests.support.stores import remove_layer_directory

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs/describe.schema.json").read_text())
ROOT = Initiator(0)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield settings_below(tmp_path)
    # ostree makes deployments immutable, and pytest could not remove them.
    subprocess.run(["chattr", "-R", "-f", "-i", str(tmp_path)], check=False)


@pytest.fixture
async def furnished(settings: Settings, registry: Registry) -> tuple[Settings, str]:
    return settings, await furnish(registry, settings, 3)


@pytest.fixture
async def service(furnished: tuple[Settings, str]) -> AsyncIterator[Service]:
    running = Service(furnished[0], find_host(furnished[0]))
    await running.start()
    yield running
    await running.stop()


async def ended(started: tuple[Job, bool]) -> Job:
    await started[0].wait(60)
    return started[0]


async def test_describe_fits_its_schema(service: Service, furnished: tuple[Settings, str]) -> None:
    await ended(service.bind({"deployment": furnished[1]}, ROOT))
    document = json.loads(service.describe())
    jsonschema.validate(document, SCHEMA)
    assert [row["state"] for row in document["bound"]] == ["present"] * 3
    assert document["deployments"][0]["ready"]
    assert document["jobs"][0]["kind"] == "bind"
    assert set(document["reboot"]) == set(SCHEMA["properties"]["reboot"]["required"])
    required = {key for part in ("deployments", "bound") for key in SCHEMA["properties"][part]["items"]["required"]}
    shown = {key for part in ("deployments", "bound") for row in document[part] for key in row}
    assert required == shown, "the schema names every key, and no other"


async def test_bind_with_nothing_to_do_then_repair_then_nothing(
    service: Service, furnished: tuple[Settings, str]
) -> None:
    settings, key = furnished
    job = await ended(service.bind({"deployment": key}, ROOT))
    assert (job.result, job.details["changed"], job.fraction) == ("unchanged", False, 1.0)

    before = service.generation()
    layers = json.loads((settings.store / "overlay-layers/layers.json").read_text())
    shutil.rmtree(settings.store / "overlay" / layers[-1]["id"])
    (bad,) = [row for row in service.list_bound({"deployment": key}) if row["state"] != "present"]
    assert bad["state"] == "incomplete"
    assert service.generation() > before
    job = await ended(service.plan({"deployment": key}, ROOT))
    assert job.details["images-to-fetch"] == 1
    job = await ended(service.bind({"deployment": key}, ROOT))
    assert (job.result, job.error_message) == ("success", "")
    assert {row["state"] for row in service.list_bound({"deployment": key})} == {"present"}
    assert (await ended(service.bind({"deployment": key}, ROOT))).result == "unchanged"


async def test_without_logind_a_bind_works(
    service: Service, furnished: tuple[Settings, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    delay = Delay(partial(inhibited, program=str(tmp_path / "absent")))
    service.jobs.subscribe(delay)
    layers = json.loads((furnished[0].store / "overlay-layers/layers.json").read_text())
    shutil.rmtree(furnished[0].store / "overlay" / layers[-1]["id"])
    job = await ended(service.bind({"deployment": furnished[1]}, ROOT))
    assert (job.result, job.error_message) == ("success", "")
    assert "No delay inhibitor could be taken" in caplog.text
    await delay.stop()


async def test_a_reboot_that_can_never_come_is_refused_before_anything_is_fetched(service: Service) -> None:
    job = await ended(service.upgrade({"reboot": "window"}, ROOT))
    assert job.error_name == "OutsideWindow"
    # Nothing was asked for, so there is nothing to withdraw.
    job = await ended(service.reboot({"when": "never"}, ROOT))
    assert (job.result, job.details["state"], job.details["when"]) == ("unchanged", "nothing", "never")


async def test_tampered_content_is_found_when_nothing_vouches_for_it(
    service: Service, furnished: tuple[Settings, str]
) -> None:
    """Same size, same time, other bytes: without a record every layer is read again, and repaired."""
    settings, key = furnished
    shutil.rmtree(settings.paths.state / "records")
    victim = next(path for path in (settings.store / "overlay").glob("*/diff/opt/data-3/0"))
    content = victim.read_bytes()
    victim.write_bytes(bytes(len(content)))
    assert {row["state"] for row in service.list_bound({"deployment": key})} == {"unverified"}
    job = await ended(service.bind({"deployment": key}, ROOT))
    assert (job.result, job.error_message) == ("success", "")
    (again,) = (settings.store / "overlay").glob("*/diff/opt/data-3/0")
    assert again.read_bytes() == content


async def test_what_verify_finds_damaged_is_not_vouched_for_until_a_bind_has_fetched_it_again(
    service: Service, furnished: tuple[Settings, str]
) -> None:
    settings, key = furnished
    await ended(service.bind({"deployment": key}, ROOT))
    (victim,) = (settings.store / "overlay").glob("*/diff/opt/data-3/0")
    content = victim.read_bytes()
    victim.write_bytes(bytes(len(content)))
    job = await ended(service.verify({"deployment": key}, ROOT))
    assert (job.result, job.error_message) == ("unchanged", ""), "what is vouched for is not read"
    before = service.generation()
    job = await ended(service.verify({"deployment": key, "deep": True}, ROOT))
    assert job.error_name == "StoreDamaged"
    assert sorted(row["state"] for row in service.list_bound({"deployment": key})) == ["present"] * 2 + ["unverified"]
    assert service.generation() > before
    assert not service.list_deployments({})[0]["ready"]
    job = await ended(service.verify({"deployment": key}, ROOT))
    assert job.error_name == "StoreDamaged", "nobody vouches for it, so it is read"
    job = await ended(service.bind({"deployment": key}, ROOT))
    assert (job.result, job.error_message) == ("success", "")
    assert (settings.store / victim.relative_to(settings.store)).read_bytes() == content
    assert {row["state"] for row in service.list_bound({"deployment": key})} == {"present"}
    job = await ended(service.verify({"deployment": key, "deep": True}, ROOT))
    assert (job.result, job.error_message) == ("unchanged", "")


@pytest.mark.parametrize("step", ["verify", "give_names"])
async def test_what_is_found_damaged_while_it_is_bound_is_not_recorded(
    service: Service, furnished: tuple[Settings, str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """By somebody who reads every layer, after this bind has taken them on trust: its record is not the newer word."""
    settings, key = furnished
    await ended(service.bind({"deployment": key}, ROOT))
    (victim,) = (settings.store / "overlay").glob("*/diff/opt/data-3/0")
    victim.write_bytes(bytes(victim.stat().st_size))
    store, records = service._walk.store, service._walk.records
    layer = store.index().layers[victim.relative_to(settings.store / "overlay").parts[0]]
    sound = getattr(binding, step)

    async def found_meanwhile(*arguments: Any, **more: Any) -> Any:
        images = await sound(*arguments, **more)
        monkeypatch.undo()
        assert records.distrust([layer])
        return images

    monkeypatch.setattr(binding, step, found_meanwhile)
    job = await ended(service.bind({"deployment": key}, ROOT))
    assert job.error_name == "StoreDamaged"
    assert records.distrusted(store.index().layers) == {layer.id}
    assert (await ended(service.bind({"deployment": key}, ROOT))).result == "success"
    assert (await ended(service.verify({"deployment": key, "deep": True}, ROOT))).result == "unchanged"


async def test_a_damaged_description_is_found_and_fetched_again(
    service: Service, furnished: tuple[Settings, str]
) -> None:
    settings, key = furnished
    await ended(service.bind({"deployment": key}, ROOT))
    image = json.loads((settings.store / "overlay-images/images.json").read_text())[-1]["id"]
    (manifest,) = (settings.store / "overlay-images" / image).glob("manifest")
    for path in manifest.parent.iterdir():
        if path.read_bytes() == manifest.read_bytes() and path != manifest:
            path.write_bytes(b"{}")
    manifest.write_bytes(b"{}")
    assert (await ended(service.verify({"deployment": key}, ROOT))).error_name == "StoreDamaged"
    assert {"present", "unverified"} == {row["state"] for row in service.list_bound({"deployment": key})}
    assert (await ended(service.bind({"deployment": key}, ROOT))).result == "success"
    assert {row["state"] for row in service.list_bound({"deployment": key})} == {"present"}


async def test_what_cannot_be_asked_is_named(service: Service) -> None:
    for call, name in (
        (lambda: service.list_bound({"deployment": "x" * 500}), ErrorName.INVALID_ARGUMENT),
        (lambda: service.bind({}, ROOT), ErrorName.NOTHING_STAGED),
        (lambda: service.bind({"deployment": "all-of-them"}, ROOT), ErrorName.INVALID_ARGUMENT),
    ):
        with pytest.raises(LashdError) as caught:
            call()
        assert caught.value.name is name
        assert len(caught.value.message) < 300
    job = await ended(service.upgrade({}, ROOT))
    assert job.error_name == "UnsupportedHost"
    job = await ended(service.rollback({}, ROOT))
    assert job.error_name == "RollbackUnavailable"


async def test_images_are_merged_over_deployments(service: Service, furnished: tuple[Settings, str]) -> None:
    images = service.images()
    assert [image["used-by"] for image in images] == [[furnished[1]]] * 3
    assert all(image["usable"] is True and len(image["units"]) == 1 for image in images), images
    assert len(service.deployments()[0]["references"]) == 3


# A staging that does not come to its end


class FailingBackend(StagingBackend):
    """Stages as a booted host does: the hold is set first. `ends` says what happens before anything is staged."""

    def __init__(self, settings: Settings, ends: Exception | None = None) -> None:
        super().__init__(settings)
        self.ends = ends
        self.staging = asyncio.Event()

    async def stage(self, fetched: Fetched, image: HostImage) -> Deployment:
        # Somebody else's hold is left alone.
        write_lock(self.run, Lock(STAGING))
        self.staging.set()
        if self.ends is not None:
            raise self.ends
        await asyncio.Event().wait()
        raise AssertionError


def publish_newer(registry: Registry) -> None:
    tree = {"usr/lib/modules/2/vmlinuz": "kernel", "usr/lib/modules/2/initramfs.img": "initramfs"}
    registry.push("bench/os", build([files(tree)]), tag="1")


REFUSED = LashdError(ErrorName.HOST_COMMAND_FAILED, "ostree could not do it.")
MISTAKE = KeyError("a mistake of ours")
CANCELLED = None


@pytest.mark.parametrize(
    ("ends", "foreign"),
    [(REFUSED, False), (REFUSED, True), (MISTAKE, False), (CANCELLED, False), (CANCELLED, True)],
)
async def test_a_staging_that_fails_leaves_no_hold_of_ours(
    furnished: tuple[Settings, str], registry: Registry, ends: Exception | None, foreign: bool
) -> None:
    backend = FailingBackend(furnished[0], ends)
    service = Service(furnished[0], backend)
    await service.start()
    if foreign:
        (backend.run / LOCK).touch()
    publish_newer(registry)
    job, _ = service.upgrade({}, ROOT)
    async with asyncio.timeout(30):
        await backend.staging.wait()
    if ends is None:
        assert read_lock(backend.run) == (Lock() if foreign else Lock(STAGING))
        job.cancel()
    await job.wait(30)
    assert job.result == ("cancelled" if ends is None else "failed"), job.error_message
    assert read_lock(backend.run) == (Lock() if foreign else None)
    await service.stop()


async def test_the_end_of_the_daemon_ends_a_staging_and_its_hold(
    furnished: tuple[Settings, str], registry: Registry
) -> None:
    backend = FailingBackend(furnished[0])
    service = Service(furnished[0], backend)
    await service.start()
    publish_newer(registry)
    job, _ = service.upgrade({}, ROOT)
    async with asyncio.timeout(30):
        await backend.staging.wait()
    await service.stop()
    assert (job.result, read_lock(backend.run)) == ("cancelled", None)


class HoldingBackend(StagingBackend):
    """Stages what is installed already, held from the first instant on."""

    async def stage(self, fetched: Fetched, image: HostImage) -> Deployment:
        write_lock(self.run, Lock(STAGING))
        (self.staged,) = (one.key for one in self.deployments())
        write_lock(self.run, Lock(self.staged))
        return self.deployments()[0]


async def test_what_has_been_staged_stays_held_when_its_images_cannot_be_fetched(
    furnished: tuple[Settings, str], registry: Registry
) -> None:
    settings, key = furnished
    backend = HoldingBackend(settings)
    service = Service(settings, backend)
    await service.start()
    publish_newer(registry)
    remove_layer_directory(
        Store(settings.store, settings.store_run, settings.host.sysroot), f"{registry.address}/bench/app1:1"
    )
    shutil.rmtree(registry.storage / "docker/registry/v2/repositories/bench/app1")
    job = await ended(service.upgrade({}, ROOT))
    assert (job.result, job.error_name) == ("failed", "NotFound"), job.error_message
    assert (backend.staged, read_lock(backend.run)) == (key, Lock(key))
    assert backend.deployments()[0].locked
    await service.stop()


@pytest.mark.parametrize(("policy", "let_go"), [("off", True), ("hold", False), ("warn", False)])
async def test_a_lock_that_a_killed_worker_left_where_nothing_is_to_be_held(
    furnished: tuple[Settings, str], monkeypatch: pytest.MonkeyPatch, policy: Any, let_go: bool
) -> None:
    settings, key = furnished
    settings = replace(settings, gate=replace(settings.gate, policy=policy))

    class Left(StagingBackend):
        def _as_staged(self, deployment: Deployment) -> Deployment:
            return replace(super()._as_staged(deployment), key_locked=True)

    backend = Left(settings, key)
    write_lock(settings.paths.ostree_run, Lock(key))
    running = Service(settings, backend)
    try:
        await running.start()
        lock = read_lock(settings.paths.ostree_run)
        assert lock is not None
        assert lock.ready is let_go
    finally:
        await running.stop()
        remove_lock(settings.paths.ostree_run)
