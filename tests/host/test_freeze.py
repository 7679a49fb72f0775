# SPDX-License-Identifier: Apache-2.0
"""A change of the boot order on a booted host, interrupted while libostree has the filesystem of /boot frozen.

The worker is caught in the system call that freezes, and is stopped there, so that whatever is done to lashd comes at
the worst moment, every time: who dies just then leaves the filesystem frozen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.host import Host
from lashd.bus.contract import JOB, MANAGER, NAME, ROOT
from tests.host.conftest import HostImages, publish
from tests.host.test_walk import WRITABLE, lashctl, version_of
from tests.support.registry import Registry

pytestmark = pytest.mark.host

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
# What is polled for comes and goes within milliseconds.
POLL_SECONDS = 0.001
# On a busy machine a worker is sometimes through before we have seen it freeze.
TRIES = 5


@pytest.fixture
def updated(host: Host, host_images: HostImages, host_registry: Registry) -> Iterator[Host]:
    """A host that runs v2 and can go back to v1. In the end it is thawed, so that it can be switched off."""
    publish(host_registry, host_images.second)
    lashctl(host, "upgrade")
    host.reboot()
    assert version_of(host) == "2"
    try:
        yield host
    finally:
        with contextlib.suppress(OSError):
            ask_filesystem(host, FITHAW)


# The guest's filesystem and its processes, seen from outside


def ask_filesystem(host: Host, *requests: int) -> None:
    descriptor = os.open(f"/proc/{host.leader()}/root/boot", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for request in requests:
            fcntl.ioctl(descriptor, request, 0)
    finally:
        os.close(descriptor)


def is_frozen(host: Host) -> bool:
    """To be asked only while nobody else is about to freeze or to thaw."""
    try:
        ask_filesystem(host, FIFREEZE, FITHAW)
    except OSError:  # it cannot be frozen twice
        return True
    return False


def processes(host: Host, program: str, argument: str = "set-first") -> list[int]:
    """Process ids, on this machine, of the guest's `program`s that have this argument."""
    namespace = Path(f"/proc/{host.leader()}/ns/pid").readlink()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            argv = path.read_bytes().split(b"\0")
            meant = argv[0].endswith(program.encode()) and argument.encode() in argv
            if meant and (path.parent / "ns/pid").readlink() == namespace:
                found.append(int(path.parent.name))
    return found


def workers(host: Host) -> list[int]:
    return processes(host, "python3")


def runners(host: Host) -> list[int]:
    return processes(host, "systemd-run")


def state(pid: int) -> str:
    """One letter as in /proc/PID/stat; empty when there is no such process, or only its remains."""
    with contextlib.suppress(OSError):
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return "" if letter == "Z" else letter
    return ""


def is_freezing(pid: int) -> bool:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/syscall").read_text().split()
        return len(words) > 2 and words[2] == hex(FIFREEZE)
    return False


