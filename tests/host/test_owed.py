# SPDX-License-Identifier: Apache-2.0
"""On a booted host: the running commit staged over itself with other kernel arguments is an update like any other."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from demo.host import Host
from tests.host.conftest import HostImages
from tests.host.test_keeper import codes, prepare, released, wait_until
from tests.host.test_walk import described, lashctl, version_of
from tests.support.registry import Registry

pytestmark = pytest.mark.host

MANAGER = ("io.github.lashd1", "/io/github/lashd1", "io.github.lashd1.Manager")


def stage(host: Host, ref: str, argument: str) -> None:
    host.run("ostree", "admin", "deploy", "--stage", f"--karg-append={argument}", ref)
    host.run("busctl", "call", *MANAGER, "Hold", "a{sv}", "1", "reason", "s", "not yet")
    wait_until(host, lambda now: "order-hold" in codes(now) and now["gate"] == "held")


def arguments(host: Host) -> list[str]:
    """Those that the newest boot entry has."""
    text = host.run("sh", "-c", "cat $(ls -r /boot/loader/entries/*.conf | head -n 1)").output
    return next(line for line in text.splitlines() if line.startswith("options ")).split()[1:]


def owed(host: Host) -> dict[str, Any] | None:
    done = host.run("cat", "/var/lib/lashd/owed.json", check=False)
    return json.loads(done.output) if done.status == 0 else None


def test_other_arguments_for_the_same_commit(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    ref = prepare(host)
    running = described(host)["deployments"][0]["key"]
    stage(host, ref, "lashd.test=1")
    known = owed(host)
    assert known is not None
    assert known["checksum"] == known["base"] == running.partition(".")[0]
    assert known["binds"], "what it binds is noted while its root is there"
    host.reboot()
    assert "lashd.test=1" not in arguments(host)
    # It is staged again, with its arguments, and the order that keeps it back still stands.
    now = wait_until(host, lambda now: "order-hold" in codes(now) and "wasted-reboots" in codes(now))
    again = owed(host)
    assert again is not None
    assert "lashd.test=1" in again["kargs"]
    assert (again["wasted"], again["since"]) == (1, known["since"])
    digest = host_images.first.image.digest
    host.run("busctl", "call", *MANAGER, "Release", "a{sv}", "1", "expected-digest", "s", digest)
    wait_until(host, released)
    host.reboot()
    assert "lashd.test=1" in arguments(host)
    now = wait_until(host, lambda now: now["state"] == "idle" and owed(host) is None)
    assert (now["blockedBy"], now["owed"], version_of(host)) == ([], {}, "1")

    # Given up by a person, when lashd is not to stage it again.
    script = "cat >> /etc/lashd/lashd.d/test.toml && systemctl restart lashd"
    host.run("sh", "-c", script, input=b"restage = false\n")
    stage(host, ref, "lashd.test=2")
    host.reboot()
    now = wait_until(host, lambda now: "lost" in codes(now))
    assert now["owed"]["checksum"] == running.partition(".")[0]
    time.sleep(1)
    assert described(host)["gate"] == "none"
    collected = lashctl(host, "collect", "--dry-run", status=77)
    assert isinstance(collected, dict)
    done = lashctl(host, "discard")
    assert isinstance(done, dict)
    assert done["job"]["details"]["given-up"] is True
    now = wait_until(host, lambda now: codes(now) == [])
    assert (owed(host), now["owed"], lashctl(host, "discard", status=7) is None) == (None, {}, False)
