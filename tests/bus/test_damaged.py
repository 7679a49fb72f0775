# SPDX-License-Identifier: Apache-2.0
"""Readers on a damaged host, through the real bus: each answers, tells what is not known, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lashd.bus import library
from lashd.bus.service import open_doors
from lashd.running.lookout import Lookout
from lashd.running.service import Service
from lashd.things.host import find_host
from lashd.words.config import Settings
from lashd.words.model import Deployment
from tests.bench.service import furnish, settings_below
from tests.bus.conftest import REPOSITORY
from tests.running.test_walk import StagingBackend
from tests.support.registry import Registry

SCHEMA = json.loads((REPOSITORY / "docs/describe.schema.json").read_text())
ROOT, MANAGER = "/io/github/lashd1", "io.github.lashd1.Manager"
NAME, PROPERTIES = "io.github.lashd1", "org.freedesktop.DBus.Properties"
IMAGES = 2


class Bus:
    """A client of the service; `booted` is the deployment that it shows as booted."""

    def __init__(self, client: library.Connection, address: str, settings: Settings, booted: Deployment) -> None:
        self._client = client
        self.address = address
        self.settings = settings
        self.booted = booted

    async def call(self, member: str, signature: str = "", *body: Any, interface: str = MANAGER) -> Any:
        return (await self._client.call(NAME, ROOT, interface, member, signature, list(body)))[0]


@pytest.fixture
async def bus(tmp_path: Path, registry: Registry, address: str) -> AsyncIterator[Bus]:
    settings = settings_below(tmp_path)
    settings = replace(settings, gate=replace(settings.gate, policy="off"))
    await furnish(registry, settings, IMAGES)
    serving, client = await library.connect(address), await library.connect(address)
    service = Service(settings, StagingBackend(settings))
    await service.start()
    dispatcher = await open_doors(serving, service)
    (booted,) = find_host(settings).deployments()
    yield Bus(client, address, settings, booted)
    await dispatcher.stop()
    await service.stop()
    await client.disconnect()
    await serving.disconnect()
    # ostree makes deployments immutable, and pytest could not remove them.
    subprocess.run(["chattr", "-R", "-f", "-i", str(tmp_path)], check=False)


@contextlib.contextmanager
def instead(path: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Let `path` be what `make` makes of it, for a while."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        make(path)
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        aside.rename(path)


@contextlib.contextmanager
def gone(root: Path) -> Iterator[None]:
    subprocess.run(["chattr", "-i", root], check=True)
    with instead(root, lambda _: None):
        yield


def rubbish(path: Path) -> None:
    path.write_text('[{"id": "')


@dataclass
class Damage:
    """`code`: of what BlockedBy says; `states`: of the bound images; `error`: of each row."""

    do: Callable[[Bus], contextlib.AbstractContextManager[None]]
    code: str | None
    states: set[str]
    error: str


def index(name: str, make: Callable[[Path], object]) -> Callable[[Bus], contextlib.AbstractContextManager[None]]:
    return lambda bus: instead(bus.settings.store / f"overlay-{name}/{name}.json", make)


def links(bus: Bus) -> contextlib.AbstractContextManager[None]:
    where = bus.booted.root / "usr/lib/bootc/bound-images.d"
    return instead(where, lambda path: path.symlink_to(path.name))


DAMAGES = {
    "images.json is cut off": Damage(index("images", rubbish), "store-damaged", {"unknown"}, "StoreDamaged"),
    "layers.json is cut off": Damage(index("layers", rubbish), "store-damaged", {"unknown"}, "StoreDamaged"),
    "images.json cannot be read": Damage(index("images", Path.mkdir), "store-damaged", {"unknown"}, "StoreDamaged"),
    "the records are no directory": Damage(
        lambda bus: instead(bus.settings.paths.state / "records", rubbish), "records-unreadable", {"unverified"}, ""
    ),
    # Between the moments at which libostree removes the root and the boot entry, for example.
    "the root is gone": Damage(lambda bus: gone(bus.booted.root), "root-unreadable", {"unknown"}, "BoundImageInvalid"),
    "the links cannot be read": Damage(links, None, {"invalid"}, "BoundImageInvalid"),
}


async def test_everybody_who_only_looks_gets_an_answer(bus: Bus) -> None:
    assert await look(bus, "sound") == ([], {"present"}, {""}, True)
    told: dict[str | None, str] = {}
    for name, damage in DAMAGES.items():
        with damage.do(bus):
            blocked, states, errors, ready = await look(bus, name)
            if damage.code not in told:
                told[damage.code] = await status(bus)
        assert (states, errors, ready) == (damage.states, {damage.error}, False), name
        assert [code for code, _ in blocked] == ([damage.code] if damage.code else []), name
        assert all("'" in sentence or "remove it" in sentence for _, sentence in blocked), blocked
    assert all(text.startswith("Host: ostree") for text in told.values()), told
    assert "lashctl bind booted" in " ".join((told["store-damaged"]).split())
    assert await look(bus, "sound again") == ([], {"present"}, {""}, True)


async def status(bus: Bus) -> str:
    """What `lashctl status` prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lashd.cli", "status"),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "daemon"), "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return out.decode()


