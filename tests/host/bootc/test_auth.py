# SPDX-License-Identifier: Apache-2.0
"""Credentials for bound images: those of the running system count, for bootc as for lashd."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.host import Host
from demo.images import Version
from tests.host.conftest import HostImages
from tests.host.test_keeper import codes, released, wait_until
from tests.host.test_walk import described, lashctl, states, version_of
from tests.support.bootc_host import bound_unit, settle, stored, version_like
from tests.support.images import build
from tests.support.installed import alone, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host

PORT = 5001
ADDRESS = f"127.0.0.1:{PORT}"
APP = build([b"for those who may"])
CREDENTIALS = json.dumps({"auths": {ADDRESS: {"auth": base64.b64encode(b"edge:secret").decode()}}})


@dataclass(frozen=True)
class Private:
    """v2, which binds an image of a registry that wants credentials and brings them along, and that registry."""

    second: Version
    registry: Registry


@pytest.fixture
def private(host: Host, host_images: HostImages, host_registry: Registry, tmp_path: Path) -> Iterator[Private]:
    text = f'[[registry]]\nlocation = "{ADDRESS}"\ninsecure = true\n'
    host.run("sh", "-c", "cat > /etc/containers/registries.conf.d/60-private.conf", input=text.encode())
    unit = bound_unit("private.image", f"[Image]\nImage={ADDRESS}/app:1\nPolicy=missing\n")
    second = version_like(host_images.second, {**unit, "usr/lib/ostree/auth.json": CREDENTIALS})
    publish(host_registry, second)
    where = {"netns": host.network.path, "port": PORT, "storage": tmp_path / "private"}
    with Registry(users={"edge": "secret"}, **where) as registry:  # type: ignore[arg-type]
        registry.push("app", APP, "1")
        yield Private(second, registry)


def test_credentials_of_the_new_system_alone(host: Host, private: Private) -> None:
    """The fault: those that come with the new image do not count, and once it runs nobody fetches any more."""
    alone(host)
    said = host.run("bootc", "upgrade", check=False)
    assert said.status == 1
    assert "authentication required" in said.errors or "unauthorized" in said.errors
    host.reboot()
    assert version_of(host) == "2"
    assert APP.digest not in stored(host)


def test_credentials_of_the_running_system(host: Host, host_registry: Registry, private: Private) -> None:
    """With lashd: held with the reason; once the running system has them it is bound, without a command."""
    settle(host)
    refusal = lashctl(host, "upgrade", status=12)
    assert isinstance(refusal, dict)
    assert refusal["error"]["name"] == "AuthenticationFailed"
    now = described(host)
    assert now["gate"] == "held"
    assert "missing" in codes(now)
    script = "mkdir -p /etc/ostree && cat > /etc/ostree/auth.json"
    host.run("sh", "-c", script, input=CREDENTIALS.encode())
    wait_until(host, released)
    for registry in (host_registry, private.registry):
        registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}
