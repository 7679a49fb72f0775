# SPDX-License-Identifier: Apache-2.0
"""Installs a host image on an empty disk, as an installer would: the system, and the images bound to it in its store.

    install(disk, network, "127.0.0.1:5000/os/harbour:stable", ["127.0.0.1:5000/apps/web:1", …])

The system comes in by lashd's own import, for a sysroot that is not booted; the store is filled by plain skopeo, so
that the host starts as one that lashd has not seen before.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from demo.network import Network
from demo.shell import call
from lashd.things.ostree.backend import OstreeBackend
from lashd.words.config import HostSettings, PathSettings, Settings
from lashd.words.model import HostImage
from lashd.words.progress import ignore
from tests.support.host import write_root

STATEROOT = "default"
STORE = "ostree/bootc/storage"


def install(disk: Path, network: Network, reference: str, bound: Sequence[str]) -> None:
    """Install `reference` on the ext4 image `disk` and fetch `bound`; the registry answers inside `network`.

    Works in a process with a mount namespace of its own: whatever happens, no mount stays. Raises Failed.
    """
    argv = ["unshare", "--mount", "--propagation", "private", "--", sys.executable, "-m", "demo.install"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    call(network.enter([*argv, disk, reference, *bound]), env=environment)


def main(disk: Path, reference: str, bound: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="install-", dir=disk.parent) as work:
        sysroot = Path(work, "sysroot")
        sysroot.mkdir()
        call(["mount", "-o", "loop", disk, sysroot])
        try:
            _prepare(sysroot)
            asyncio.run(_deploy(sysroot, reference, Path(work)))
            _fill_store(sysroot, bound, Path(work))
            call(["sync", "--file-system", sysroot])
        finally:
            call(["umount", "--recursive", sysroot])


def _prepare(sysroot: Path) -> None:
    repository = f"--repo={sysroot}/ostree/repo"
    call(["ostree", "admin", "init-fs", "--modern", sysroot])
    call(["ostree", "admin", "os-init", f"--sysroot={sysroot}", STATEROOT])
    for key, value in {"sysroot.bootloader": "none", "sysroot.readonly": "true"}.items():
        call(["ostree", "config", repository, "set", key, value])


async def _deploy(sysroot: Path, reference: str, work: Path) -> None:
    registry = reference.partition("/")[0]
    paths = PathSettings(
        state=work / "state",
        run=work / "run",
        ostree_run=work / "run-ostree",
        root=write_root(work / "root", insecure=[registry]),
    )
    backend = OstreeBackend(
        Settings(host=HostSettings(backend="ostree", sysroot=sysroot, stateroot=STATEROOT), paths=paths)
    )
    image = HostImage(reference)
    fetched = await backend.fetch(image, expected_digest=None, report=ignore)
    await backend.stage(fetched, image)


def _fill_store(sysroot: Path, bound: Sequence[str], work: Path) -> None:
    # The store exists even when nothing is bound: a missing one breaks every podman command that names it.
    (sysroot / STORE).mkdir(parents=True)
    skopeo = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    for reference in bound:
        target = f"containers-storage:[overlay@{sysroot}/{STORE}+{work}/run]{reference}"
        call([*skopeo, f"docker://{reference}", target])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
