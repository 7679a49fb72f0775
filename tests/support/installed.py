# SPDX-License-Identifier: Apache-2.0
"""Disks on which a host is installed, the stand-in for bootc to put on them, and lashd to take away from them."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from demo import disk, images
from demo.host import Host
from demo.images import Version
from demo.install import install
from demo.network import Network
from tests.support.images import Program
from tests.support.registry import Registry

STAND_IN = Program(Path(__file__).with_name("bootc.py").read_bytes())


def publish(registry: Registry, version: Version) -> None:
    """Push a host image under its floating tag, and everything it binds."""
    for binding in version.bindings:
        registry.push(binding.app.repository, binding.app.image, binding.tag)
    registry.push(images.HOST_REPOSITORY, version.image, images.HOST_TAG)


def install_disk(path: Path, version: Version, name: str) -> None:
    """Make `path` a disk with `version` installed and its bound images fetched; `name` must be free on the machine."""
    network = Network(name)
    network.create()
    try:
        with Registry(netns=network.path, port=images.REGISTRY_PORT) as registry:
            publish(registry, version)
            disk.create(path)
            install(path, network, images.HOST_REFERENCE, [binding.reference for binding in version.bindings])
    finally:
        network.delete()


@contextlib.contextmanager
def shared_disk(directory: Path, version: Version, name: str) -> Iterator[Path]:
    """A disk with `version` installed, for all processes that ask for it in `directory` at about one time.

    The first makes it, the last removes it. To be copied, never booted.
    """
    path = directory / f"{version.image.digest.removeprefix('sha256:')[:16]}.img"
    with open(path.with_suffix(".lock"), "w") as lock:
        # Whoever uses it shares the lock. Between two locks the last of them may remove it.
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not path.exists():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                partial = path.with_suffix(".new")
                install_disk(partial, version, name)
                partial.rename(path)
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield path
        finally:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def alone(host: Host) -> None:
    """Take lashd away, as if it had never been on this host, until the next boot."""
    host.run("sh", "-c", "systemctl stop lashd.service lashd-hold.path; systemctl mask --runtime lashd.service")
    place = "/run/systemd/system/$1.d"
    script = f"mkdir -p {place} && printf '[Service]\\nExecStop=\\n%s\\n' \"$2\" > {place}/z.conf"
    host.run("sh", "-c", script, "sh", "lashd-gate.service", "")
    finalize = "ExecStop=/usr/bin/ostree admin finalize-staged"
    host.run("sh", "-c", script, "sh", "ostree-finalize-staged.service", finalize)
    host.run("systemctl", "daemon-reload")
