# SPDX-License-Identifier: Apache-2.0
"""Units that systemd understands and bootc does not."""

from __future__ import annotations

import pytest

from demo.host import Host
from demo.images import Version
from tests.host.conftest import HostImages
from tests.host.test_keeper import codes, released, wait_until
from tests.host.test_walk import described, lashctl, states, version_of
from tests.support.bootc_host import (
    LINKS,
    UNITS,
    bound_unit,
    configure,
    digests,
    settle,
    stored,
    version_like,
)
from tests.support.images import Content, Link
from tests.support.installed import alone, publish
from tests.support.registry import Registry
from tests.support.switching import NEXT, publish_next

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def second_wrapped(host_images: HostImages) -> Version:
    """v2 with a unit that has a line of two halves."""
    *_, probe = host_images.second.bindings
    unit = f"[Unit]\nDescription=The \\\n  probe\n\n{probe.app.quadlet(probe.reference)}"
    return version_like(host_images.second, {f"{UNITS}/probe.container": unit})


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
    configure(host, images_first=images_first)
    done = lashctl(host, "upgrade")
    assert isinstance(done, dict)
    assert done["job"]["result"] == "success"
    wait_until(host, released)
    # The same image by another name: what is staged does not follow that yet.
    publish_next(host_registry, second_wrapped)
    lashctl(host, "switch", NEXT)
    lashctl(host, "switch", NEXT, status=77)
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert described(host)["deployments"][0]["image"] == NEXT
    assert set(states(host, "booted").values()) == {"present"}


@pytest.fixture(scope="module")
def second_malformed(host_images: HostImages) -> Version:
    """v2 with three entries that bootc refuses: a file, a link that leads nowhere, and another kind of unit."""
    more: dict[str, Content] = {
        f"{LINKS}/README": "What is here is bound.\n",
        f"{LINKS}/gone.container": Link(f"/{UNITS}/gone.container"),
        **bound_unit("app.kube", "[Kube]\nYaml=/etc/app.yaml\n"),
    }
    return version_like(host_images.second, more)


def test_malformed_entries_alone(host: Host, host_registry: Registry, second_malformed: Version) -> None:
    """The fault: the first bad entry is the end of all others, after it was staged."""
    alone(host)
    publish(host_registry, second_malformed)
    said = host.run("bootc", "upgrade", check=False)
    assert said.status == 1
    assert "Querying bound images" in said.errors
    host.reboot()
    assert version_of(host) == "2"
    assert not digests(second_malformed) & stored(host)


def test_malformed_entries(host: Host, host_registry: Registry, second_malformed: Version) -> None:
    """With lashd: each is named, the others are fetched, and the old system stays."""
    settle(host)
    publish(host_registry, second_malformed)
    assert host.run("bootc", "upgrade", check=False, timeout=120).status == 1
    now = wait_until(host, lambda now: "bad-entry" in codes(now) and digests(second_malformed) <= stored(host))
    assert now["gate"] == "held"
    told = " ".join(reason["message"] for reason in now["blockedBy"])
    assert all(entry in told for entry in ("README", "gone.container", "app.kube"))
    host.reboot()
    assert version_of(host) == "1"
    assert set(states(host, "booted").values()) == {"present"}
