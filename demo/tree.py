# SPDX-License-Identifier: Apache-2.0
"""The base tree of the host images: the Debian root filesystem, laid out as an ostree host wants it.

The same directory plays the initramfs when a host boots (its own ostree-prepare-root assembles the root).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
from pathlib import Path

from demo import rootfs
from demo.shell import Failed, call
from tests.support.images import LayerBlob

KERNEL_VERSION = "0-throwaway"
STORE_LINK = "usr/lib/bootc/storage"

# What a state-carrying directory of the root becomes: a link into /var, made there at boot by systemd-tmpfiles.
_STATE_LINKS = {
    "home": "var/home",
    "root": "var/roothome",
    "srv": "var/srv",
    "opt": "var/opt",
    "mnt": "var/mnt",
    "media": "run/media",
    "usr/local": "../var/usrlocal",
}
_TMPFILES = """\
d /var/home 0755 root root -
d /var/roothome 0700 root root -
d /var/srv 0755 root root -
d /var/opt 0755 root root -
d /var/mnt 0755 root root -
d /var/usrlocal 0755 root root -
d /var/tmp 1777 root root -
d /var/lib 0755 root root -
d /var/cache 0755 root root -
d /var/log 0755 root root -
"""
# Of no use without a machine of its own, or reaching for the one below (debugfs, hugepages); networkd would take an
# address and a route away if it ever got the chance.
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "podman-auto-update.timer",
    "console-getty.service",
    "getty.target",
    "netavark-dhcp-proxy.socket",
    "netavark-dhcp-proxy.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-networkd-wait-online.service",
    "systemd-modules-load.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "modprobe@.service",
    "dev-hugepages.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
    "proc-sys-fs-binfmt_misc.automount",
)
# podman in this kind of host: no session keyring, no cgroup controllers, no events worth keeping.
_CONTAINERS_CONF = """\
[containers]
keyring = false
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""
_FILES = {
    # Replaces Debian's own, which would make the directories that are links here.
    "usr/lib/tmpfiles.d/home.conf": "",
    "usr/lib/tmpfiles.d/provision.conf": "",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/machine-id": "",
    "etc/fstab": "",
    # Else the first boot's journal would stay in /run: its directory is made only after the flush.
    "usr/lib/systemd/journald.conf.d/50-throwaway.conf": "[Journal]\nStorage=persistent\n",
    "etc/containers/containers.conf.d/50-throwaway.conf": _CONTAINERS_CONF,
    "usr/lib/tmpfiles.d/throwaway.conf": _TMPFILES,
    "usr/lib/ostree/prepare-root.conf": "[sysroot]\nreadonly=true\n",
    # Nothing boots it, but ostree wants a deployment to have one.
    f"usr/lib/modules/{KERNEL_VERSION}/vmlinuz": "no kernel\n",
    f"usr/lib/modules/{KERNEL_VERSION}/initramfs.img": "no initramfs\n",
}


def ensure() -> Path:
    """Returns the tree, made first when it is missing (some seconds more than the root filesystem). Read-only."""
    root = rootfs.ensure()
    with rootfs.locked("tree"):
        tree = _cached("tree")
        if not tree.is_dir():
            half = tree.with_name(tree.name + ".half")
            if half.exists():
                shutil.rmtree(half)
            call(["cp", "-a", "--reflink=auto", root, half])
            shape(half)
            half.rename(tree)
        return tree


def base_layer() -> LayerBlob:
    """The tree as one layer, compressed once and kept; about 330 MB as a tar stream."""
    tree = ensure()
    blob, facts = _cached("base", ".tar.zst"), _cached("base", ".json")
    with rootfs.locked("base"):
        if not facts.is_file():
            _pack(tree, blob, facts)
    known = json.loads(facts.read_text())
    return LayerBlob(blob.read_bytes(), known["diff_id"], "zstd", known["size"])


def shape(tree: Path) -> None:
    """Turn a plain root filesystem into the tree, in place."""
    # The package database is part of the system, not of its state.
    (tree / "var/lib/dpkg").rename(tree / "usr/share/dpkg-db")
    for name in ("var", "tmp", "dev", "proc", "sys", "run", "boot", "usr/lib/modules", *_STATE_LINKS):
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in ("var", "tmp", "dev", "proc", "sys", "run", "boot", "sysroot"):
        (tree / name).mkdir()
    (tree / "tmp").chmod(0o1777)
    for name, target in _STATE_LINKS.items():
        (tree / name).symlink_to(target)
    (tree / "ostree").symlink_to("sysroot/ostree")
    (tree / STORE_LINK).parent.mkdir(parents=True)
    (tree / STORE_LINK).symlink_to("/sysroot/ostree/bootc/storage")
    # The machine that builds left its own here; the guest's name comes with its boot.
    for name in ("etc/resolv.conf", "etc/hostname"):
        (tree / name).unlink(missing_ok=True)
    for unit in _MASKED:
        path = tree / "usr/lib/systemd/system" / unit
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")
    for name, content in _FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    _date_bytecode(tree)


def _date_bytecode(tree: Path) -> None:
    """Say in every .pyc that its source is from 1970, as every file in an ostree deployment is.

    Otherwise Python would find each of them out of date and compile the source again at every start.
    """
    for path in tree.glob("usr/lib/python3*/**/*.pyc"):
        with path.open("r+b") as file:
            head = file.read(16)
            if struct.unpack("<I", head[4:8])[0] == 0:  # checked by time, not by hash
                file.seek(8)
                file.write(bytes(4))


def _pack(tree: Path, blob: Path, facts: Path) -> None:
    partial = blob.with_name(blob.name + ".half")
    argv = ["tar", "--create", f"--directory={tree}", "--sort=name", "--mtime=@0", "--numeric-owner", "--format=pax"]
    argv += ["--pax-option=delete=atime,delete=ctime", "--xattrs", "--xattrs-include=security.capability", "."]
    digest, size = hashlib.sha256(), 0
    with (
        partial.open("wb") as output,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as tar,
        subprocess.Popen(["zstd", "--quiet", "-3"], stdin=subprocess.PIPE, stdout=output) as zstd,
    ):
        assert tar.stdout is not None
        assert zstd.stdin is not None
        while chunk := tar.stdout.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
            zstd.stdin.write(chunk)
        zstd.stdin.close()
    if tar.returncode or zstd.returncode:
        raise Failed(f"the base layer could not be packed: tar {tar.returncode}, zstd {zstd.returncode}")
    partial.rename(blob)
    facts.write_text(json.dumps({"diff_id": f"sha256:{digest.hexdigest()}", "size": size}))


def _cached(what: str, suffix: str = "") -> Path:
    recipe = json.dumps([_STATE_LINKS, _MASKED, _FILES]) + Path(__file__).read_text()
    return rootfs.CACHE / f"{what}-{rootfs.key()}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}{suffix}"
