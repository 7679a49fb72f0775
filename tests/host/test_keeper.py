# SPDX-License-Identifier: Apache-2.0
"""The keeper on a booted host: others stage, nobody asks lashd for anything, and all the same nothing is torn apart."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from demo.host import Host
from lashd.words.events import MessageId
from tests.host.conftest import HostImages, publish
from tests.host.test_walk import described, lashctl, lock_of, states, version_of, wait_for_page
from tests.support.faulty import Faulty, Stall
from tests.support.noticed import stage
from tests.support.registry import Registry

pytestmark = pytest.mark.host

SETTINGS = "[gate]\nretry_seconds = 1\nretry_limit_seconds = 2\npoll_seconds = 5\n"
# Brings the newest host image into the repository, as `ostree` knows it: a commit and a ref. Stages nothing.
FETCH = """
import asyncio
from lashd.things.ostree import names
from lashd.things.ostree.backend import OstreeBackend
from lashd.words.config import Settings
from lashd.words.progress import ignore
backend = OstreeBackend(Settings())
image = backend.deployments()[0].image
asyncio.run(backend.fetch(image, expected_digest=None, report=ignore))
print(names.image_ref(image.transport, image.reference))
"""
# Stages a ref's commit as the worker does for an upgrade. "killed": between libostree's staging and its next step.
# "full": libostree has staged it, and fails at what it tidies up afterwards.
STAGING = """
import os, signal, subprocess, sys
from pathlib import Path
from lashd.things.ostree import lockfile, sysroot
from lashd.things.ostree.backend import OstreeBackend
from lashd.words.config import Settings
write = sysroot.write_lock
def written(run, lock, **how):
    if lock.deployment != lockfile.STAGING:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(run, lock, **how)
class Full:
    def __init__(self, real):
        self.real = real
    def __getattr__(self, name):
        return getattr(self.real, name)
    def stage_tree_with_options(self, *arguments):
        self.real.stage_tree_with_options(*arguments)
        raise OSError(28, "No space left on device")
if sys.argv[2] == "killed":
    sysroot.write_lock = written
commit = subprocess.run(["ostree", "rev-parse", sys.argv[1]], capture_output=True, text=True, check=True).stdout.strip()
image = OstreeBackend(Settings()).deployments()[0].image
origin = f"ostree-unverified-image:{image.transport}:{image.reference}"
worker = sysroot.Sysroot(Path("/"), booted=True, timeout=30)
if sys.argv[2] == "full":
    worker._sysroot = Full(worker._sysroot)