async def look(bus: Bus, name: str) -> tuple[list[tuple[str, str]], set[str], set[str], bool]:
    """What each reader says: BlockedBy, states of images, error names, whether the deployment is ready."""
    await bus.call("Sync")
    properties = await bus.call("GetAll", "s", MANAGER, interface="org.freedesktop.DBus.Properties")
    blocked = [(code, sentence) for code, sentence in properties["BlockedBy"]]
    document = json.loads(await bus.call("Describe"))
    jsonschema.validate(document, SCHEMA)
    assert [(each["code"], each["message"]) for each in document["blockedBy"]] == blocked
    rows = await bus.call("ListBound", "a{sv}", {})
    states = {row["state"] for row in rows}
    assert states == {row["state"] for row in document["bound"]}, name
    (deployment,) = await bus.call("ListDeployments", "a{sv}", {})
    objects = await bus.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")
    shown = [each[f"{NAME}.BoundImage"] for each in objects.values() if f"{NAME}.BoundImage" in each]
    assert {image["State"] for image in shown} <= states
    return blocked, states, {row["error-name"] for row in rows}, deployment["ready"]


async def test_a_bind_mends_what_the_readers_complain_of(bus: Bus) -> None:
    rubbish(bus.settings.store / "overlay-images/images.json")
    assert (await look(bus, "damaged"))[1] == {"unknown"}
    path = await bus.call("Bind", "a{sv}", {"deployment": library.Variant("s", "booted")})
    result = await bus._client.call(NAME, path, f"{NAME}.Job", "Wait", "a{sv}", [{}])
    assert result[0] == "success", result
    assert await look(bus, "mended") == ([], {"present"}, {""}, True)
    shutil.rmtree(bus.settings.paths.state / "records")
    assert (await look(bus, "no records"))[1] == {"unverified"}


async def test_what_cannot_be_worked_out_does_not_keep_lashd_from_coming_up(
    tmp_path: Path, address: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_below(tmp_path)
    await furnish(registry, settings, 0)
    serving, client = await library.connect(address), await library.connect(address)
    service = Service(settings, StagingBackend(settings))

    def mistake(*_: object) -> None:
        raise ZeroDivisionError("whatever it is")

    with monkeypatch.context() as broken:
        for name in ("blocked_by", "images", "deployments"):
            broken.setattr(service, name, mistake)
        broken.setattr(Lookout, "gather", mistake)
        broken.setattr(service._backend, "recover", mistake)
        await service.start()
        dispatcher = await open_doors(serving, service)
        with pytest.raises(library.BusError):
            await client.call(NAME, ROOT, PROPERTIES, "GetAll", "s", [MANAGER])
    # As soon as it can be read it is.
    (properties,) = await client.call(NAME, ROOT, PROPERTIES, "GetAll", "s", [MANAGER])
    assert properties["Gate"] == "none"
    await dispatcher.stop()
    await service.stop()
    await client.disconnect()
    await serving.disconnect()
    subprocess.run(["chattr", "-R", "-f", "-i", str(tmp_path)], check=False)
