# SPDX-License-Identifier: Apache-2.0
"""Staging, holding, releasing and rolling back on a booted host, by the backend as it is installed there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.host import Host
from tests.host.conftest import HostImages, host, host_images, host_registry, installed_disk, new_host, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host

__all__ = ["host", "host_images", "host_registry", "installed_disk", "new_host"]

PRELUDE = '''
import asyncio, json, subprocess, sys, threading
from pathlib import Path
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.ostree.lockfile import LOCK, STAGED, key_is_ours, read_lock
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import HostImage
from lashd.words.progress import ignore

RUN = Path("/run/ostree")
said = {}

def look(name):
    """Each deployment in short, and whose lock there is."""
    said[name] = [
        [one.version, sorted(map(str, one.roles)), one.locked] for one in OstreeBackend(Settings()).deployments()
    ]
    lock = read_lock(RUN)
    said[name + " lock"] = lock and [lock.deployment, key_is_ours(RUN), lock.ready]

async def refused(change):
    try:
        await change
    except LashdError as error:
        return str(error.name)

class Watch:
    """Counts moments at which something is staged and nothing holds it, and at which something is staged at all."""
    def __enter__(self):
        self.gaps = self.staged = 0
        self._end = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self
    def _run(self):
        while not self._end:
            try:
                state = (RUN / STAGED).read_bytes()
            except FileNotFoundError:
                continue
            self.staged += 1
            if b"locked" not in state and not (RUN / LOCK).exists():
                self.gaps += 1
    def __exit__(self, *_):
        self._end = True
        self._thread.join()

def admin(*argv):
    subprocess.run(["ostree", "admin", *argv], check=True, stdout=subprocess.DEVNULL)
'''


def run(host: Host, steps: str) -> dict[str, Any]:
    """Run the body of an async function in the guest; answers what it noted in `said`."""
    body = "".join(f"    {line}\n" for line in steps.strip().splitlines())
    script = f"{PRELUDE}\nasync def main():\n    backend = OstreeBackend(Settings())\n{body}\nasyncio.run(main())\n"
    script += "print('\\n' + json.dumps(said))\n"
    done = host.run("python3", "-", input=script.encode(), check=False, timeout=120)
    assert done.status == 0, done.errors
    said: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    return said


BOOTED_1 = ["1", ["booted"], False]


def test_the_walk_of_a_host(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    # By itself: neither the daemon nor whoever else holds is to have a hand in it, in this boot and the next ones.
    host.run("systemctl", "mask", "--now", "lashd.service", "lashd-hold.path", "lashd-gate.service")
    drop_in = "/etc/systemd/system/ostree-finalize-staged.service.d"
    host.run("sh", "-c", f"mkdir -p {drop_in} && ln -s /dev/null {drop_in}/50-lashd.conf && systemctl daemon-reload")
    publish(host_registry, host_images.second)
    said = run(
        host,
        """
image = backend.deployments()[0].image
fetched = await backend.fetch(image, expected_digest=await backend.check(image), report=ignore)
said["changed"] = fetched.changed
with Watch() as watch:
    first = await backend.stage(fetched, image)
    said["same"] = (await backend.stage(fetched, image)).key == first.key
    # Another image's name, so that it is staged anew over the first one.
    other = HostImage("example.com/other:1")
    second = await backend.stage(fetched, other)
