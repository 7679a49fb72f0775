# SPDX-License-Identifier: Apache-2.0
"""Local changes of /etc on a booted host: ostree merges them at the very end, and what they bind is verified all the
same before it boots."""

from __future__ import annotations

import json

import pytest

from demo.host import Host
from demo.images import REGISTRY
from tests.host.conftest import HostImages, publish
from tests.host.test_keeper import codes, prepare, released, stage, wait_until
from tests.host.test_walk import described, lashctl, lock_of, states, version_of
from tests.support.registry import Registry

pytestmark = pytest.mark.host

GONE, OTHER = f"{REGISTRY}/apps/nowhere:1", f"{REGISTRY}/apps/other:1"


def drop_in(host: Host, unit: str, image: str) -> None:
    """Let `unit` have `image`, by a drop-in of the administrator's, in /var; without one take the drop-in away."""
    directory = f"/etc/containers/systemd/{unit}.d"
    script = f"mkdir -p {directory} && cat > /var/{unit} && ln -s ../../../../var/{unit} {directory}/10.conf"
    script = script if image else f"rm -r {directory}"
    host.run("sh", "-c", script, input=f"[Container]\nImage={image}\n".encode())


def test_a_drop_in_decides_what_the_next_system_binds(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    publish(host_registry, host_images.second)
    other = host_images.first.bindings[1].app.image
    host_registry.push("apps/other", other, "1")
    ref = prepare(host)
    stage(host, ref)
    wait_until(host, released)
    assert "ready" in lock_of(host)

    # Declared ready, then edited: taken back at once, and declared again when that is undone.
    drop_in(host, "probe.container", GONE)
    now = wait_until(host, lambda now: now["gate"] == "held" and "missing" in codes(now), 4)
    assert any(GONE in reason["message"] for reason in now["blockedBy"])
    drop_in(host, "probe.container", "")
    wait_until(host, released)

    # Edited while nobody looks: the gate does.
    host.run("systemctl", "mask", "--runtime", "lashd.service")
    host.run("systemctl", "stop", "lashd.service")
    drop_in(host, "probe.container", GONE)
    assert "ready" in lock_of(host)
    host.reboot()
    assert version_of(host) == "1"
    shutdown = described(host)["lastShutdown"]
    assert shutdown["result"] == "held"
    assert any(GONE in reason["message"] for reason in shutdown["reasons"])

    # Staged again, held because of it, and still held at an ordinary reboot.
    wait_until(host, lambda now: now["gate"] == "held" and "missing" in codes(now))
    host.reboot()
    assert version_of(host) == "1"

    # An image that there is, for a unit that the running system has as well: nobody fetches that one unasked for it.
    wait_until(host, lambda now: now["gate"] == "held" and "missing" in codes(now))
    host_registry.stop()
    drop_in(host, "probe.container", "")
    drop_in(host, "agent.container", OTHER)
    now = wait_until(host, lambda now: now["gate"] == "held" and "running-lacks" in codes(now), 10)
    host_registry.start()
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}
    (row,) = [row for row in lashctl(host, "list", "--deployment", "booted") if row["unit"] == "agent.container"]
    assert (row["reference"], row["present-digest"]) == (OTHER, other.digest)
    record = json.loads(host.run("cat", f"/var/lib/lashd/records/{row['deployment']}.json").output)
    assert {image["reference"]: image["digest"] for image in record["images"]}[OTHER] == other.digest
    assert wait_until(host, lambda now: now["lastShutdown"]["result"] == "released")["blockedBy"] == []
