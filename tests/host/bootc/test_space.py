# SPDX-License-Identifier: Apache-2.0
"""A disk that is too small, for the host image or for what it binds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from demo import images
from demo.host import Host
from demo.shell import call
from tests.host.conftest import HostImages
from tests.host.test_keeper import codes, released, wait_until
from tests.host.test_walk import described, lashctl, version_of
from tests.support.bootc_host import digests, settle, stored
from tests.support.installed import alone, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host

LEFT = 25_000_000  # bytes: less than what v2 binds
FILL = "/var/filled"


@pytest.fixture
def host(new_host: Callable[[], Host]) -> Host:
    """Its disk keeps nothing back for root, who would not run out of space with all others."""
    made = new_host()
    call(["tune2fs", "-m", "0", made.disk])
    made.start()
    return made


def fill(host: Host) -> None:
    """Leave so little that not every bound image fits, but the host image does."""
    host.run(
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -o remount,rw /sysroot && ostree config set core.min-free-space-size 1MB",
    )
    script = f'free=$(stat --file-system --format="%a * %S" /var); fallocate --length $(($free - {LEFT})) {FILL}'
    host.run("sh", "-ec", script)


def test_no_space_for_bound_images_alone(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """The fault: nobody looks before; what did not fit is missing, and the new system boots."""
    alone(host)
    publish(host_registry, host_images.second)
    fill(host)
    said = host.run("bootc", "upgrade", check=False)
    assert said.status == 1
    assert "no space left on device" in said.errors
    host.run("rm", FILL)
    host.reboot()
    assert version_of(host) == "2"
    assert not digests(host_images.second) <= stored(host)


def test_no_space_for_bound_images(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """With lashd: held, it says how much is missing, and goes on by itself once there is room."""
    settle(host)
    publish(host_registry, host_images.second)
    fill(host)
    assert host.run("bootc", "upgrade", check=False).status == 1
    now = wait_until(host, lambda now: now["lastError"] and now["lastError"]["name"] == "NoSpace")
    assert now["gate"] == "held"
    assert "missing" in codes(now)
    assert "MB" in now["lastError"]["message"]
    host.run("rm", FILL)
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert digests(host_images.second) <= stored(host)


def test_no_space_for_the_host_image(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """bootc looks before it fetches; lashd says the same, and nothing is staged."""
    settle(host)
    image = host_images.second.image
    manifest = json.loads(image.manifest)
    manifest["layers"][-1]["size"] = 999 * 10**12
    huge = replace(image, manifest=json.dumps(manifest).encode())
    host_registry.push(images.HOST_REPOSITORY, huge, images.HOST_TAG)
    assert "Insufficient free space for" in host.run("bootc", "upgrade", check=False).errors
    refusal = lashctl(host, "upgrade", status=16)
    assert isinstance(refusal, dict)
    assert refusal["error"]["name"] == "NoSpace"
    assert described(host)["state"] == "idle"
