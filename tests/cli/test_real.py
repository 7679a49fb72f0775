# SPDX-License-Identifier: Apache-2.0
"""lashctl against the daemon's own service and door; only the host itself is invented."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lashd.bus import library
from lashd.bus.service import open_doors
from lashd.running.jobs import Initiator
from lashd.running.service import Service
from lashd.things.host import HostOutline
from lashd.words.config import HostSettings, PathSettings, Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage, Role
from tests.cli.conftest import DIGEST, Lashctl, finish, line_with, no_traceback


class Host:
    """A booted host that follows an image; `newest` is what its registry says."""

    kind = "ostree"
    pruned = False
    service: Service

    def __init__(self, root: Path) -> None:
        image = HostImage("registry.example/os:1")
        roles = frozenset({Role.BOOTED})
        self.booted = Deployment("default", "b" * 64, 0, root, roles, image, DIGEST, "41", 1_790_000_000)
        self.newest: str | LashdError = DIGEST
        self.go = asyncio.Event()
        self.go.set()

    def deployments(self) -> tuple[Deployment, ...]:
        return (self.booted,)

    async def check(self, image: HostImage) -> str:
        await self.go.wait()
        if isinstance(self.newest, LashdError):
            raise self.newest
        return self.newest

    async def outline(self, image: HostImage) -> HostOutline:
        return HostOutline(await self.check(image), "42", 1_500_000)

    async def make_readable(self) -> None:
        """Its root is a directory."""

    async def recover(self) -> None:
        pass

    def watched(self) -> tuple[Path, ...]:
        return ()

    def nextroot(self) -> None:
        return None

    def space(self) -> int:
        return 10**9


def furnish(base: Path) -> None:
    """Make a root that binds one image, and an empty store."""
    links, units = base / "root/usr/lib/bootc/bound-images.d", base / "root/usr/share/containers/systemd"
    for directory in (links, units, base / "sysroot/ostree/bootc/storage"):
        directory.mkdir(parents=True)
    (units / "web.container").write_text("[Container]\nImage=registry.example/app/web:1\n")
    (links / "web.container").symlink_to("/usr/share/containers/systemd/web.container")


def settings_below(base: Path) -> Settings:
    paths = PathSettings(state=base / "state", run=base / "run", root=base / "root")
    return Settings(host=HostSettings(sysroot=base / "sysroot"), paths=paths)


@pytest.fixture
async def host(tmp_path: Path, bus_address: str) -> AsyncIterator[Host]:
    furnish(tmp_path)
    host = Host(tmp_path / "root")
    backend: Any = host
    service = Service(settings_below(tmp_path), backend)
    host.service = service
    await service.start()
    connection = await library.connect(bus_address)
    dispatcher = await open_doors(connection, service)
    yield host
    await service.stop()
    await dispatcher.stop()
    await connection.disconnect()


async def test_looking(host: Host, lashctl: Lashctl) -> None:
    ran = await lashctl("status", user=65534)
    assert ran.status == 0
    for part in (
        "Booted: registry.example/os:1",
        "Images: 0 of 1 present",
        "registry.example/app/web:1 (web.container)",
    ):
        assert part in ran.out
    (row,) = json.loads((await lashctl("list", "--json")).out)
    assert (row["unit"], row["state"]) == ("web.container", "missing")
    document = json.loads((await lashctl("status", "--json")).out)
    assert document["schema"] == 1
    assert document["bound"] == [{key: value for key, value in row.items() if key != "object"}]
    assert (await lashctl("list", "--deployment", "nonsense")).status == 2


async def test_upgrading(host: Host, lashctl: Lashctl) -> None:
    ran = await lashctl("upgrade")
    assert (ran.status, ran.out.splitlines()[-1]) == (77, "Nothing to do: the host is up to date.")
    host.newest = LashdError(ErrorName.NETWORK_UNAVAILABLE, "registry.example does not answer.")
    ran = await lashctl("upgrade")
    assert (ran.status, ran.err) == (14, "lashctl: registry.example does not answer.\n")
    assert "Last error: NetworkUnavailable" in (await lashctl("status")).out
    assert (await lashctl("bind")).status == 7
    assert (await lashctl("upgrade", "--expected-digest", "sha256:" + "0" * 64)).status == 14
    rows = json.loads((await lashctl("jobs", "--json")).out)
    assert [(row["kind"], row["result"]) for row in rows] == [
        ("upgrade", result) for result in ("unchanged", *["failed"] * 2)
    ]
    no_traceback(await lashctl("jobs"))


async def test_only_root_may_change_anything(host: Host, lashctl: Lashctl) -> None:
    ran = await lashctl("upgrade", user=65534)
    assert ran.status == 4
    assert "root" in ran.err
    no_traceback(ran)


async def test_an_answer_of_a_moment_ago_is_for_others_than_root(host: Host, lashctl: Lashctl) -> None:
    async def check(uid: int) -> int:
        job, _joined = host.service.check({}, Initiator(uid))
        await job.ended()
        assert job.result == "unchanged", job.error_message
        return job.id

    assert [await check(1000), await check(1001), await check(0), await check(1000)] == [1, 1, 2, 2]
    # Whatever may have changed the host makes it an old one.
    assert (await lashctl("upgrade")).status == 77
    assert await check(1000) == 4


async def test_cancelling_a_job_that_somebody_follows(host: Host, lashctl: Lashctl) -> None:
    host.go.clear()
    process = await lashctl.begin("upgrade", "--reason", "patch day")
    await line_with(process, "stage: fetch and stage the host image")
    assert "1 upgrade, stage" in (await lashctl("status")).out
    busy = await lashctl("bind", "booted")
    assert busy.status == 5
    assert "lashctl jobs --cancel 1" in busy.err
    joined = await lashctl("upgrade", "--no-wait", "--json")
    assert json.loads(joined.out)["job"]["id"] == 1
    assert (await lashctl("jobs", "--cancel", "1")).status == 0
    ran = await finish(process)
    assert ran.status == 26
    assert "cancelled" in ran.err
    job = json.loads((await lashctl("jobs", "1", "--json")).out)["job"]
    assert (job["result"], job["options"]["reason"]) == ("cancelled", "patch day")


async def test_a_reboot_that_nobody_asked_for(host: Host, lashctl: Lashctl) -> None:
    ran = await lashctl("reboot", "--cancel")
    assert (ran.status, ran.err) == (77, "")
    assert "Nothing to do: nobody has asked for a reboot that waits." in ran.out
    document = json.loads((await lashctl("status", "--json")).out)
    assert (document["reboot"]["when"], document["reboot"]["asked-uid"]) == ("never", -1)
    assert (await lashctl("reboot", "--when", "ready")).status == 7
