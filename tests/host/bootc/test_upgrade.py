# SPDX-License-Identifier: Apache-2.0
"""`lashctl upgrade` where bootc stages: its unit, its progress, its end, and what it leaves behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from demo import images
from demo.host import Host
from tests.host.conftest import HostImages
from tests.host.test_keeper import released, wait_until
from tests.host.test_walk import described, lashctl, states, version_of
from tests.support.bootc_host import (
    STORE,
    activity,
    additional,
    configure,
    digests,
    settle,
    slow,
    stored,
    wait_for,
)
from tests.support.installed import alone, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host

INDEX = f"{STORE}/overlay-images/images.json"
# In the guest: has bootc upgrade, and prints what it heard of it meanwhile.
LISTEN = """
import asyncio, json
from lashd.things.bootc.driver import Driver
from lashd.words.config import Settings
from lashd.words.progress import ItemProgress
heard = []
asyncio.run(Driver(Settings()).change(["upgrade", "--quiet"], "It", heard.append))
print(json.dumps([(one.item, one.state) for one in heard if isinstance(one, ItemProgress)]))
"""


def wait_for_images(host: Host, what: Callable[[set[str]], object]) -> None:
    deadline = time.monotonic() + 60
    while not what(stored(host)):
        assert time.monotonic() < deadline, host.journal()
        time.sleep(0.05)


def test_an_upgrade_through_bootc_and_back(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """`lashctl upgrade` has bootc stage, fetches all bound images itself, and leaves nothing of the run behind.

    It fetches them while bootc stages.
    """
    settle(host)
    assert described(host)["host"]["kind"] == "bootc"
    publish(host_registry, host_images.second)
    configure(host, staging_until="/run/stage-now")
    job = lashctl(host, "upgrade", "--no-wait")
    wait_for_images(host, lambda here: here >= digests(host_images.second))
    assert described(host)["deployments"][0]["version"] == "1"
    host.run("touch", "/run/stage-now")
    assert isinstance(job, dict)
    done = lashctl(host, "jobs", "--follow", str(job["job"]["id"]))
    assert isinstance(done, dict)
    assert done["job"]["result"] == "success"
    assert done["job"]["details"]["images-to-fetch"] == 3
    assert set(states(host, "staged").values()) == {"present"}
    assert "Queued for next boot" in host.run("journalctl", "-b", "-u", "lashd-bootc.service").output
    assert host.run("systemctl", "is-failed", "lashd-bootc.service", check=False).output == "inactive\n"
    # A clean-up of its own may come in between, and makes way.
    assert described(host)["gate"] == "released"
    lashctl(host, "upgrade", status=77)
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert lashctl(host, "rollback")
    lashctl(host, "rollback", status=77)
    host.reboot()
    assert version_of(host) == "1"
    assert set(states(host, "booted").values()) == {"present"}


def test_progress_comes_from_the_unit(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """Through a FIFO that systemd opens for it."""
    publish(host_registry, host_images.second)
    host.run("systemctl", "mask", "--runtime", "--now", "lashd.service")
    heard = json.loads(host.run("python3", "-", input=LISTEN.encode(), timeout=120).output)
    layers = {item for item, _ in heard} - {"merging", "deploying", "cleanup", "importing"}
    assert layers
    assert all((layer, "done") in map(tuple, heard) for layer in layers)
    assert ["deploying", "done"] in heard
    journal = host.run("journalctl", "-b", "-u", "lashd-bootc.service").output
    assert "Failed to write to jsonl" not in journal


def test_a_cancelled_upgrade_stops_bootc(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    settle(host)
    publish(host_registry, host_images.second)
    slow(host, 60)
    job = lashctl(host, "upgrade", "--no-wait")
    wait_for(host, "activating")
    assert isinstance(job, dict)
    lashctl(host, "jobs", "--cancel", str(job["job"]["id"]))
    wait_for(host, "inactive")
    assert host.run("ls", "/run/ostree/staged-deployment-locked", check=False).status != 0
    assert described(host)["state"] == "idle"
    # As well while bound images are fetched beside it: they stay, unbound, and no process goes on.
    configure(host, staging_seconds=60)
    job = lashctl(host, "upgrade", "--no-wait")
    wait_for(host, "activating")
    wait_for_images(host, lambda here: here & digests(host_images.second))
    assert isinstance(job, dict)
    lashctl(host, "jobs", "--cancel", str(job["job"]["id"]))
    wait_for(host, "inactive")
    assert described(host)["deployments"][0]["version"] == "1"
    wait_until(host, lambda now: now["state"] == "idle")
    assert "skopeo" not in host.run("sh", "-c", "cat /proc/[0-9]*/comm").output.split()
    # What is staged in the end binds something else than the commit says, by a local change in /etc.
    *_, probe = host_images.second.bindings
    host_registry.push("apps/other", probe.app.image, "1")
    folder = "/etc/containers/systemd/probe.container.d"
    drop_in = f"[Container]\nImage={images.REGISTRY}/apps/other:1\n"
    host.run("sh", "-c", f"mkdir -p {folder} && cat > {folder}/10.conf", input=drop_in.encode())
    configure(host, staging_seconds=2)
    lashctl(host, "upgrade")
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}
    assert f"{images.REGISTRY}/apps/other:1" in host.run("cat", INDEX).output


@pytest.mark.parametrize("again", [True, False])
def test_the_daemon_is_killed_while_bootc_is_at_work(
    host: Host, host_images: HostImages, host_registry: Registry, again: bool
) -> None:
    """bootc goes on, the next daemon is there at once, and what bootc stages is bound; who asks again joins in."""
    settle(host)
    publish(host_registry, host_images.second)
    slow(host, 12)
    lashctl(host, "upgrade", "--no-wait")
    wait_for(host, "activating")
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "lashd")
    assert described(host)["host"]["kind"] == "bootc"
    assert activity(host) == "activating"
    if again:
        done = lashctl(host, "upgrade")
        assert isinstance(done, dict)
        assert done["job"]["result"] in ("success", "unchanged")
    now = wait_until(host, released)
    assert now["blockedBy"] == []
    wait_for(host, "inactive")


def test_an_update_that_is_withdrawn(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """The name means again what runs: bootc would leave what it has staged, and that would boot."""
    settle(host)
    publish(host_registry, host_images.second)
    lashctl(host, "upgrade")
    publish(host_registry, host_images.first)
    assert "No update available" in host.run("bootc", "upgrade").output
    lashctl(host, "upgrade")
    assert described(host)["deployments"][0]["digest"] == host_images.first.image.digest
    host.reboot()
    assert version_of(host) == "1"
    assert set(states(host, "booted").values()) == {"present"}


def test_bootc_goes_on_without_lashd(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """After lashd has filled the store bootc and podman find in it what they expect."""
    settle(host)
    publish(host_registry, host_images.second)
    lashctl(host, "upgrade")
    host.reboot()
    assert version_of(host) == "2"
    wait_until(host, lambda now: now["state"] == "idle")
    alone(host)
    assert all(additional(host, binding.reference) for binding in host_images.second.bindings)
    publish(host_registry, host_images.first)
    output = host.run("bootc", "upgrade", timeout=120).output
    assert "Bound images stored: 2" in output
    assert "Queued for next boot" in output
    assert digests(host_images.first) <= stored(host)
    host.reboot()
    assert version_of(host) == "1"
