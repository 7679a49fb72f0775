# SPDX-License-Identifier: Apache-2.0
"""Rollbacks, by lashd and by hand, while something is staged; and bootc's own clean-up in between."""

from __future__ import annotations

import pytest

from demo import images
from demo.host import Host
from tests.host.conftest import HostImages
from tests.host.test_keeper import released, wait_until
from tests.host.test_walk import described, lashctl, states, version_of
from tests.support.bootc_host import digests, podman_of_bootc, settle, stored, stored_names, version_like, wait_for
from tests.support.images import build
from tests.support.installed import alone, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host


def test_a_rollback_drops_nothing_unasked(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """lashd refuses; bootc, asked by hand, drops what is staged. Either way what boots next has its images."""
    settle(host)
    publish(host_registry, host_images.second)
    lashctl(host, "upgrade")
    host.reboot()
    third = version_like(host_images.second, {"etc/third": ""}, number="3")
    publish(host_registry, third)
    lashctl(host, "upgrade")
    refusal = lashctl(host, "rollback", status=24)
    assert isinstance(refusal, dict)
    assert refusal["error"]["name"] == "WouldDropStaged"
    assert described(host)["deployments"][0]["digest"] == third.image.digest
    # bootc's clean-up removes no image of a deployment that names it as podman does.
    host.run("bootc", "internals", "cleanup")
    assert digests(host_images.first) | digests(host_images.second) <= stored(host)
    assert host.run("bootc", "rollback").output == "Next boot: rollback deployment\n"
    wait_until(host, lambda now: now["deployments"][0]["digest"] == host_images.first.image.digest)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "1"
    assert set(states(host, "booted").values()) == {"present"}


def test_removed_before_it_is_bound_alone(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """The fault: what is fetched before a deployment names it is garbage to the next clean-up."""
    alone(host)
    publish(host_registry, host_images.second)
    *_, probe = host_images.second.bindings
    podman_of_bootc(host, 'podman image pull --quiet "$@"', probe.reference)
    assert probe.reference in stored_names(host)
    host.run("bootc", "internals", "cleanup")
    assert stored(host) == digests(host_images.first)


def test_two_names_that_nobody_binds_alone(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """The fault: an image with two of them cannot be removed by its id: each upgrade fails after it was staged."""
    alone(host)
    publish(host_registry, host_images.second)
    give_two_names(host, host_registry)
    third = version_like(host_images.second, {"etc/third": ""}, number="3")
    for version in (host_images.second, third):
        publish(host_registry, version)
        said = host.run("bootc", "upgrade", check=False)
        assert said.status == 1
        assert "error: Pruning: " in said.errors
        assert "more than one tag" in said.errors
    host.reboot()
    assert version_of(host) == "3"


@pytest.mark.parametrize("ask", ["bootc", "lashctl"])
def test_two_names_that_nobody_binds(host: Host, host_images: HostImages, host_registry: Registry, ask: str) -> None:
    """With lashd the upgrade ends well; and what a bootc that somebody else has called leaves is bound and released."""
    settle(host)
    publish(host_registry, host_images.second)
    give_two_names(host, host_registry)
    assert host.run(ask, "upgrade", check=False, timeout=120).status == (1 if ask == "bootc" else 0)
    wait_until(host, released)
    if ask == "lashctl":
        # bootc itself has ended well, too.
        wait_for(host, "inactive")
        assert "error: " not in host.run("journalctl", "-b", "-u", "lashd-bootc.service").output
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}


def give_two_names(host: Host, registry: Registry) -> None:
    """An image in the store that no deployment binds, with two names."""
    name = f"{images.REGISTRY}/extra"
    registry.push("extra", build([b"nobody binds this"]), "1")
    podman_of_bootc(host, 'podman image pull --quiet "$1:1"; podman image tag "$1:1" "$1:2"', name)
    assert {f"{name}:1", f"{name}:2"} <= stored_names(host)
