# SPDX-License-Identifier: Apache-2.0
"""On a booted host on which bootc stages: its faults without lashd, and that they are gone with it.

bootc is the stand-in of tests/support/bootc.py. `alone` is the same host with lashd taken away.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import images
from demo.host import Host
from demo.images import Binding, Version
from tests.host.conftest import HostImages
from tests.host.test_keeper import SETTINGS, codes, released, wait_until
from tests.host.test_walk import described, lashctl, states, version_of
from tests.support.images import LayerBlob, files
from tests.support.installed import STAND_IN, alone, install_disk, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host

ANNOUNCED = "/run/reboot-required"


@pytest.fixture(scope="module")
def host_images() -> HostImages:
    layers = (*images.common_layers(), files({"usr/bin/bootc": STAND_IN}))
    return HostImages(images.first(layers), images.second(layers))


@pytest.fixture(scope="module")
def installed_disk(host_images: HostImages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("bootc") / "disk.img"
    install_disk(path, host_images.first, f"bootc{os.getpid()}")
    yield path
    path.unlink()


def settle(host: Host) -> None:
    script = "mkdir -p /etc/lashd/lashd.d && cat > /etc/lashd/lashd.d/test.toml && systemctl restart lashd"
    host.run("sh", "-c", script, input=SETTINGS.encode())


def publish_without_one(registry: Registry, version: Version) -> None:
    """All of a version but the last image that it binds."""
    for binding in version.bindings[:-1]:
        registry.push(binding.app.repository, binding.app.image, binding.tag)
    registry.push(images.HOST_REPOSITORY, version.image, images.HOST_TAG)


def stored(host: Host) -> set[str]:
    """The digests of what is in the store."""
    index = host.run("cat", "/usr/lib/bootc/storage/overlay-images/images.json").output
    return {image["digest"] for image in json.loads(index)}


def digests(version: Version) -> set[str]:
    return {binding.app.image.digest for binding in version.bindings}


def test_an_upgrade_through_bootc_and_back(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """`lashctl upgrade` has bootc stage, fetches all bound images itself, and leaves nothing of the run behind."""
    settle(host)
    assert described(host)["host"]["kind"] == "bootc"
    publish(host_registry, host_images.second)
    done = lashctl(host, "upgrade")
    assert isinstance(done, dict)
    assert done["job"]["result"] == "success"
    assert set(states(host, "staged").values()) == {"present"}
    assert "Queued for next boot" in host.run("journalctl", "-b", "-u", "lashd-bootc.service").output
    assert host.run("systemctl", "is-failed", "lashd-bootc.service", check=False).output == "inactive\n"
    assert released(described(host))
    lashctl(host, "upgrade", status=77)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert lashctl(host, "rollback")
    lashctl(host, "rollback", status=77)
    host.reboot()
    assert version_of(host) == "1"
    assert set(states(host, "booted").values()) == {"present"}


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


def test_asked_while_bootc_holds_the_lock(host: Host, host_registry: Registry) -> None:
    """bootc's own status waits for its lock; what lashd tells it reads from the disk."""
    settle(host)
    write = "printf '{\"locked_seconds\": 8}' > /etc/bootc-stand-in.json"
    host.run("sh", "-c", f"{write}; systemd-run --quiet --unit=busy bootc status --json; sleep 1")
    assert host.run("timeout", "2", "flock", "/sysroot/ostree/lock", "true", check=False).status != 0
    began = time.monotonic()
    before: Any = described(host)
    assert before["deployments"][0]["version"] == "1"
    assert lashctl(host, "list")
    assert time.monotonic() - began < 5
    assert host.run("systemctl", "is-active", "busy").output == "active\n"


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


def slow(host: Host, seconds: int) -> None:
    """Let bootc keep its lock for so long before it does anything; then it has much to tell."""
    write = "cat > /etc/bootc-stand-in.json"
    host.run("sh", "-c", write, input=json.dumps({"locked_seconds": seconds, "babble": 300_000}).encode())


def activity(host: Host) -> str:
    return host.run("systemctl", "is-active", "lashd-bootc.service", check=False).output.strip()


def wait_for(host: Host, state: str) -> None:
    deadline = time.monotonic() + 30
    while activity(host) != state:
        assert time.monotonic() < deadline, (activity(host), host.journal())
        time.sleep(0.1)


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
    slow(host, 0)
    lashctl(host, "upgrade")
    assert released(described(host))


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


def untagged(layers: tuple[LayerBlob, ...]) -> Version:
    """v2, in which a unit names its image without a tag."""
    whole = images.second(layers)
    *others, probe = whole.bindings
    unit = {"usr/share/containers/systemd/probe.container": probe.app.quadlet(f"{images.REGISTRY}/apps/probe")}
    return images.version("2", (*others, Binding(probe.app, "latest")), layers, unit)


