# SPDX-License-Identifier: Apache-2.0
"""Images whose names are not written as podman writes them: bootc looks for a unit's very string in the store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from demo import images
from demo.host import Host
from demo.images import Version
from tests.host.conftest import HostImages
from tests.host.test_keeper import released, wait_until
from tests.host.test_walk import states, version_of
from tests.support.bootc_host import UNITS, digests, settle, stored, version_like
from tests.support.installed import alone, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host

SHORT = "harbour-web"


@pytest.fixture(scope="module")
def second_spelled(host_images: HostImages) -> Version:
    """v2, in which no unit names its image as podman does: a short name, a tag and a digest, no tag."""
    web, agent, probe = host_images.second.bindings
    spelled = {
        web: f"{SHORT}:{web.tag}",
        agent: f"{images.REGISTRY}/{agent.app.repository}:stable@{agent.app.image.digest}",
        probe: f"{images.REGISTRY}/{probe.app.repository}",
    }
    more = {f"{UNITS}/{each.app.name}.container": each.app.quadlet(name) for each, name in spelled.items()}
    bindings = (web, replace(agent, tag="stable"), replace(probe, tag="latest"))
    return version_like(host_images.second, more, bindings=bindings)


def add_alias(host: Host) -> None:
    """What the short name means: a local change, which the new system takes over."""
    text = f'[aliases]\n"{SHORT}" = "{images.REGISTRY}/apps/web"\n'
    host.run("sh", "-c", "cat > /etc/containers/registries.conf.d/60-short.conf", input=text.encode())


def test_pulled_and_removed_again_alone(host: Host, host_registry: Registry, second_spelled: Version) -> None:
    """The fault: what has another name in the store is pulled, removed in the same run, and success is reported."""
    alone(host)
    add_alias(host)
    publish(host_registry, second_spelled)
    assert "Bound images stored: 3" in host.run("bootc", "upgrade", timeout=120).output
    assert not digests(second_spelled) & stored(host)


@pytest.mark.parametrize("ask", ["bootc", "lashctl"])
def test_pulled_and_removed_again(host: Host, host_registry: Registry, second_spelled: Version, ask: str) -> None:
    """With lashd: noticed and fetched again, or not removed in the first place."""
    settle(host)
    add_alias(host)
    publish(host_registry, second_spelled)
    host.run(ask, "upgrade", timeout=120)
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert digests(second_spelled) <= stored(host)
    assert set(states(host, "booted").values()) == {"present"}
