# SPDX-License-Identifier: Apache-2.0
"""Reboots on a booted host: real inhibitors of a real logind, and the unit that reboots."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from demo.host import Done, Host
from demo.shell import end, start
from lashd.running.delay import WHY
from tests.host.conftest import HostImages, publish
from tests.host.test_keeper import prepare, stage
from tests.host.test_walk import described, lashctl, version_of
from tests.support.registry import Registry

pytestmark = pytest.mark.host


@contextmanager
def inhibitor(host: Host, *options: str) -> Iterator[None]:
    """Somebody's own inhibitor, as `systemd-inhibit` takes it."""
    process = start(host.enter(["systemd-inhibit", *options, "sleep", "100"]))
    try:
        wait_for(lambda: any(row[1] == "backup" for row in inhibitors(host)))
        yield
    finally:
        end(process)


def inhibitors(host: Host) -> list[list[object]]:
    where = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "ListInhibitors"]
    return list(json.loads(host.run("busctl", "--json=short", "call", *where).output)["data"][0])


def python(host: Host, script: str) -> str:
    """What `script` prints, run inside with the lashd that is installed there."""
    return host.run("python3", "-c", script).output.strip()


_BLOCKERS = """
import asyncio
from lashd.things.logind import blockers
print(*[each.sentence for each in asyncio.run(blockers())])
"""

_OWN = """
import asyncio, subprocess
from lashd.things.logind import inhibited
async def main():
    async with inhibited("Binding the images of the next system") as works:
        print(works, flush=True)
        subprocess.run(["systemd-inhibit", "--list", "--no-legend", "--no-pager"], check=True)
    print("left", flush=True)
    subprocess.run(["systemd-inhibit", "--list", "--no-legend", "--no-pager"], check=True)
asyncio.run(main())
"""

_HOLDING = """
import asyncio, os, pathlib
from lashd.things.logind import inhibited
async def main():
    pathlib.Path("/run/holding.pid").write_text(str(os.getpid()))
    async with inhibited("Binding the images of the next system"):
        await asyncio.sleep(100)
asyncio.run(main())
"""

_BLOCKED = """
import asyncio
from lashd.things.rebooting import *
async def main():
    await start()
    print(await look())
    await asyncio.sleep(3)
    print(await look())
asyncio.run(main())
"""

# A Rebooter as the daemon makes it, with everything real but the deployments.
_REBOOTER = """
import asyncio, logging, pathlib
from lashd.running.reboot import Rebooter
from lashd.running.reboot_ways import Outlook
from lashd.steps.shutdowns import boot_id
from lashd.things.rebooting import look
from lashd.words.config import settings_from
from lashd.words.errors import LashdError
logging.basicConfig(level="INFO", format="%(message)s")
async def main():
    settings = settings_from({"reboot": {"soft": True}})
    rebooter = Rebooter(settings, lambda: Outlook("a", "b", True), boot=boot_id())
    try:
        print(await rebooter.request("now", name="test", uid=0), rebooter.begun(), await look())
    except LashdError as error:
        print(error.name, error.message)
asyncio.run(main())
"""


def test_inhibitors(booted: Host) -> None:
    assert python(booted, _BLOCKERS) == ""
    with inhibitor(booted, "--what=shutdown", "--mode=delay", "--who=backup"):
        assert python(booted, _BLOCKERS) == ""
    with inhibitor(booted, "--what=sleep:shutdown", "--mode=block", "--who=backup", "--why=Nightly backup"):
        assert python(booted, _BLOCKERS) == "backup (root) blocks the reboot: Nightly backup."
        said = python(booted, _REBOOTER)
        assert said.startswith("Inhibited backup (root) blocks the reboot: Nightly backup. Try again when")
        assert booted.run("systemctl", "is-active", "lashd-reboot.service", check=False).output == "inactive\n"


def test_our_own_inhibitor(booted: Host) -> None:
    lines = python(booted, _OWN).splitlines()
    assert lines[0] == "True"
    assert "Binding the images of the next system" in lines[1]
    assert "shutdown:sleep" in lines[1]
    assert "delay" in lines[1]
    assert lines[2:] == ["left"]


def test_our_own_inhibitor_goes_with_a_killed_daemon(booted: Host) -> None:
    process = start(booted.enter(["python3", "-c", _HOLDING]))
    try:
        wait_for(lambda: bool(inhibitors(booted)))
        booted.run("sh", "-c", "kill -9 $(cat /run/holding.pid)")
        wait_for(lambda: not inhibitors(booted), 2)
    finally:
        end(process)


def test_without_logind(booted: Host) -> None:
    booted.run("systemctl", "mask", "--runtime", "--now", "systemd-logind.service")
    try:
        assert python(booted, _BLOCKERS) == ""
        assert python(booted, _OWN.replace("check=True", "check=False")).splitlines() == ["False", "left"]
    finally:
        booted.run("systemctl", "unmask", "--runtime", "systemd-logind.service")
        booted.run("systemctl", "start", "systemd-logind.service")


def test_our_own_inhibitor_forbids_no_reboot(host: Host) -> None:
    boot = host.boots()
    # As a service: what entered the host from outside would hold its end up.
    host.run("systemd-run", "--quiet", "--unit=holding", "python3", "-c", _HOLDING)
    wait_for(lambda: bool(inhibitors(host)))
    host.run("systemctl", "reboot")
    host.wait_until_up(boot + 1)