@pytest.fixture(scope="module")
def second_untagged() -> Version:
    return untagged((*images.common_layers(), files({"usr/bin/bootc": STAND_IN})))


def test_pulled_and_removed_again_alone(host: Host, host_registry: Registry, second_untagged: Version) -> None:
    """The fault: bootc looks for the very string of the unit among the names in the store, and reports success."""
    alone(host)
    publish(host_registry, second_untagged)
    assert "Bound images stored: 3" in host.run("bootc", "upgrade").output
    assert digests(second_untagged) - stored(host) == {second_untagged.bindings[-1].app.image.digest}


@pytest.mark.parametrize("ask", ["bootc", "lashctl"])
def test_pulled_and_removed_again(host: Host, host_registry: Registry, second_untagged: Version, ask: str) -> None:
    """With lashd: noticed and fetched again, or not removed in the first place."""
    settle(host)
    publish(host_registry, second_untagged)
    host.run(ask, "upgrade", timeout=120)
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert digests(second_untagged) <= stored(host)
    assert set(states(host, "booted").values()) == {"present"}


def apply(host: Host) -> None:
    """bootc's own timer: it reboots at once, whatever is there; from what is staged already it does so, too."""
    boot = host.boots()
    host.run("systemd-run", "--quiet", "bootc", "upgrade", "--apply", "--quiet")
    host.wait_until_up(boot + 1)


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


def test_downloaded_only_and_let_go_by_a_plain_upgrade(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    """Whose lock it is counts: bound, but not released as long as it is somebody else's; then as any other."""
    settle(host)
    publish(host_registry, host_images.second)
    host.run("bootc", "upgrade", "--download-only", timeout=120)
    wait_until(host, lambda now: "foreign-lock" in codes(now))
    deadline = time.monotonic() + 60
    while set(states(host, "staged").values()) != {"present"}:
        assert time.monotonic() < deadline, host.journal()
        time.sleep(0.2)
    assert described(host)["gate"] == "held"
    # Nobody is told to reboot into what would be lost.
    assert host.run("cat", ANNOUNCED, check=False).status != 0
    assert "will now be applied on reboot" in host.run("bootc", "upgrade").output
    wait_until(host, released)
    deadline = time.monotonic() + 10
    while host.run("cat", ANNOUNCED, check=False).status != 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"


def test_bootc_goes_on_without_lashd(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """After lashd has filled the store bootc and podman find in it what they expect."""
    settle(host)
    publish(host_registry, host_images.second)
    lashctl(host, "upgrade")
    host.reboot()
    assert version_of(host) == "2"
    wait_until(host, lambda now: now["state"] == "idle")
    alone(host)
    for binding in host_images.second.bindings:
        more = "--storage-opt=additionalimagestore=/usr/lib/bootc/storage"
        assert host.run("podman", more, "image", "exists", binding.reference, check=False).status == 0
    publish(host_registry, host_images.first)
    output = host.run("bootc", "upgrade", timeout=120).output
    assert "Bound images stored: 2" in output
    assert "Queued for next boot" in output
    assert digests(host_images.first) <= stored(host)
    host.reboot()
    assert version_of(host) == "1"


@pytest.fixture(scope="module")
def second_wrapped(host_images: HostImages) -> Version:
    """v2 with a unit that has a line of two halves."""
    *_, probe = host_images.second.bindings
    unit = f"[Unit]\nDescription=The \\\n  probe\n\n{probe.app.quadlet(probe.reference)}"
    layers = (*images.common_layers(), files({"usr/bin/bootc": STAND_IN}))
    more = {"usr/share/containers/systemd/probe.container": unit}
    return images.version("2", host_images.second.bindings, layers, more)


def test_a_unit_that_bootc_cannot_read_alone(host: Host, host_registry: Registry, second_wrapped: Version) -> None:
    alone(host)
    publish(host_registry, second_wrapped)
    assert "IncorrectSyntax" in host.run("bootc", "upgrade", check=False).errors
    host.reboot()
    assert version_of(host) == "2"
    assert not digests(second_wrapped) <= stored(host)


@pytest.mark.parametrize("images_first", [False, True])
def test_a_unit_that_bootc_cannot_read(
    host: Host, host_registry: Registry, second_wrapped: Version, images_first: bool
) -> None:
    """It is as systemd has it. Where bootc looks before it stages, lashd stages."""
    settle(host)
    publish(host_registry, second_wrapped)
    config = json.dumps({"images_first": images_first})
    host.run("sh", "-c", "cat > /etc/bootc-stand-in.json", input=config.encode())
    done = lashctl(host, "upgrade")
    assert isinstance(done, dict)
    assert done["job"]["result"] == "success"
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}
