# SPDX-License-Identifier: Apache-2.0
"""Collect on a booted host, after an upgrade whose old deployment is gone: what a container runs from stays so long."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.host import Host
from tests.host.conftest import HostImages, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host

STORE = "/usr/lib/bootc/storage"

# As the daemon does it, with the settings of the host.
_COLLECT = """
import asyncio, json, sys
from dataclasses import asdict
from pathlib import Path
from lashd.steps.collect import collect
from lashd.steps.keep import Present
from lashd.steps.record import Records
from lashd.steps.shutdowns import Shutdowns
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.ostree.checkouts import unlisted
from lashd.things.store import Store
from lashd.words.config import load

settings = load()
backend = OstreeBackend(settings)
records = Records(settings.paths.state / "records")
store = Store(settings.store, settings.store_run, settings.host.sysroot)

def present():
    listed = backend.deployments()
    owed = Shutdowns(settings.paths.state, settings.paths.run).owed()
    return Present(listed, owed, records.load_all(), records.damaged(), unlisted(settings.host.sysroot, listed))

done = asyncio.run(collect(store, records, present, settings.paths.root, dry_run=sys.argv[1] == "dry"))
print(json.dumps(asdict(done) | {"records": sorted(records.load_all())}))
"""

# What lashd writes when it has bound a deployment.
_RECORD = """
import sys, time
from lashd.steps.record import Records
from lashd.steps.discover import discover
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.store import Store
from lashd.words.config import load
from lashd.words.model import Record, RecordedImage
settings = load()
index = Store(settings.store, settings.store_run, settings.host.sysroot).index()
for deployment in OstreeBackend(settings).deployments():
    if deployment.version == sys.argv[1]:
        images = []
        for bound in discover(deployment.root, deployment.merges).images:
            image = index.image_named(bound.reference)
            chain = index.chain(image)
            images.append(RecordedImage(str(bound.reference), image.digest, image.id, tuple(each.id for each in chain)))
        Records(settings.paths.state / "records").write(Record(deployment.key, None, tuple(images), int(time.time())))
"""


def collect(host: Host, how: str = "real") -> dict[str, Any]:
    done: dict[str, Any] = json.loads(host.run("python3", "-c", _COLLECT, how, timeout=120).output)
    return done


def store_bytes(host: Host) -> int:
    return int(host.run("du", "--summarize", "--bytes", f"{STORE}/").output.split()[0])


def podman_images(host: Host) -> set[str]:
    podman = ("podman", f"--storage-opt=additionalimagestore={STORE}", "images", "--format={{.ID}}", "--no-trunc")
    return {line.removeprefix("sha256:") for line in host.run(*podman).output.split()}


def test_what_the_old_system_ran_goes_when_nothing_runs_from_it_any_more(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    first, second = host_images.first, host_images.second
    host.run("python3", "-c", _RECORD, "1")
    # The next version, put beside the booted one as an administrator may do it, and its images as bootc would.
    publish(host_registry, second)
    stage = (
        "import asyncio\n"
        "from lashd.things.ostree.backend import OstreeBackend\n"
        "from lashd.words.config import load\n"
        "from lashd.words.progress import ignore\n"
        "backend = OstreeBackend(load())\n"
        "image = backend.deployments()[0].image\n"
        "print(asyncio.run(backend.fetch(image, expected_digest=None, report=ignore)).checksum)\n"
    )
    commit = host.run("python3", "-c", stage, timeout=180).output.split()[-1]
    origin = "/ostree/deploy/default/deploy"
    host.run("sh", "-c", f"ostree admin deploy --origin-file=$(ls {origin}/*.origin) {commit}", timeout=120)
    for binding in second.bindings:
        target = f"containers-storage:[overlay@/sysroot/ostree/bootc/storage+/run/bootc/storage]{binding.reference}"
        copy = f"mount -o remount,rw /sysroot && skopeo copy -q docker://{binding.reference} '{target}'"
        host.run("unshare", "--mount", "sh", "-c", copy, timeout=120)
    host.run("python3", "-c", _RECORD, "2")
    old = {binding.app.image.image_id for binding in first.bindings}
    new = {binding.app.image.image_id for binding in second.bindings}

    # Both deployments are there: nothing goes.
    done = collect(host)
    assert (done["images"], done["layers"], done["bytes"]) == ([], [], 0)
    assert podman_images(host) == old | new
    host.reboot()
    assert host.run("sh", "-c", ". /etc/os-release; echo $VERSION_ID").output.strip() == "2"
    assert collect(host)["images"] == [], "v1 is the way back"

    # The way back is given up, and one container of it still runs: Quadlet's, with --rm.
    agent = next(binding for binding in first.bindings if binding.app.name == "agent")
    host.run("systemctl", "stop", "agent")
    unit = agent.app.quadlet(agent.reference)
    write = "mkdir -p /run/containers/systemd && cat > /run/containers/systemd/old.container && systemctl daemon-reload"
    old_unit = unit.replace("ContainerName=agent", "ContainerName=old")
    host.run("sh", "-c", f"{write} && systemctl start old", input=old_unit.encode())
    host.run("ostree", "admin", "undeploy", "1")
    told = collect(host, "dry")
    web = next(binding for binding in first.bindings if binding.app.name == "web")
    assert told["images"] == [web.reference]
    assert told["kept_because"][agent.reference] == "It is used by the container old."
    # Its base layer is the new one's as well.
    assert told["bytes"] == web.app.image.layers[-1].size
    before = store_bytes(host)
    done = collect(host)
    assert {key: done[key] for key in ("images", "layers", "bytes")} == {
        key: told[key] for key in ("images", "layers", "bytes")
    }
    freed = before - store_bytes(host)
    assert 0.95 * told["bytes"] < freed < 1.1 * told["bytes"]
    assert podman_images(host) == new | {agent.app.image.image_id}
    assert len(done["records"]) == 2, "the record says what the container stands on"
    assert host.run("systemctl", "is-active", "old", "web", "probe").output.split() == ["active"] * 3

    # It has ended.
    host.run("systemctl", "stop", "old")
    done = collect(host)
    assert done["images"] == [agent.reference]
    assert done["bytes"] == agent.app.image.layers[0].size
    assert len(done["records"]) == 1
    assert podman_images(host) == new
    assert not collect(host)["images"]
    host_registry.stop()
    host.run("systemctl", "start", "agent")
    host.reboot()
    assert host.run("systemctl", "is-active", "web", "agent", "probe").output.split() == ["active"] * 3
    # PID 1 never had the store writable.
    assert host.run("touch", f"{STORE}/x", check=False).status != 0
