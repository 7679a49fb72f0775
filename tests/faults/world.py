# SPDX-License-Identifier: Apache-2.0
"""The world in which faults happen: a host on v1 with v2's commit in its repository, and a registry that it can reach.

with World(directory) as world:
    world.fresh()                # the host on v1, switched on; whatever was before is gone
    world.stage()                # as a third party would: `ostree admin deploy --stage`
    world.registry.stop()
    world.host.reboot()
    world.version(), world.damage()
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo import disk, images
from demo.host import Host
from demo.images import Version
from demo.install import install
from demo.shell import Failed
from tests.faults.whole import damage
from tests.support.registry import Registry

STAGED_LOCK = "/run/ostree/staged-deployment-locked"
# Brings v2's commit into the repository, as a pull of any program's would, without staging it.
_FETCH = """
import asyncio
from lashd.things.ostree.backend import OstreeBackend
from lashd.words.config import Settings
from lashd.words.progress import ignore

async def main():
    backend = OstreeBackend(Settings())
    booted = backend.deployments()[0]
    print((await backend.fetch(booted.image, expected_digest=None, report=ignore)).checksum)

asyncio.run(main())
"""


class World:
    """`name` must be unique on the machine; everything is below `directory`."""

    def __init__(self, directory: Path, name: str = "faults") -> None:
        self.directory = directory
        self.host = Host(name, directory / "host")
        layers = images.common_layers()
        self.first, self.second = images.first(layers), images.second(layers)
        self._ends = ExitStack()
        self.registry: Registry
        self.checksum = ""
        # One for each time that a person had to help, where that is allowed (see `after.arrives`).
        self.excuses: list[str] = []

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            ends.enter_context(self.host)
            self.registry = ends.enter_context(
                Registry(netns=self.host.network.path, port=images.REGISTRY_PORT, storage=self.directory / "registry")
            )
            self.publish(self.first)
            disk.create(self.host.disk)
            bound = [binding.reference for binding in self.first.bindings]
            install(self.host.disk, self.host.network, images.HOST_REFERENCE, bound)
            self.publish(self.second)
            self.host.start()
            self.wait(lambda: self.status()["deployments"][0]["ready"], "v1 is adopted")
            self.checksum = self.host.run("python3", "-", input=_FETCH.encode(), timeout=120).output.strip()
            self.host.power_off()
            disk.copy(self.host.disk, self._template)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ends.__exit__(kind, error, tb)

    @property
    def _template(self) -> Path:
        return self.directory / "template.img"

    @property
    def _upgraded(self) -> Path:
        return self.directory / "upgraded.img"

    def publish(self, version: Version) -> None:
        for binding in version.bindings:
            self.registry.push(binding.app.repository, binding.app.image, binding.tag)
        self.registry.push(images.HOST_REPOSITORY, version.image, images.HOST_TAG)

    def online(self, on: bool) -> None:
        """Have the registry running, or not."""
        self.registry.stop()
        if on:
            self.registry.start()

    def fresh(self, *, online: bool = True, second: bool = False) -> None:
        """The host as it was installed, booted into v1, with the registry running or not.

        With `second` as it is after an upgrade: booted into v2, with v1 to roll back to.
        """
        if second and not self._upgraded.exists():
            self._upgrade()
        # The network ends with the host, and what runs in it must not go on in the old one.
        self.registry.stop()
        self.host.stop()
        self.host.__enter__()
        disk.copy(self._upgraded if second else self._template, self.host.disk)
        self.online(online)
        self.host.start()

    def _upgrade(self) -> None:
        self.fresh()
        self.stage()
        self.wait(self.declared, "v2 is declared ready")
        self.host.reboot()
        self.wait(lambda: self.status()["state"] == "idle", "v2 is up")
        self.host.power_off()
        disk.copy(self.host.disk, self._upgraded)

    # What one does on the host

    def stage(self) -> None:
        """Stage v2 as a person would."""
        self.host.run("ostree", "admin", "deploy", "--stage", "--os=default", self.checksum)

    def lashctl(self, *argv: str) -> Any:
        """Run lashctl with --json, whatever its exit status is."""
        return json.loads(self.host.run("lashctl", *argv, "--json", check=False, timeout=180).output)

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = self.lashctl("status")
        return document

    def version(self) -> str:
        return self.host.run("sh", "-c", ". /etc/os-release; echo $VERSION_ID").output.strip()

    def declared(self) -> bool:
        """Is what is staged verified, so that only the gate is still to look?"""
        return "\nready" in self.host.run("cat", STAGED_LOCK, check=False).output

    def known(self) -> bool:
        """Does lashd know of something that is staged, or was before the host went down?"""
        files = ("/var/lib/lashd/owed.json", "/run/ostree/staged-deployment")
        return any(self.host.run("test", "-e", file, check=False).status == 0 for file in files)

    def wait(self, true: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait until `true()`. Raises Failed, with the journal, when that is not so after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if true():
                    return
            except (Failed, ValueError, KeyError, IndexError):
                pass  # the host or the daemon is not there just now
            if time.monotonic() > deadline:
                raise Failed(f"not within {seconds:.0f} s: {what}\n{self.host.journal(60)}")
            time.sleep(0.1)

    def damage(self) -> list[str]:
        """What is wrong with the images that the booted version binds: every file of every layer is compared."""
        version = {"1": self.first, "2": self.second}[self.version()]
        return damage(self.host, [binding.app.image for binding in version.bindings])

    def damaged(self, digests: list[str]) -> list[str]:
        """The same for those images of both versions that have one of `digests`."""
        bound = {
            binding.app.image.digest: binding.app.image for one in (self.first, self.second) for binding in one.bindings
        }
        return damage(self.host, [bound[digest] for digest in digests if digest in bound])