said["watch"] = [watch.gaps, watch.staged > 10]
look("staged")
said["keys"] = [first.key, second.key]
said["key after staging"] = [b"locked" in (RUN / STAGED).read_bytes(), [path.name for path in RUN.glob(".lashd*")]]
admin("lock-finalization")
said["release of a key that was set during the upgrade"] = await refused(backend.release(second))
admin("lock-finalization", "--unlock")
await backend.hold(second)
said["root"] = (second.root / "usr/lib/os-release").exists()
said["origin"] = backend.deployments()[0].image.reference
said["hold another"] = await refused(backend.hold(first))
said["release another"] = await refused(backend.release(first))
(RUN / LOCK).unlink()
subprocess.run(["sh", "/usr/lib/lashd/hold"], check=True)
said["roll back"] = await refused(backend.roll_back(backend.deployments()[1]))
said["discard booted"] = await refused(backend.discard(backend.deployments()[1]))
look("refused")
await backend.release(second)
look("released")
await backend.hold(second)
look("held")
admin("lock-finalization")
said["release of another's key"] = await refused(backend.release(second))
admin("lock-finalization", "--unlock")
(RUN / LOCK).touch()
said["release of another's file"] = await refused(backend.release(second))
(RUN / LOCK).unlink()
await backend.hold(second)
await backend.discard(second)
look("discarded")
said["hold nothing"] = await refused(backend.hold(second))
await backend.stage(fetched, image)
said["dropped"] = await backend.roll_back(backend.deployments()[1], drop_staged=True)
look("dropped")
""",
    )
    first, second = said["keys"]
    assert said["changed"]
    assert said["same"]
    assert first != second
    assert said["watch"] == [0, True]
    assert said["root"]
    assert said["origin"] == "example.com/other:1"
    assert said["staged"] == [["2", ["staged"], True], BOOTED_1]
    assert said["staged lock"] == [second, False, False]
    assert said["key after staging"] == [False, []]
    assert said["release of a key that was set during the upgrade"] == "Held"
    assert said["hold another"] == said["release another"] == "DigestMismatch"
    assert said["roll back"] == "WouldDropStaged"
    assert said["discard booted"] == "InvalidArgument"
    assert said["refused"] == said["staged"]
    assert said["released"] == [["2", ["staged"], False], BOOTED_1]
    assert said["released lock"] == [second, False, True]
    assert said["held"] == [["2", ["staged"], True], BOOTED_1]
    assert said["held lock"] == [second, False, False]
    assert said["release of another's key"] == said["release of another's file"] == "Held"
    assert said["discarded"] == [BOOTED_1]
    assert said["discarded lock"] is None
    assert said["hold nothing"] == "NothingStaged"
    # The booted one was first already but for the staged one.
    assert said["dropped"]
    assert said["dropped lock"] is None

    # What is staged is held over a reboot; released, it boots, and the way back is open.
    stage = (
        "image = backend.deployments()[0].image\n"
        "fetched = await backend.fetch(image, expected_digest=None, report=ignore)\n"
    )
    run(host, stage + "await backend.stage(fetched, image)")
    host.reboot()
    assert run(host, "look('now')")["now"] == [BOOTED_1]
    # The gate would look now, and take the lock away.
    run(host, stage + "await backend.release(await backend.stage(fetched, image))\n(RUN / LOCK).unlink()")
    host.reboot()
    assert run(host, "look('now')")["now"] == [["2", ["booted"], False], ["1", ["rollback"], False]]
    said = run(host, "said['back'] = await backend.roll_back(backend.deployments()[1])\nlook('now')")
    assert said["back"]
    assert said["now"] == [["1", ["rollback"], False], ["2", ["booted"], False]]
    host.reboot()
    assert run(host, "look('now')")["now"] == [BOOTED_1, ["2", ["rollback"], False]]


def test_the_boot_order_is_put_right_behind_what_is_staged(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    """As the gate does it after it has let something through, which has to stay just as it is."""
    host.run("systemctl", "mask", "--now", "lashd.service", "lashd-hold.path", "lashd-gate.service")
    publish(host_registry, host_images.second)
    said = run(
        host,
        """
from lashd.things.ostree.client import Worker
booted = backend.deployments()[0]
fetched = await backend.fetch(booted.image, expected_digest=None, report=ignore)
admin("deploy", "--no-merge", "--retain", "--os=" + booted.stateroot, fetched.checksum)
look("deployed")
await backend.stage(fetched, HostImage("example.com/other:1"))
(RUN / LOCK).unlink()
look("staged")
before = (RUN / STAGED).read_bytes(), (RUN / STAGED).stat().st_ino
worker = Worker(Settings(), booted=True, shutting_down=True)
await worker.change("set-first", key=booted.key, drop_staged=False, shutting_down=True)
said["untouched"] = before == ((RUN / STAGED).read_bytes(), (RUN / STAGED).stat().st_ino)
said["left"] = [path.name for path in RUN.iterdir() if path.name.endswith(".aside")]
look("after")
""",
    )
    assert [roles for _, roles, _ in said["deployed"]] == [["rollback"], ["booted"]]
    assert [roles for _, roles, _ in said["staged"]] == [["staged"], ["rollback"], ["booted"]]
    assert said["untouched"]
    assert said["left"] == []
    assert [roles for _, roles, _ in said["after"]] == [["staged"], ["booted"], ["rollback"]]
    # And it can still be finalised: nobody unlocks it here as the gate does, but for its key.
    run(host, "admin('lock-finalization', '--unlock')")
    host.run("sh", "-c", "mkdir -p /run/lashd && cp /run/ostree/staged-deployment /run/lashd/passed")
    host.reboot()
    now = run(host, "look('now')")["now"]
    assert [(version, roles) for version, roles, _ in now] == [("2", ["booted"]), ("1", ["rollback"])]