def until(what: Callable[[], object], seconds: float = 20, every: float = POLL_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def boot_order(host: Host) -> list[str]:
    """Versions, the one that boots next first."""
    return re.findall(r"Version: (.*)", host.run("ostree", "admin", "status", timeout=20).output)


def first_entry(host: Host) -> str:
    """Version that boots next, from the boot entries and without asking the guest; empty while they are written."""
    found = [(0, "")]
    with contextlib.suppress(OSError, ValueError):
        for entry in Path(f"/proc/{host.leader()}/root/boot/loader/entries").iterdir():
            lines = dict(line.split(maxsplit=1) for line in entry.read_text().splitlines())
            found.append((int(lines["version"]), lines["title"].split()[2]))
    return max(found)[1]


# When it happens


def asked(host: Host) -> int | None:
    """The unit has been asked for, and is perhaps not there yet."""
    assert until(lambda: runners(host)), host.journal()
    return None


def started(host: Host) -> int | None:
    assert until(lambda: workers(host)), host.journal()
    return None


def frozen(host: Host) -> int | None:
    """The filesystem is frozen, and stays so until the worker is continued; None when it was too quick for us."""
    started(host)
    for worker in workers(host)[:1]:
        while until(lambda: is_freezing(worker) or not state(worker), every=0) and state(worker):  # noqa: B023
            # The system call is not interrupted: the signal stops the worker when it returns.
            os.kill(worker, signal.SIGSTOP)
            assert until(lambda: state(worker) in ("T", ""))  # noqa: B023
            if is_frozen(host):
                return worker
            os.kill(worker, signal.SIGCONT)  # it was through already, and will freeze once more
    return None


def written(host: Host) -> int | None:
    """The new entries are there, and what is left over is being removed."""
    started(host)
    assert until(lambda: first_entry(host) == "1" or not workers(host))
    return None


# What happens


def end(number: signal.Signals, which: list[int]) -> None:
    assert which
    for process in which:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
    assert until(lambda: not any(map(state, which)))


def killed(host: Host) -> None:
    end(signal.SIGKILL, processes(host, "python3", "/usr/bin/lashd"))


def stopped(host: Host) -> None:
    host.run("systemctl", "stop", "--no-block", "lashd", timeout=15)
    # The last that it writes is its history, and where the filesystem is frozen it cannot even be killed over that.
    until(lambda: not processes(host, "python3", "/usr/bin/lashd"), 5)


def told_to_end(host: Host) -> None:
    """As lashd does with its children when it ends a job."""
    end(signal.SIGTERM, runners(host))


def cancelled(host: Host) -> None:
    # Not by lashctl: it is written in Python, which writes bytecode when it thinks it should.
    asked = host.run("busctl", "get-property", NAME, ROOT, MANAGER, "ActiveJob", timeout=10).output
    cancel = ("busctl", "call", NAME, asked.split('"')[1], JOB, "Cancel", "a{sv}", "0")
    refused = host.run(*cancel, check=False, timeout=10)
    assert "can no longer be cancelled" in refused.errors


MOMENTS = (asked, started, frozen, written)
ROUNDS = [(what, when) for what in (killed, stopped, told_to_end) for when in MOMENTS] + [(cancelled, frozen)]


@contextlib.contextmanager
def rollback(host: Host, when: Callable[[Host], int | None]) -> Iterator[int | None]:
    """A rollback that has come as far as `when`; a worker that was stopped there is continued in the end."""
    argv = host.enter(["lashctl", "rollback", "--no-wait"])
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as asking:
        worker = when(host)
        try:
            yield worker
        finally:
            with contextlib.suppress(ProcessLookupError):
                if worker is not None:
                    os.kill(worker, signal.SIGCONT)
            asking.wait(20)


def settled(host: Host) -> bool:
    """Nobody is changing the boot order any more. What has only been asked for may begin a moment later."""
    for _ in range(2):
        if not until(lambda: not workers(host) and not runners(host), every=0.02):
            return False
        time.sleep(0.1)
    return True


def test_nothing_ends_a_change_of_the_boot_order(updated: Host) -> None:
    host = updated
    for what, when in ROUNDS:
        at = f"{what.__name__} when {when.__name__}"
        for _ in range(TRIES):
            # systemd gives up on what it starts too often.
            host.run("systemctl", "reset-failed", "lashd")
            host.run("systemctl", "start", "lashd")
            with rollback(host, when) as worker:
                missed = when is frozen and worker is None
                if not missed:
                    what(host)
            assert settled(host), at
            assert not is_frozen(host), at
            host.run(*WRITABLE, "mount -o remount,rw /boot && touch /boot/new && rm /boot/new", timeout=10)
            order = boot_order(host)
            assert order == ["1", "2"] or (when is asked and order == ["2", "1"]), at
            if order == ["1", "2"]:
                host.run("ostree", "admin", "set-default", "1")
            if not missed:
                break
        else:
            pytest.fail(f"no worker could be stopped with the filesystem frozen in {TRIES} tries")
    with rollback(host, asked):
        pass
    assert settled(host)
    host.reboot()
    assert version_of(host) == "1"


def test_reboot_in_the_middle_of_a_change_of_the_boot_order(updated: Host) -> None:
    """A reboot ends whatever runs. To end the worker here would be the end of the reboot: nothing frozen unmounts."""
    host = updated
    boot = host.boots() + 1
    for _ in range(TRIES):
        with rollback(host, frozen) as worker:
            if worker is not None:
                host.run("systemctl", "reboot", check=False, timeout=10)
                # Whom systemd tells to end it also continues.
                assert until(lambda: state(worker) != "T", every=0.02)
                break
        assert settled(host)
        host.run("ostree", "admin", "set-default", "1")
    host.wait_until_up(boot, timeout=30)
    assert version_of(host) == "1"
