# SPDX-License-Identifier: Apache-2.0
"""Units that systemd understands and bootc does not."""

from __future__ import annotations

import pytest

from demo.host import Host
from demo.images import Version
from tests.host.conftest import HostImages
from tests.host.test_keeper import released, wait_until
from tests.host.test_walk import lashctl, states, version_of
from tests.support.bootc_host import (
    UNITS,
    configure,
    digests,
    settle,
    stored,
    version_like,
)
from tests.support.installed import alone, publish
from tests.support.registry import Registry

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
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}