worker.deploy(commit, origin, "")
"""


# What an ordinary client says and gets.
SCRAPE = """
import socket
client = socket.socket(socket.AF_UNIX)
client.connect("/run/lashd/metrics.sock")
client.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: lashd\\r\\n\\r\\n")
print(client.makefile("rb").read().decode(), end="")
"""


def prepare(host: Host, settings: str = SETTINGS) -> str:
    """Quick retries, the daemon alone, and v2 in the repository; answers its ref."""
    script = "mkdir -p /etc/lashd/lashd.d && cat > /etc/lashd/lashd.d/test.toml && systemctl restart lashd"
    host.run("sh", "-c", script, input=settings.encode())
    return host.run("python3", "-", input=FETCH.encode()).output.split()[-1]


def wait_until(host: Host, what: Callable[[dict[str, Any]], object], seconds: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        now = described(host)
        if what(now):
            return now
        assert time.monotonic() < deadline, (json.dumps(now, indent=1), host.journal())
        time.sleep(0.2)


def released(now: dict[str, Any]) -> bool:
    return now["gate"] == "released" and now["state"] == "ready"


def codes(now: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in now["blockedBy"]]


def kill_daemon(host: Host) -> None:
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "lashd")


def entries(host: Host, message: MessageId, *more: str) -> list[dict[str, str]]:
    """What the journal has under this id, as others read it."""
    output = host.run("journalctl", f"MESSAGE_ID={message}", "--output=json", "--no-pager", *more).output
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def metrics(host: Host) -> list[dict[tuple[str, ...], float]]:
    """Name and labels of each sample → value; from the socket, and from the file."""
    families = parse(host.run("python3", "-", input=SCRAPE.encode()).output.partition("\r\n\r\n")[2])
    written = parse_plain(host.run("cat", "/run/lashd/metrics/lashd.prom").output)
    return [
        {(sample.name, *sample.labels.values()): sample.value for family in each for sample in family.samples}
        for each in (families, written)
    ]


def test_staged_by_somebody_else(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    publish(host_registry, host_images.second)
    # Whoever only looks now and then does not see it in time.
    ref = prepare(host, SETTINGS.replace("poll_seconds = 5", "poll_seconds = 60") + "[metrics]\ntextfile = true\n")
    host.run("systemctl", "stop", "lashd-hold.path")
    host_registry.stop()
    stage(host, ref)
    now = wait_until(host, lambda now: "missing" in codes(now) and now["nextTry"])
    assert (now["gate"], now["lastError"]["name"]) == ("held", "NetworkUnavailable")
    assert {"missing", "waiting"} <= set(codes(now))
    assert abs(now["nextTry"] - time.time()) < 10
    assert any("since 20" in reason["message"] for reason in now["blockedBy"])
    # Whoever is to be alerted is, and finds there what it is about.
    deadline = time.monotonic() + 20
    while not (held := entries(host, MessageId.HELD)):
        assert time.monotonic() < deadline, host.journal()
        time.sleep(0.5)
    staged = now["deployments"][0]["key"]
    assert (held[0]["LASHD_DEPLOYMENT"], held[0]["LASHD_ERROR"], held[0]["PRIORITY"]) == (staged, "Held", "4")
    failed, ended = entries(host, MessageId.IMAGE_FAILED), entries(host, MessageId.JOB_ENDED, "LASHD_RESULT=failed")
    assert {entry["LASHD_REFERENCE"] for entry in failed} <= {row["normalised"] for row in now["bound"]}
    assert {(entry["LASHD_ERROR"], entry["LASHD_RETRYABLE"]) for entry in failed} == {("NetworkUnavailable", "yes")}
    assert {entry["LASHD_JOB"] for entry in failed} >= {entry["LASHD_JOB"] for entry in ended} != set()
    assert {(entry["LASHD_KIND"], entry["_SYSTEMD_UNIT"]) for entry in failed} == {("bind", "lashd.service")}
    deadline = time.monotonic() + 10
    while 'result="failed"' not in host.run("cat", "/run/lashd/metrics/lashd.prom", check=False).output:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for found in metrics(host):
        assert found["lashd_gate", "held"] == 1
        assert sum(value for key, value in found.items() if key[:2] == ("lashd_bound_images", "staged")) == 3
        assert 0 in {value for key, value in found.items() if key[:2] == ("lashd_bound_image_present", "staged")}
        assert found["lashd_jobs_total", "bind", "failed"] > 0
        assert abs(found[("lashd_staged_since_timestamp_seconds",)] - time.time()) < 120
    # Staged again over the held one, and the daemon killed in the middle of it all.
    for _ in range(2):
        first = lock_of(host)
        stage(host, ref)
        # libostree takes the lock away once more before it is done.
        deadline = time.monotonic() + 5
        while not (second := lock_of(host)) or second.splitlines()[1] in first:
            assert time.monotonic() < deadline, (first, second)
        assert second.startswith("lashd\n")
    kill_daemon(host)
    wait_until(host, lambda now: now["gate"] == "held" and "missing" in codes(now))
    # Another lashd is not needed for that, nor a command: the registry is back.
    host_registry.start()
    now = wait_until(host, released)
    assert now["blockedBy"] == []
    assert "ready" in lock_of(host)
    assert set(states(host, "staged").values()) == {"present"}
    # What was declared is not complete any more.
    store = "/sysroot/ostree/bootc/storage"
    host_registry.stop()
    remove = f"mount -o remount,rw /sysroot && rm {store}/overlay-images/images.json"
    host.run("unshare", "--mount", "sh", "-c", remove)
    wait_until(host, lambda now: now["gate"] == "held")
    host_registry.start()
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    now = wait_until(host, lambda now: now["state"] == "idle")
    assert now["blockedBy"] == []
    assert host.run("ls", "/var/lib/lashd/owed.json", check=False).status != 0
    # The gate has told it without the daemon, under its own unit, and the catalog has the words for it.
    (passed,) = entries(host, MessageId.GATE_PASSED, "--boot=-1", "--unit=lashd-gate.service")
    assert passed["LASHD_DEPLOYMENT"] in entries(host, MessageId.RELEASED, "--boot=-1")[-1]["LASHD_DEPLOYMENT"]
    said = host.run("journalctl", "-x", "--boot=-1", "--no-pager", f"MESSAGE_ID={MessageId.GATE_PASSED}").output
    assert "Subject: The shutdown let the staged deployment through" in said
    assert passed["LASHD_DEPLOYMENT"] in said.partition("Subject:")[2]


def test_lost_at_a_held_reboot_and_staged_again(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """The registry is off, the host is rebooted, the registry is on: no command, and it is all there."""
    publish(host_registry, host_images.second)
    ref = prepare(host, SETTINGS + 'inhibit = "wasted"\n')
    host_registry.stop()
    stage(host, ref)
    origin = "cat /ostree/deploy/default/deploy/$(sed -n 2p /run/ostree/staged-deployment-locked).origin"
    before = host.run("sh", "-c", origin).output
    assert "refspec=" in before
    owed = json.loads(host.run("cat", "/var/lib/lashd/owed.json").output)
    host.reboot()
    assert version_of(host) == "1"
    now = wait_until(host, lambda now: "wasted-reboots" in codes(now) and now["gate"] == "held")
    assert now["lastShutdown"]["result"] == "held"
    assert now["lastShutdown"]["deployment"] == owed["deployment"]
    again = json.loads(host.run("cat", "/var/lib/lashd/owed.json").output)
    assert (again["wasted"], again["since"], again["checksum"]) == (1, owed["since"], owed["checksum"])
    assert again["boot"] != owed["boot"]
    assert sorted(host.run("sh", "-c", origin).output.split()) == sorted(before.split())
    inhibitors = "systemd-inhibit --list --no-legend --no-pager"
    deadline = time.monotonic() + 10
    while "lashd" not in host.run("sh", "-c", inhibitors).output:
        assert time.monotonic() < deadline
    host_registry.start()
    wait_until(host, released)
    deadline = time.monotonic() + 10
    while "lashd" in host.run("sh", "-c", inhibitors).output:
        assert time.monotonic() < deadline
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}
    assert wait_until(host, lambda now: now["lastShutdown"]["result"] == "released")["blockedBy"] == []


def test_dropped_is_dropped(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    publish(host_registry, host_images.second)
    ref = prepare(host)
    host_registry.stop()
    stage(host, ref)
    wait_until(host, lambda now: "waiting" in codes(now))
    # By somebody else, then by us, each time followed by a reboot.
    host.run("ostree", "admin", "undeploy", "0")
    host.reboot()
    time.sleep(2)
    now = described(host)
    assert (now["gate"], codes(now)) == ("none", [])
    stage(host, ref)
    wait_until(host, lambda now: "waiting" in codes(now))
    manager = ("io.github.lashd1", "/io/github/lashd1", "io.github.lashd1.Manager")
    host.run("busctl", "call", *manager, "Discard", "a{sv}", "0")
    wait_until(host, lambda now: now["gate"] == "none" and now["state"] == "idle")
    assert host.run("ls", "/var/lib/lashd/owed.json", check=False).status != 0
    # Let through although images are missing, by order: then it is up to the operator.
    stage(host, ref)
    checksum = lock_of(host).splitlines()[1][:64]
    digest = host_images.second.image.digest
    wrong = host.run("busctl", "call", *manager, "Release", "a{sv}", "1", "expected-digest", "s", checksum, check=False)
    assert "DigestMismatch" in wrong.errors or "is staged" in wrong.errors or "not" in wrong.errors
    host.run("busctl", "call", *manager, "Release", "a{sv}", "2", "expected-digest", "s", digest, "reason", "s", "now")
    now = wait_until(host, lambda now: now["gate"] == "released")
    time.sleep(3)
    assert described(host)["gate"] == "released"
    # Held back by order, although it is complete.
    host.run("busctl", "call", *manager, "Hold", "a{sv}", "1", "reason", "s", "freeze")
    host_registry.start()
    now = wait_until(host, lambda now: set(states(host, "staged").values()) == {"present"} and now["activeJob"] == 0)
    time.sleep(2)
    now = described(host)
    assert (now["gate"], codes(now)[0]) == ("held", "order-hold")
    assert "freeze" in now["blockedBy"][0]["message"]


def test_locks_of_others_and_boot_orders_without_staging(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    publish(host_registry, host_images.second)
    ref = prepare(host)
    host.run("ostree", "admin", "deploy", "--stage", "--lock-finalization", ref)
    before = lock_of(host)
    now = wait_until(host, lambda now: set(states(host, "staged").values()) == {"present"} and now["activeJob"] == 0)
    for _ in range(3):
        kill_daemon(host)
        now = wait_until(host, lambda now: now["activeJob"] == 0)
        assert lock_of(host) == before
        assert (now["gate"], codes(now)[0]) == ("held", "foreign-lock")
    host.run("ostree", "admin", "lock-finalization", "--unlock")
    wait_until(host, released)
    host.run("ostree", "admin", "undeploy", "0")

    # Not staged at all: nothing holds it, so it is said, and bound as soon as that can be.
    store = "/sysroot/ostree/bootc/storage"
    remove = f"mount -o remount,rw /sysroot && rm -r {store}/overlay-images/images.json {store}/overlay/*/diff/srv"
    host.run("unshare", "--mount", "sh", "-c", remove, check=False)
    wait_until(host, lambda now: set(states(host, "booted").values()) == {"present"})
    host_registry.stop()
    host.run("ostree", "admin", "deploy", ref)
    now = wait_until(host, lambda now: "boot-order" in codes(now))
    host_registry.start()
    now = wait_until(host, lambda now: now["deployments"][0]["ready"] and "boot-order" not in codes(now))
    assert now["deployments"][0]["next-boot"]


def test_killed_at_any_moment(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    publish(host_registry, host_images.second)
    ref = prepare(host)
    for delay in (0.0, 0.05, 0.2, 0.5, 0.9, 1.5):
        host.run("sh", "-c", f"ostree admin deploy --stage {ref} >/dev/null & sleep {delay}; exec systemctl kill "
                 "--signal=KILL --kill-whom=main lashd")  # fmt: skip
        wait_until(host, released)
        assert host.run("pgrep", "-x", "skopeo", check=False).output == ""
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert set(states(host, "booted").values()) == {"present"}


def test_killed_while_it_stages_and_then_rebooted(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """Nobody could tidy up before the reboot: the update comes back all the same, and no stranger is blamed for it."""
    publish(host_registry, host_images.second)
    ref = prepare(host)
    # Else it would tidy up at once.
    host.run("systemctl", "mask", "--runtime", "--now", "lashd.service")
    done = host.run("unshare", "--mount", "python3", "-", ref, "killed", input=STAGING.encode(), check=False)
    assert done.status == -signal.SIGKILL, done.output
    assert lock_of(host) == "lashd\nstaging\n"
    assert host.run("cat", "/run/ostree/.lashd-staging").output == host.run("ostree", "rev-parse", ref).output.strip()
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "1"
    now = wait_until(host, lambda now: "missing" in codes(now) and "staged" in now["deployments"][0]["roles"])
    verdict = now["lastShutdown"]
    reasons = {reason["code"] for reason in verdict["reasons"]}
    assert (verdict["result"], reasons & {"foreign-lock", "missing"}) == ("held", {"missing"})
    host_registry.start()
    wait_until(host, released)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"


def test_what_a_thorough_look_finds_damaged_is_taken_back(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    """Declared already, and a layer's content changed since: `verify --deep` sees it, and so does the gate."""
    publish(host_registry, host_images.second)
    prepare(host)
    lashctl(host, "upgrade")
    host_registry.stop()
    page = "grep -rl 'from web 2' --include=index.html /usr/lib/bootc/storage/overlay"
    change = f"mount -o remount,rw /sysroot && file=$({page}) && sed -i 's/from web 2/from wob 2/' $file"
    host.run("unshare", "--mount", "--propagation", "private", "sh", "-c", change)
    # Whoever only looks which layers are there sees nothing of it.
    lashctl(host, "verify", "staged")
    wait_until(host, released)
    lashctl(host, "verify", "staged", "--deep", status=18)
    # It stays as it is as long as it cannot be fetched again.
    wait_until(host, lambda now: now["gate"] == "held" and "unverified" in codes(now))
    host.reboot()
    assert version_of(host) == "1"
    wait_until(host, lambda now: "unverified" in codes(now) and now["nextTry"])
    host_registry.start()
    wait_until(host, released)
    lashctl(host, "verify", "staged", "--deep")
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert wait_for_page(host).endswith("from web 2\n")


