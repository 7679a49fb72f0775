# SPDX-License-Identifier: Apache-2.0
"""The gate in front of bootc's composefs backend, where the daemon cannot run.

A booted host takes itself for such a one, and lacks what it would take to manage it. bootc is a stand-in here: its unit
has upstream's directives, and its command says in /var that it has finalised, unless the flag in its note is set.
"""

from __future__ import annotations

import json
import time

import pytest

from demo.host import Host

pytestmark = pytest.mark.host

ID = "a1" * 64
NOTE = "/run/composefs/staged-deployment"
SERVICE = "bootc-finalize-staged.service"
FINALISED = "/var/lib/finalised"
_BOOTC = f"""#!/bin/sh
[ "$*" = composefs-finalize-staged ] && [ -e {NOTE} ] || exit 0
grep -q '"finalization_locked":false' {NOTE} && echo yes >>{FINALISED}
exit 0
"""
_UNIT = """[Unit]
Description=Composefs Finalize Staged Deployment
DefaultDependencies=no
RequiresMountsFor=/sysroot /boot
After=local-fs.target
Before=basic.target final.target
After=systemd-journal-flush.service
Conflicts=final.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStop=/usr/bin/bootc composefs-finalize-staged
TimeoutStopSec=5m
ProtectHome=yes
ReadOnlyPaths=/etc
"""


def become_composefs(host: Host) -> None:
    """Until the next boot. lashd does not see that it was booted from ostree, and there is a bootc."""
    script = r"""set -e
        systemctl stop lashd.service
        mkdir -p /run/upper /run/work /run/lashd/lashd.d
        printf '[paths]\nroot = "/run/elsewhere"\n' >/run/lashd/lashd.d/90-test.toml
        mount -t overlay overlay -o lowerdir=/usr/bin,upperdir=/run/upper,workdir=/run/work /usr/bin
        cat >/usr/bin/bootc
        chmod 755 /usr/bin/bootc
    """
    host.run("sh", "-c", script, input=_BOOTC.encode())
    host.run("sh", "-c", f"cat >/run/systemd/system/{SERVICE} && systemctl daemon-reload", input=_UNIT.encode())
    host.run("systemctl", "stop", "lashd-gate.service")


def stage(host: Host, *, locked: bool = False) -> None:
    """As bootc does: the service first, the note last."""
    note = json.dumps({"depl_id": ID, "finalization_locked": locked}, separators=(",", ":"))
    script = f"""set -e
        systemctl start {SERVICE}
        mkdir -p /run/composefs
        printf '%s' '{note}' >/run/composefs/new
        mv /run/composefs/new {NOTE}
    """
    host.run("sh", "-c", script)


def held(host: Host) -> bool:
    return bool(json.loads(host.run("cat", NOTE).output)["finalization_locked"])


def finalised(host: Host) -> bool:
    """Whether it was, in the boot before."""
    return host.run("cat", FINALISED, check=False).output == "yes\n"


def last_verdict(host: Host) -> tuple[str, str, list[str]]:
    found = json.loads(host.run("cat", "/var/lib/lashd/last-shutdown.json").output)
    return found["result"], found["deployment"], [code for code, _ in found["reasons"]]


def test_held_until_an_operator_lets_it_through(host: Host) -> None:
    units = ("lashd-gate.service", "lashd-hold.path", "lashd-hold.service", SERVICE)
    # Where there is no bootc, its drop-in makes no unit.
    state = host.run("systemctl", "show", "--property=LoadState", "--value", SERVICE).output.strip()
    assert state == "not-found"

    become_composefs(host)
    host.run("systemd-analyze", "verify", "--man=no", *units)
    stage(host)
    # Without the daemon, and with a gate that nobody has started.
    deadline = time.monotonic() + 5
    while not held(host):
        assert time.monotonic() < deadline, host.journal(60)
        time.sleep(0.05)
    assert host.run("systemctl", "is-active", "lashd-gate.service").output == "active\n"
    shown = host.run("lashctl", "status", check=False)
    assert shown.status == 6, shown.output
    assert f"Staged is {ID}, held by lashd." in shown.output + host.run("cat", "/run/lashd/unsupported").output
    started = host.run("systemctl", "show", "--property=NRestarts", "--value", "lashd.service").output.strip()
    assert started == "0"
    host.reboot()
    assert not finalised(host)
    assert last_verdict(host) == ("held", f"{ID}.0", ["unread"])

    become_composefs(host)
    stage(host)
    host.run("/usr/lib/lashd/gate", "release", ID, "it binds nothing")
    # A gate outside of a shutdown lets nothing through.
    host.run("systemctl", "stop", "lashd-gate.service")
    assert held(host)
    host.run("systemctl", "start", "lashd-gate.service")
    host.reboot()
    assert finalised(host), host.run("journalctl", "--boot=-1", "-n", "80", "--no-pager").output
    assert last_verdict(host) == ("released", f"{ID}.0", ["unread", "ordered"])
    host.run("rm", FINALISED)

    # The order is spent. Nobody holds, and the gate is masked: the check is what is left.
    become_composefs(host)
    host.run("systemctl", "stop", "lashd-hold.path", "lashd-hold.service")
    host.run("systemctl", "mask", "--runtime", "lashd-gate.service")
    stage(host)
    assert not held(host)
    host.reboot()
    assert not finalised(host)
