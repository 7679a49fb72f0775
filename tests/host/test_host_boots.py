# SPDX-License-Identifier: Apache-2.0
"""The throwaway host is a true one: what later tests take for granted about it is so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from demo import cgroups, disk
from demo.host import Host
from demo.images import Version
from demo.network import Network, refuse_machine_namespace
from demo.shell import Failed
from tests.host.conftest import HostImages

pytestmark = pytest.mark.host

_STORE = "/usr/lib/bootc/storage"


def os_version(host: Host) -> str:
    return host.run("sh", "-c", '. /etc/os-release; echo "$VERSION_ID"').output.strip()


def stage_v2(host: Host) -> None:
    """A new deployment, the booted one with another os-release, staged by ostree's own command."""
    script = (
        "set -e; mount -o remount,rw /sysroot; over=$(mktemp -d /var/tmp/over.XXXX); mkdir -p $over/usr/lib; "
        "sed s/VERSION_ID=1/VERSION_ID=2/ /usr/lib/os-release > $over/usr/lib/os-release; "
        "booted=$(ostree admin status | sed -n 's/^* default \\([0-9a-f]*\\).*/\\1/p'); "
        "ostree commit --repo=/ostree/repo --branch=v2 --tree=ref=$booted --tree=dir=$over "
        "--owner-uid=0 --owner-gid=0 --add-metadata-string=version=2"
    )
    host.run("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
    host.run("ostree", "admin", "deploy", "--stage", "v2")
    assert host.run("test", "-e", "/run/ostree/staged-deployment", check=False).status == 0


def test_boots_v1_and_its_applications_from_the_store(host: Host, host_images: HostImages) -> None:
    assert os_version(host) == "1"
    assert host.run("cat", "/proc/1/comm").output == "systemd\n"
    assert host.run("busybox", "wget", "-qO-", "http://127.0.0.1:8080/").output == "Ahoy from web 1\n"
    assert running_image(host, "web") == image_id(host_images.first, "web")
    assert running_image(host, "agent") == image_id(host_images.first, "agent")


def running_image(host: Host, name: str) -> str:
    assert host.run("systemctl", "is-active", f"{name}.service").output == "active\n"
    store = f"--storage-opt=additionalimagestore={_STORE}"
    return host.run("podman", store, "inspect", "--format={{.Image}}", name).output.strip()


def image_id(version: Version, name: str) -> str:
    return next(each.app.image.image_id for each in version.bindings if each.app.name == name)


@pytest.mark.parametrize("path", ["/usr/x", "/sysroot/x", f"{_STORE}/x", "/ostree/repo/x", "/proc/sys/x"])
def test_what_is_read_only_on_a_host_is_read_only(booted: Host, path: str) -> None:
    refused = booted.run("touch", path, check=False)
    assert refused.status != 0
    assert "Read-only file system" in refused.errors or path.startswith("/proc")


def test_the_store_is_writable_in_a_private_mount_namespace_only(booted: Host) -> None:
    line = f"mount -o remount,rw /sysroot && touch {_STORE}/x && rm {_STORE}/x"
    booted.run("unshare", "--mount", "--propagation", "private", "sh", "-c", line)
    assert booted.run("touch", f"{_STORE}/x", check=False).status != 0


def test_the_machine_is_out_of_reach(booted: Host) -> None:
    assert booted.run("ip", "-brief", "link").output.split()[:2] == ["lo", "UNKNOWN"]
    assert len(booted.run("ip", "-brief", "link").output.splitlines()) == 1
    for knob in ("kernel/hostname", "vm/swappiness"):
        assert booted.run("sh", "-c", f"echo 1 > /proc/sys/{knob}", check=False).status != 0


def test_a_staged_deployment_is_booted_next(host: Host) -> None:
    stage_v2(host)
    assert os_version(host) == "1"
    host.reboot()
    assert os_version(host) == "2"
    journal = host.run("journalctl", "--boot=-1", "--unit=ostree-finalize-staged.service").output
    assert "Finalizing staged deployment" in journal or "Transaction complete" in journal


def test_a_locked_deployment_is_not_finalised(host: Host) -> None:
    stage_v2(host)
    host.run("touch", "/run/ostree/staged-deployment-locked")
    host.reboot()
    assert os_version(host) == "1"
    journal = host.run("journalctl", "--boot=-1", "--unit=lashd-gate.service").output
    assert "held: " in journal
    assert "Somebody else than lashd has locked" in journal


def test_kill_loses_what_is_staged_and_keeps_what_was_written(host: Host) -> None:
    stage_v2(host)
    host.run("sh", "-c", "echo kept > /var/written")
    host.kill()
    host.start()
    assert os_version(host) == "1"
    assert host.run("cat", "/var/written").output == "kept\n"


def test_power_cut_loses_what_was_not_synced(host: Host) -> None:
    # lashd cleans up after the first boot of a system, and syncs the whole disk then.
    host.run("systemctl", "stop", "lashd.service")
    host.run("sh", "-c", "echo kept > /var/synced; sync -f /var; echo lost > /var/not-synced")
    host.power_cut()
    assert not host.is_on()
    host.start()
    assert host.run("cat", "/var/synced").output == "kept\n"
    assert host.run("cat", "/var/not-synced", check=False).output == ""


def test_stop_leaves_nothing(new_host: Callable[[], Host]) -> None:
    host = new_host()
    host.start()
    leader = host.leader()
    host.run("sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
    host.stop()
    assert not Path(f"/proc/{leader}").exists()
    assert disk.loops(host.disk) == []
    assert not host.network.path.exists()
    assert not (cgroups.mount_point() / f"lashd-{host.name}").exists()
    assert str(host.directory) not in Path("/proc/self/mounts").read_text()
    host.stop()  # a second time is no error


def test_two_hosts_at_once(new_host: Callable[[], Host]) -> None:
    one, two = new_host(), new_host()
    one.start(wait=False)
    two.start(wait=False)
    one.wait_until_up(1)
    two.wait_until_up(1)
    one.kill()
    assert os_version(two) == "1"


def test_a_host_that_does_not_boot_says_why(new_host: Callable[[], Host]) -> None:
    host = new_host()
    disk.create(host.disk)
    with pytest.raises(Failed, match="nothing to boot on this disk"):
        host.start()
    assert not host.is_on()


def test_refuses_the_machines_own_network(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="machine's own"):
        refuse_machine_namespace(Path("/proc/self/ns/net"))
    host = Host("no-network", tmp_path)
    host.network = Network("no-network")
    host.network.path = Path("/proc/self/ns/net")
    disk.create(host.disk)
    with pytest.raises(Failed, match="refusing: this is the machine's own network namespace"):
        host.start()
