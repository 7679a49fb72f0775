# SPDX-License-Identifier: Apache-2.0
"""Whose lock it is, and who waits for whom."""

from __future__ import annotations

import time
from typing import Any

import pytest

from demo.host import Host
from tests.host.conftest import HostImages
from tests.host.test_keeper import codes, released, wait_until
from tests.host.test_walk import described, lashctl, states, version_of
from tests.support.bootc_host import (
    ANNOUNCED,
    configure,
    settle,
)
from tests.support.installed import publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host


def test_asked_while_bootc_holds_the_lock(host: Host, host_registry: Registry) -> None:
    """bootc's own status waits for its lock; what lashd tells it reads from the disk."""
    settle(host)
    configure(host, locked_seconds=8)
    host.run("sh", "-c", "systemd-run --quiet --unit=busy bootc status --json; sleep 1")
    assert host.run("timeout", "2", "flock", "/sysroot/ostree/lock", "true", check=False).status != 0
    began = time.monotonic()
    before: Any = described(host)
    assert before["deployments"][0]["version"] == "1"
    assert lashctl(host, "list")
    assert time.monotonic() - began < 5
    assert host.run("systemctl", "is-active", "busy").output == "active\n"


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
