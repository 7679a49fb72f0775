# SPDX-License-Identifier: Apache-2.0
"""`bootc switch` by hand, through what bootc's own test of bound images goes: units that are bound and that are not."""

from __future__ import annotations

import pytest

from demo import images
from demo.host import Host
from demo.images import Version
from tests.host.conftest import HostImages
from tests.host.test_keeper import codes, released, wait_until
from tests.host.test_walk import described, lashctl, states, version_of
from tests.support.bootc_host import UNITS, additional, bound_unit, settle, stored_names, version_like
from tests.support.images import Content, Image
from tests.support.registry import Registry
from tests.support.switching import NEXT, publish_next

pytestmark = pytest.mark.host

OTHER = f"{images.REGISTRY}/os/other:stable"
IMAGE_UNIT = "[Image]\nImage={}\nPolicy=missing\n"


@pytest.fixture(scope="module")
def other(host_images: HostImages) -> Version:
    """A bound .image, a bound .container, and an .image that is not bound and names credentials."""
    web, agent, probe = host_images.second.bindings
    more: dict[str, Content] = {
        **bound_unit("web.image", IMAGE_UNIT.format(web.reference)),
        **bound_unit("agent.container", agent.app.quadlet(agent.reference)),
        f"{UNITS}/probe.image": IMAGE_UNIT.format(probe.reference) + "AuthFile=/etc/nothing.json\n",
    }
    return version_like(host_images.second, more, bindings=())


@pytest.fixture(scope="module")
def third(host_images: HostImages, other: Version) -> Version:
    """The same with one bound image more, which `other` names and does not bind."""
    web, agent, probe = host_images.second.bindings
    more: dict[str, Content] = {
        **bound_unit("web.image", IMAGE_UNIT.format(web.reference)),
        **bound_unit("agent.container", agent.app.quadlet(agent.reference)),
        **bound_unit("probe.image", IMAGE_UNIT.format(probe.reference)),
    }
    return version_like(other, more, bindings=(), number="3")


def push(registry: Registry, image: Image) -> None:
    registry.push("os/other", image, "stable")


def test_a_switch_by_hand_and_one_image_more(
    host: Host, host_images: HostImages, host_registry: Registry, other: Version, third: Version
) -> None:
    """Noticed, held while an image is missing, bound and released without being asked; then upgraded as any other."""
    settle(host)
    # Credentials that name nobody.
    host.run("sh", "-c", "mkdir -p /run/ostree && echo '{}' > /run/ostree/auth.json")
    web, agent, probe = host_images.second.bindings
    push(host_registry, other.image)
    host_registry.push(web.app.repository, web.app.image, web.tag)
    said = host.run("bootc", "switch", OTHER, check=False, timeout=120)
    assert "Switching: Staging: Pulling bound images" in said.errors
    wait_until(host, lambda now: now["gate"] == "held" and "missing" in codes(now))
    assert "Image specification is unchanged" in host.run("bootc", "switch", OTHER).output
    wait_until(host, lambda now: now["gate"] == "held" and "missing" in codes(now))
    for binding in (agent, probe):
        host_registry.push(binding.app.repository, binding.app.image, binding.tag)
    now = wait_until(host, released)
    assert now["deployments"][0]["digest"] == other.image.digest
    bound, unbound = [web.reference, agent.reference], probe.reference
    for _ in range(2):
        assert [additional(host, name) for name in (*bound, unbound)] == [True, True, False]
        if version_of(host) == "1":
            host.reboot()
    assert version_of(host) == "2"
    assert states(host, "booted") == {"web.image": "present", "agent": "present"}

    push(host_registry, third.image)
    host.run("sh", "-c", "echo '{}' > /run/ostree/auth.json")
    done = lashctl(host, "upgrade")
    assert isinstance(done, dict)
    assert done["job"]["result"] == "success"
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "3"
    assert states(host, "booted") == {"web.image": "present", "agent": "present", "probe.image": "present"}
    assert all(additional(host, name) for name in (*bound, unbound))
    assert set(bound[:1]) | {unbound} <= stored_names(host)


def test_switched_by_lashd(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """bootc stages it, under its own name for what it does; what it binds is lashd's."""
    settle(host)
    publish_next(host_registry, host_images.second)
    lashctl(host, "switch", NEXT)
    wait_until(host, released)
    assert set(states(host, "staged").values()) == {"present"}
    journal = host.run("journalctl", "-b", "-u", "lashd-bootc.service").output
    assert "bootc switch, for lashd" in journal
    assert f"Queued for next boot: docker://{NEXT}" in journal
    lashctl(host, "switch", NEXT, status=77)
    # The image that is staged is followed before it is booted.
    lashctl(host, "upgrade", status=77)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert described(host)["deployments"][0]["image"] == NEXT
    failed = lashctl(host, "switch", f"{images.REGISTRY}/os/nowhere:1", status=14)
    assert isinstance(failed, dict)
    assert failed["error"]["name"] == "NetworkUnavailable"