def test_staged_although_libostree_has_failed(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """The lock in ostree's note is lashd's own: it is not left there for somebody else's, which nobody takes away."""
    publish(host_registry, host_images.second)
    ref = prepare(host)
    host.run("systemctl", "mask", "--runtime", "--now", "lashd.service")
    done = host.run("unshare", "--mount", "python3", "-", ref, "full", input=STAGING.encode(), check=False)
    assert "No space left on device" in done.errors
    commit = host.run("ostree", "rev-parse", ref).output.strip()
    assert lock_of(host).splitlines()[1].startswith(f"{commit}.")
    assert host.run("grep", "-c", "locked", "/run/ostree/staged-deployment", check=False).status == 1
    assert host.run("test", "-e", "/run/ostree/.lashd-staging", check=False).status == 1
    host.run("systemctl", "unmask", "--runtime", "lashd.service")
    host.run("systemctl", "start", "lashd.service")
    now = wait_until(host, released)
    assert now["blockedBy"] == []


def test_what_became_of_a_job_is_known_after_a_kill_and_after_a_reboot(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    """Killed in the middle of an upgrade: that is said, a new job carries on, and a reboot makes none of it unknown."""
    publish(host_registry, host_images.second)
    prepare(host)
    port, storage = host_registry.port, host_registry.storage
    host_registry.stop()
    network = host.network.path
    with (
        Registry(netns=network, port=port + 1, storage=storage) as registry,
        Faulty(registry.address, netns=network, port=port) as slow,
    ):
        slow.on(r"/probe/blobs/", Stall(), times=1)
        job = lashctl(host, "upgrade", "--no-wait", "--reason", "patch day")["job"]  # type: ignore[call-overload]
        number = str(job["id"])
        wait_until(host, lambda now: now["activeJob"] and now["gate"] == "held")
        kill_daemon(host)
        now = wait_until(host, released)
        ended = lashctl(host, "jobs", number)["job"]  # type: ignore[call-overload]
        assert (ended["uuid"], ended["result"], ended["details"]["interrupted"]) == (job["uuid"], "failed", True)
        for part in (f"Job {number} (upgrade) was interrupted", "lashd was killed", "carries on with that by itself"):
            assert part in ended["error-message"]
        (rest,) = [row for row in now["jobs"] if row["kind"] == "bind" and row["result"] == "success"]
        carried = lashctl(host, "jobs", str(rest["id"]))["job"]  # type: ignore[call-overload]
        assert carried["details"]["continues"] == job["id"] < carried["id"]
    host.reboot()
    assert version_of(host) == "2"
    after = lashctl(host, "jobs", number)["job"]  # type: ignore[call-overload]
    same = ("uuid", "kind", "created", "options", "result", "error-name", "error-message", "details")
    assert {key: after[key] for key in same} == {key: ended[key] for key in same}
    assert lashctl(host, "jobs", "--follow", number, status=26)["error"]["name"] == "Cancelled"  # type: ignore[call-overload]
    assert lashctl(host, "jobs", str(rest["id"]))["job"]["result"] == "success"  # type: ignore[call-overload]
    wait_until(host, lambda now: len(lashctl(host, "history", "--sets")) == 2)
    newer, older = lashctl(host, "history", "--sets")
    assert [(row["version"], row["this-boot"], row["ready"]) for row in (newer, older)] == [
        ("2", True, True),
        ("1", False, True),
    ]
    assert [row["digest"] for row in (newer, older)] == [
        host_images.second.image.digest,
        host_images.first.image.digest,
    ]
    assert len(newer["bound"]) == 3
    assert older["from"] < older["until"] <= newer["from"] <= newer["until"]
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert "interrupted" in host.run(*nobody, "lashctl", "history").output
