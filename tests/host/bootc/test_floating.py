# SPDX-License-Identifier: Apache-2.0
"""A floating tag by which the new system means another image than the running one."""

from __future__ import annotations

import pytest

from demo import images
from demo.host import Host
from demo.images import Version
from tests.host.conftest import HostImages
from tests.host.test_activate import web_image
from tests.host.test_keeper import released, wait_until
from tests.host.test_walk import states, version_of
from tests.support.bootc_host import settle, stored
from tests.support.installed import alone, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def moved(host_images: HostImages) -> Version:
    return images.second(tuple(host_images.first.image.layers[:-1]), web_tag="1")


def test_a_tag_that_has_moved_alone(host: Host, host_registry: Registry, moved: Version) -> None:
    """The fault: the name is there, so nothing is fetched: the new system runs the old image."""
    alone(host)
    publish(host_registry, moved)
    assert "Bound images stored: 3" in host.run("bootc", "upgrade").output
    host.reboot()
    assert version_of(host) == "2"
    assert moved.bindings[0].app.image.digest not in stored(host)


def test_a_tag_that_has_moved(host: Host, host_registry: Registry, host_images: HostImages, moved: Version) -> None:
    """With lashd, whoever has staged it: the new system gets what the tag means, the old one keeps what it meant."""
    settle(host)
    publish(host_registry, moved)
    host.run("bootc", "upgrade", timeout=120)
    wait_until(host, released)
    first, second = (version.bindings[0].app.image.digest for version in (host_images.first, moved))
    assert web_image(host) == first
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}
    assert web_image(host) == second
