# SPDX-License-Identifier: Apache-2.0
"""lashd.service on a booted host: its sandbox, new settings, its end when nothing is to do, and its watchdog."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable

import pytest

from demo.host import Host
from tests.conftest import REPOSITORY
from tests.host.test_walk import STORE, described

pytestmark = pytest.mark.host

SETTINGS = "/etc/lashd/lashd.d/50-test.toml"
# What skopeo and libostree do, as whoever writes below /sysroot does it.
WRITING = f"""
set -e
mount -o remount,rw /sysroot
mkdir {STORE}/probe
cd {STORE}/probe
mknod null c 1 3
mknod disk b 8 0
mkdir lower upper work merged
mknod upper/whiteout c 0 0
touch program
chown 5:6 program
chmod 6755 program
test -u program
python3 -c 'import os
os.setxattr("program", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
os.setxattr("lower", "trusted.overlay.opaque", b"y")'
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
umount merged
chroot /sysroot/ostree/deploy/*/deploy/*.0 true
grep -q . /proc/1/mountinfo
test -d /home
cd /
rm -r {STORE}/probe
"""
ASK = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/lashd/metrics.sock'); "
    "s.sendall(b'GET /metrics HTTP/1.0\\r\\n\\r\\n'); print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
)
HISTORY = "/var/lib/lashd/history.db"
KEPT = "SELECT max(id) FROM jobs WHERE ended > 0"
QUICK = "[collect]\nafter_boot = false\n[daemon]\nidle_exit_seconds = 0.5\n"


def show(host: Host, name: str, unit: str = "lashd.service") -> str:
    return host.run("systemctl", "show", f"--property={name}", "--value", unit).output.strip()


def wait_for(host: Host, what: Callable[[], bool], why: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not seen: {why}\n{host.journal()}"
        time.sleep(0.05)


def write(host: Host, path: str, text: str) -> None:
    host.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && cat > "$0"', path, input=text.encode())


def problem(host: Host) -> str:
    return " ".join(reason["message"] for reason in described(host)["blockedBy"] if reason["code"] == "settings")


def is_active(host: Host, unit: str = "lashd.service") -> bool:
    return show(host, "ActiveState", unit) == "active"


def touch_store(host: Host) -> None:
    script = f"mount -o remount,rw /sysroot && touch {STORE}/overlay-images/.changed"
    host.run("unshare", "--mount", "sh", "-c", script)


def test_the_unit(host: Host) -> None:
    _sandbox(host)
    _settings(host)
    _idle(host)
    _watchdog(host)
    _anew(host)


def _sandbox(host: Host) -> None:
    pid = show(host, "MainPID")
    status = dict(line.split(":\t", 1) for line in host.run("cat", f"/proc/{pid}/status").output.splitlines())
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert int(status["CapBnd"], 16) < int(host.run("sed", "-n", "s/^CapBnd:\t//p", "/proc/1/status").output, 16)
    for place in ("/etc", "/usr", "/var", "/boot", "/sysroot", "/root"):
        done = host.run("nsenter", f"--mount=/proc/{pid}/ns/mnt", "touch", f"{place}/.lashd-test", check=False)
        assert (done.status, "Read-only" in done.errors) == (1, True), (place, done)
    # What it was given is where it is looked for.
    assert host.run("nsenter", f"--mount=/proc/{pid}/ns/mnt", "touch", "/run/.t", "/var/lib/lashd/.t").status == 0
    # In the very same sandbox.
    host.run("sh", "-c", "cat >/run/writing", input=WRITING.encode())
    dropped = (
        "Type=",
        "BusName=",
        "Exec",
        "Restart",
        "SuccessExit",
        "WatchdogSec=",
        "StartLimit",
        "WantedBy=",
        "[Install]",
    )
    text = (REPOSITORY / "units/lashd.service").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(dropped)]
    lines += ["Type=oneshot", "ExecStart=/usr/bin/unshare --mount --propagation private -- /bin/sh /run/writing"]
    write(host, "/run/systemd/system/lashd-probe.service", "\n".join(lines))
    done = host.run("systemctl", "start", "lashd-probe.service", check=False)
    assert done.status == 0, host.journal()
    # What a soft reboot would bring up is taken down for systemd, and not only for the daemon.
    host.run(
        "sh", "-c", "mkdir -p /run/nextroot && mount -t tmpfs none /run/nextroot && : >/run/ostree/nextroot-booted"
    )
    wait_for(host, lambda: host.run("mountpoint", "-q", "/run/nextroot", check=False).status != 0, "its end")
    assert not host.run("systemd-analyze", "verify", "--man=no", "lashd.service", "lashd-wake.path").errors


def _settings(host: Host) -> None:
    pid = show(host, "MainPID")
    write(host, SETTINGS, "[gate]\npolicy = 'of'\n")
    host.run("systemctl", "reload", "lashd.service")
    assert f"{SETTINGS}, line 2: 'gate.policy'" in problem(host)
    assert "from before stay in force" in problem(host)
    assert "line 2" in show(host, "StatusText")
    # Started with it: it is there all the same, and says so.
    host.run("systemctl", "restart", "lashd.service")
    assert "line 2" in problem(host)
    assert "that lashd comes with are used" in problem(host)
    assert show(host, "MainPID") != pid
    pid = show(host, "MainPID")
    write(host, SETTINGS, "[gate]\npolicy = 'warn'\n")
    host.run("systemctl", "reload", "lashd.service")
    wait_for(host, lambda: described(host)["policy"] == "warn", "the new settings")
    assert problem(host) == ""
    assert (show(host, "MainPID"), show(host, "NRestarts"), show(host, "ActiveState")) == (pid, "0", "active")


def opened(host: Host, pid: str) -> list[str]:
    """What the process has open, by kind."""
    lines = host.run("sh", "-c", f"readlink /proc/{pid}/fd/*").output.split()
    return sorted(re.sub(r"[0-9]+", "N", line) for line in lines)


def _idle(host: Host) -> None:
    write(host, SETTINGS, QUICK)
    host.run("systemctl", "reload", "lashd.service")
    wait_for(host, lambda: show(host, "ActiveState") == "inactive", "the end of a daemon with nothing to do")
    assert (show(host, "Result"), show(host, "ExecMainStatus")) == ("success", "0")
    assert is_active(host, "lashd-wake.path")
    # Whoever calls gets his answer, whenever that is: at rest, or just when it goes.
    starts, end = 0, time.monotonic() + 14
    while time.monotonic() < end:
        before = show(host, "InvocationID")
        host.run("lashctl", "list", "--json")
        starts += show(host, "InvocationID") != before
        time.sleep(0.4 + time.monotonic() % 0.4)
    assert starts, "it was there all the time"
    # What concerns it wakes it.
    wait_for(host, lambda: show(host, "ActiveState") == "inactive", "the end of a daemon with nothing to do")
    # And nothing that it does itself: it would come and go for ever.
    before = show(host, "InvocationID")
    time.sleep(3)
    assert (show(host, "ActiveState"), show(host, "InvocationID")) == ("inactive", before)
    touch_store(host)
    wait_for(host, lambda: is_active(host), "a daemon that was woken")
    # Whoever stops it by hand is not overruled.
    wait_for(host, lambda: not is_active(host, "lashd-wake.path"), "the end of the path unit")
    write(host, SETTINGS, "")
    host.run("systemctl", "stop", "lashd.service")
    touch_store(host)
    time.sleep(1)
    assert show(host, "ActiveState") == "inactive"
    assert described(host)["state"] == "idle"
    # Answers come a moment before systemd has stopped the path unit.
    wait_for(host, lambda: is_active(host), "a daemon that was called")


def _watchdog(host: Host) -> None:
    write(host, "/run/systemd/system/lashd.service.d/quick.conf", "[Service]\nWatchdogSec=1s\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "lashd.service")
    pid = show(host, "MainPID")
    time.sleep(1.8)
    assert show(host, "MainPID") == pid, "it says that it is alive"
    host.run("kill", f"-{signal.SIGSTOP.value}", pid)
    wait_for(host, lambda: show(host, "NRestarts") == "1" and is_active(host), "a restart")
    assert "watchdog" in host.journal(200).lower()
    assert show(host, "MainPID") != pid


def _anew(host: Host) -> None:
    host.run("lashctl", "check", check=False)
    pid = show(host, "MainPID")
    open_before = opened(host, pid)
    write(host, SETTINGS, "[gate]\npolicy = 'warn'\n")
    host.run("systemctl", "reload", "lashd.service")
    wait_for(host, lambda: described(host)["policy"] == "warn", "the new settings")
    assert show(host, "MainPID") == pid
    # Nothing that was open has come along, no signal waits for ever, and all that others connect to is there again.
    assert opened(host, pid) == open_before
    status = dict(line.split(":\t", 1) for line in host.run("cat", f"/proc/{pid}/status").output.splitlines())
    assert int(status["SigBlk"], 16) & 1 << (signal.SIGHUP - 1) == 0
    assert "lashd_gate_policy" in host.run("python3", "-c", ASK).output
    # Jobs go on being written down, in the sandbox too, and are numbered on.
    host.run("lashctl", "check", check=False)
    jobs = json.loads(host.run("lashctl", "history", "--json").output)
    assert [job["kind"] for job in jobs[:2]] == ["check", "check"]
    assert jobs[0]["id"] == jobs[1]["id"] + 1
    kept = host.run(
        "python3", "-c", f"import sqlite3; print(*sqlite3.connect({HISTORY!r}).execute({KEPT!r}).fetchone())"
    )
    assert int(kept.output) == jobs[0]["id"]
