# SPDX-License-Identifier: Apache-2.0
"""Bound images that cannot be fetched: bootc stages and reboots all the same, lashd holds."""

from __future__ import annotations

import pytest

from demo.host import Host
from tests.host.conftest import HostImages
from tests.host.test_keeper import codes, released, wait_until
from tests.host.test_walk import states, version_of
from tests.support.bootc_host import (
    apply,
    digests,
    publish_without_one,
    settle,
    stored,
)
from tests.support.installed import alone, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host


def test_staged_although_an_image_is_missing_alone(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    """The fault: the upgrade fails, another try says that all is well, and the host boots without its image."""
    alone(host)
    publish_without_one(host_registry, host_images.second)
    first = host.run("bootc", "upgrade", check=False)
    assert first.status == 1
    assert "Failed to pull image" in first.errors
    again = host.run("bootc", "upgrade")
    assert "Staged update present, not changed" in again.output
    host.reboot()
    assert version_of(host) == "2"
    assert not digests(host_images.second) <= stored(host)


def test_staged_although_an_image_is_missing(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """With lashd: held whatever bootc says and however often it is asked, and ready once the image is there."""
    settle(host)
    publish_without_one(host_registry, host_images.second)
    assert host.run("bootc", "upgrade", check=False).status == 1
    wait_until(host, lambda now: now["gate"] == "held" and "missing" in codes(now))
    assert "Staged update present, not changed" in host.run("bootc", "upgrade").output
    wait_until(host, lambda now: now["gate"] == "held" and "missing" in codes(now))
    host.reboot()
    assert version_of(host) == "1"
    publish(host_registry, host_images.second)
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert digests(host_images.second) <= stored(host)
    assert set(states(host, "booted").values()) == {"present"}


def test_applied_without_an_image_alone(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    alone(host)
    publish_without_one(host_registry, host_images.second)
    assert host.run("bootc", "upgrade", check=False).status == 1
    apply(host)
    assert version_of(host) == "2"
    assert not digests(host_images.second) <= stored(host)


def test_applied_without_an_image(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """With lashd the reboot is lost, and the update is not."""
    settle(host)
    publish_without_one(host_registry, host_images.second)
    assert host.run("bootc", "upgrade", check=False).status == 1
    apply(host)
    assert version_of(host) == "1"
    wait_until(host, lambda now: "wasted-reboots" in codes(now))
    publish(host_registry, host_images.second)
    wait_until(host, released)
    apply(host)
    assert version_of(host) == "2"
    assert digests(host_images.second) <= stored(host)
