# SPDX-License-Identifier: Apache-2.0
"""The running service on a real sysroot (not booted), with a real store and registry."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import jsonschema
import pytest

from lashd.running.jobs import Initiator, Job
from lashd.running.service import Service
from lashd.things.host import find_host
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from tests.bench.service import furnish, settings_below
from tests.support.registry import Registry

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