def test_the_unit_reboots_after_a_moment(host: Host) -> None:
    boots = host.boots()
    host.run("systemd-analyze", "verify", "lashd-reboot.service", "lashd-soft-reboot.service")
    # Somebody blocks between our look and the unit's own attempt: it fails, and that is noticed.
    with inhibitor(host, "--what=shutdown", "--mode=block", "--who=backup"):
        assert python(host, _BLOCKED).split() == ["down", "failed"]
    # The failure of then is not taken for one of now.
    done = host.run("python3", "-c", _REBOOTER)
    assert done.output == "started True down\n"
    assert "ostree (2025.2) cannot prepare a soft reboot" in done.errors
    # The answer has left, and the host is still there to pass it on.
    assert host.run("systemctl", "is-system-running", check=False).output != "stopping\n"
    host.wait_until_up(boots + 1)
    journal = host.run("journalctl", "--boot=-1", "--no-pager", "--output=cat").output
    assert "lashd: the next system is ready" in journal
    # What was asked for is gone with that boot; what was started is counted.
    assert host.run("test", "-e", "/run/lashd/reboot.json", check=False).status != 0
    assert json.loads(host.run("cat", "/var/lib/lashd/reboot.json").output)["target"] == "b"


def ours(host: Host) -> list[object]:
    """What our own delay inhibitor says, if there is one: what, why and mode."""
    return [[what, why, mode] for what, who, why, mode, _uid, _pid in inhibitors(host) if who == "lashd"]


def test_a_shutdown_waits_for_a_bind_that_is_about_to_end(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    """The inhibitor is there while something is bound, and goes with the job, the daemon and the bind's end."""
    publish(host_registry, host_images.second)
    # Nothing is tried again while this test looks, and a machine that is busy has time for the bind.
    ref = prepare(host, "[gate]\nretry_seconds = 600\n")
    conf = "mkdir -p /etc/systemd/logind.conf.d && cat > /etc/systemd/logind.conf.d/test.conf"
    host.run("sh", "-c", f"{conf} && systemctl restart systemd-logind", input=b"[Login]\nInhibitDelayMaxSec=60\n")
    assert ours(host) == []
    host_registry.pause()
    stage(host, ref)
    wait_for(lambda: ours(host) == [["shutdown:sleep", WHY, "delay"]])
    listed = host.run("systemd-inhibit", "--list", "--no-legend", "--no-pager").output
    assert "lashd" in listed
    job = described(host)["activeJob"]
    lashctl(host, "jobs", "--cancel", str(job))
    wait_for(lambda: not ours(host))
    lashctl(host, "bind", "--no-wait")
    wait_for(lambda: len(ours(host)) == 1)
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "lashd")
    wait_for(lambda: not ours(host), 2)
    # The daemon comes again, and so does the bind: it is under way when the reboot is asked for.
    wait_for(lambda: len(ours(host)) == 1, 30)
    boots = host.boots()
    # As a service: what entered the host from outside would hold its end up.
    host.run("systemd-run", "--quiet", "systemctl", "reboot")
    preparing = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
    wait_for(lambda: "true" in host.run("busctl", "get-property", *preparing, "PreparingForShutdown").output)
    time.sleep(1)
    assert described(host)["gate"] == "held"
    began = time.monotonic()
    host_registry.resume()
    host.wait_until_up(boots + 1)
    assert time.monotonic() - began < 50, "once the bind has ended nobody waits any longer"
    assert version_of(host) == "2"
    now = described(host)
    assert (now["lastShutdown"]["result"], ours(host)) == ("released", [])


def test_a_reboot_that_is_asked_for_with_an_upgrade(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    publish(host_registry, host_images.second)
    day = datetime.now(UTC) + timedelta(days=3)
    prepare(host, f'[reboot]\nwindows = ["{day:%a} 03:00-04:00 UTC"]\n')
    manager = ("io.github.lashd1", "/io/github/lashd1", "io.github.lashd1.Manager")

    def upgrade(when: str, *, check: bool = True) -> Done:
        return host.run("busctl", "call", *manager, "Upgrade", "a{sv}", "1", "reboot", "s", when, check=check)

    refused = upgrade("tomorrow", check=False)
    assert refused.status != 0
    assert "must be one of no, when-ready, window" in refused.errors
    assert lashctl(host, "jobs") == []
    path = upgrade("window").output.split('"')[1]
    wait = (
        "busctl",
        "call",
        manager[0],
        path,
        "io.github.lashd1.Job",
        "Wait",
        "a{sv}",
        "1",
        "timeout-ms",
        "u",
        "20000",
    )
    wait_for(lambda: "running" not in host.run(*wait).output, 120)
    assert '"success"' in host.run(*wait).output
    now = described(host)
    wanted = now["reboot"]
    assert (wanted["when"], wanted["asked-uid"], wanted["started"]) == ("window", 0, False)
    assert datetime.fromtimestamp(wanted["next-window"], UTC).strftime("%a %H:%M") == f"{day:%a} 03:00"
    assert [reason["code"] for reason in now["blockedBy"]] == ["outside-window"]
    assert "Reboot: wanted by" in host.run("lashctl", "status").output
    # Taken back, and nothing of it is left.
    before = now["generation"]
    assert lashctl(host, "reboot", "--cancel")["job"]["details"]["state"] == "withdrawn"  # type: ignore[call-overload]
    now = described(host)
    assert (now["reboot"]["when"], now["reboot"]["asked-uid"], now["blockedBy"]) == ("never", -1, [])
    assert now["generation"] > before
    lashctl(host, "reboot", "--cancel", status=77)
    # There is nothing newer, and what is staged already is what the reboot is for.
    boots = host.boots()
    upgrade("when-ready")
    host.wait_until_up(boots + 1)
    assert version_of(host) == "2"
    assert described(host)["reboot"]["when"] == "never"


def wait_for(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
