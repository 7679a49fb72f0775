# SPDX-License-Identifier: Apache-2.0
"""On a booted host: bootc's own clean-up takes what it does not know by name, and a rollback has it all the same."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import images
from demo.host import Host
from demo.images import Version
from tests.host.conftest import HostImages
from tests.host.test_keeper import wait_until
from tests.host.test_walk import lashctl, states, version_of
from tests.support.bootc_host import STORE, stored
from tests.support.images import files
from tests.support.installed import STAND_IN, alone, install_disk, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host

INDEX = f"{STORE}/overlay-images/images.json"
LAYERS = f"{STORE}/overlay-layers/layers.json"


@pytest.fixture(scope="module")
def host_images() -> HostImages:
    """Both versions name their web server in the same words, and mean two images by them."""
    layers = (*images.common_layers(), files({"usr/bin/bootc": STAND_IN}))
    return HostImages(images.first(layers, "stable"), images.second(layers, "stable"))


@pytest.fixture(scope="module")
def installed_disk(host_images: HostImages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cleanup") / "disk.img"
    install_disk(path, host_images.first, f"clean{os.getpid()}")
    yield path
    path.unlink()


def web(version: Version) -> str:
    return next(binding.app.image.digest for binding in version.bindings if binding.app.name == "web")


def wait_until_kept(host: Host, *digests: str) -> None:
    """Until others cannot take the layers of these images any more: another layer stands on them."""

    def kept() -> bool:
        layers = json.loads(host.run("cat", LAYERS).output)
        above = {layer.get("parent") for layer in layers}
        tops = {image["digest"]: image["layer"] for image in json.loads(host.run("cat", INDEX).output)}
        return all(tops.get(digest) in above - {None} for digest in digests)

    deadline = time.monotonic() + 60
    while not kept():
        assert time.monotonic() < deadline, host.journal()
        time.sleep(0.2)


def clean_up(host: Host) -> None:
    """As bootc does after each upgrade that it makes, and lashd, for once, sees nothing of it."""
    host.run("systemctl", "stop", "lashd.service", "lashd-hold.path")
    host.run("bootc", "internals", "cleanup")


def test_a_rollback_after_bootcs_clean_up_and_without_a_registry(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    publish(host_registry, host_images.second)
    lashctl(host, "upgrade")
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    both = (web(host_images.first), web(host_images.second))
    wait_until_kept(host, *both)

    clean_up(host)
    assert web(host_images.first) not in stored(host), "bootc's clean-up has changed: is this still worth a test?"
    host.run("systemctl", "start", "lashd.service")
    # Nobody has asked for it.
    wait_until(host, lambda now: web(host_images.first) in stored(host))
    assert set(states(host, "rollback").values()) == {"present"}

    # With nothing of lashd at work the host goes back to what has lost its images; they are there before they start.
    clean_up(host)
    alone(host)
    host.run("bootc", "rollback")
    host.reboot()
    assert version_of(host) == "1"
    assert "is back" in host.run("journalctl", "-b", "-u", "lashd-activate.service").output
    wait_until(host, lambda now: set(states(host, "booted").values()) == {"present"})
    wait_until_kept(host, *both)

    clean_up(host)
    assert web(host_images.second) not in stored(host)
    host.run("systemctl", "start", "lashd.service")
    assert lashctl(host, "rollback")
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}
    assert web(host_images.second) in stored(host)
