# SPDX-License-Identifier: Apache-2.0
"""On a host of bootc's composefs backend: its faults without lashd, and that they are gone with it.

bootc is the stand-in of tests/support/bootc_composefs.py, and below it the host boots from ostree: what is finalised is
what really boots next. lashd sees another root, in which there is no sign of ostree and the kernel was told an id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo.host import Host
from tests.host.conftest import HostImages
from tests.host.test_composefs import _UNIT, NOTE, SERVICE
from tests.host.test_keeper import SETTINGS, codes, released, wait_until
from tests.host.test_walk import described, lashctl, states, version_of
from tests.support import installed
from tests.support.bootc_host import digests, publish_without_one, stored
from tests.support.installed import alone, publish
from tests.support.registry import Registry
from tests.support.switching import NEXT, NEXT_REPOSITORY

pytestmark = pytest.mark.host

SUPPORT = Path(installed.__file__).parent

# There is no bootc in the image, and /etc is what every deployment takes over.
_ELSEWHERE = """#!/bin/sh
set -e
cd /run
mkdir -p elsewhere/proc elsewhere/run/systemd upper work
cp /etc/bootc-stand-in/bootc upper/
chmod 755 upper/bootc
mount -t overlay overlay -o lowerdir=/usr/bin,upperdir=upper,workdir=work /usr/bin
for each in usr etc var boot run/systemd; do
    mkdir -p elsewhere/$each
    mount --rbind /$each elsewhere/$each
done
[ ! -d /sysroot/state ] || bootc stand-in-boot >elsewhere/proc/cmdline
"""
_STILL_THERE = "[Unit]\nAfter=usr-bin.mount " + " ".join(
    f"run-elsewhere-{each}.mount" for each in ("usr", "etc", "var", "boot")
)
_FILES = {
    "/etc/elsewhere": _ELSEWHERE,
    "/etc/lashd/lashd.d/test.toml": SETTINGS + '[paths]\nroot = "/run/elsewhere"\n',
    f"/etc/systemd/system/{SERVICE}": _UNIT,
    "/etc/systemd/system/elsewhere.service": """[Unit]
DefaultDependencies=no
RequiresMountsFor=/sysroot /var /boot
Before=basic.target lashd-activate.service lashd-gate.service lashd-hold.service lashd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /etc/elsewhere
""",
    # A real root is there to the end.
    "/etc/systemd/system/lashd-gate.service.d/elsewhere.conf": _STILL_THERE,
    f"/etc/systemd/system/{SERVICE}.d/elsewhere.conf": _STILL_THERE,
    "/etc/bootc-stand-in/bootc": (SUPPORT / "bootc_composefs.py").read_text(),
    "/etc/bootc-stand-in/bootc.py": (SUPPORT / "bootc.py").read_text(),
}


def become_composefs(host: Host) -> None:
    """From now on, and after each reboot."""
    host.run("systemctl", "stop", "lashd.service")
    for path, content in _FILES.items():
        write(host, path, content)
    script = """set -e
        mkdir -p /etc/systemd/system/basic.target.wants
        ln -s ../elsewhere.service /etc/systemd/system/basic.target.wants/
        systemctl daemon-reload
        systemctl start elsewhere.service
        bootc stand-in-install
        bootc stand-in-boot >/run/elsewhere/proc/cmdline
        systemctl start lashd.service
    """
    host.run("sh", "-c", script)


def write(host: Host, path: str, content: str) -> None:
    host.run("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", path, input=content.encode())


def lacks(now: dict[str, Any]) -> bool:
    return bool({"missing", "failed"} & set(codes(now)))


def flag(host: Host) -> bool:
    return bool(json.loads(host.run("cat", NOTE).output)["finalization_locked"])


def test_booted_without_its_images_alone(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """The fault: no bound image is fetched, those of the running system are gone, and the host boots all the same."""
    become_composefs(host)
    alone(host)
    drop_in = f"/run/systemd/system/{SERVICE}.d/z.conf"
    text = "[Service]\nExecStop=\nExecStop=/usr/bin/bootc composefs-finalize-staged\n"
    write(host, drop_in, text)
    host.run("systemctl", "daemon-reload")
    publish(host_registry, host_images.second)
    assert digests(host_images.first) <= stored(host)
    assert "Queued for next boot" in host.run("bootc", "upgrade").output
    assert stored(host) == set()
    host.reboot()
    assert version_of(host) == "2"


def test_held_bound_and_finalised_together(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """With lashd it waits for its images however often it is lost, and boots together with them; and back again."""
    become_composefs(host)
    wait_until(host, lambda now: now["state"] == "idle")
    assert described(host)["host"]["kind"] == "bootc-composefs"
    assert set(states(host, "booted").values()) == {"present"}

    # Somebody else's bootc: what it stages waits, and what its clean-up has taken from the running system comes back.
    publish_without_one(host_registry, host_images.second)
    host.run("bootc", "upgrade")
    wait_until(host, lambda now: now["gate"] == "held" and lacks(now))
    wait_until(host, lambda now: set(states(host, "booted").values()) == {"present"})
    wait_until(host, lambda now: "missing" in states(host, "staged").values())
    assert flag(host)
    lashctl(host, "discard")
    assert described(host)["gate"] != "held"

    # Another image waits for the same.
    host_registry.push(NEXT_REPOSITORY, host_images.second.image, "edge")
    lashctl(host, "switch", NEXT, status=13)
    wait_until(host, lambda now: now["gate"] == "held" and lacks(now))
    assert described(host)["deployments"][0]["image"] == NEXT
    lashctl(host, "discard")

    # lashd's own removes nothing, and what it stages waits as well.
    lashctl(host, "upgrade", status=13)
    wait_until(host, lambda now: now["gate"] == "held" and lacks(now))
    assert set(states(host, "booted").values()) == {"present"}
    assert flag(host)
    host.reboot()
    assert version_of(host) == "1", "not without its last image"

    # What the reboot has lost is staged again by lashd, whose bootc removes nothing.
    wait_until(host, lambda now: now["gate"] == "held" and lacks(now))
    assert set(states(host, "booted").values()) == {"present"}
    publish(host_registry, host_images.second)
    wait_until(host, released)
    assert set(states(host, "staged").values()) == {"present"}
    assert flag(host), "the gate takes it away, when it has looked itself"
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert digests(host_images.second) <= stored(host)
    assert set(states(host, "booted").values()) == {"present"}

    assert lashctl(host, "rollback")
    lashctl(host, "rollback", status=77)
    host.reboot()
    assert version_of(host) == "1"
    assert set(states(host, "booted").values()) == {"present"}
    roles = [row["roles"] for row in described(host)["deployments"]]
    assert roles == [["booted"], ["rollback"]]
