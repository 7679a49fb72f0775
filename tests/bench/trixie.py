# SPDX-License-Identifier: Apache-2.0
"""Runs a program inside the throwaway host's Debian (its podman, skopeo and Python), in a private mount namespace.

The root is an overlay over the cached root filesystem, so nothing is left in that; `data` is /mnt inside, on a real
filesystem as a store needs it; the checkout is /srv, read-only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from demo import rootfs

REPOSITORY = Path(__file__).resolve().parents[2]

_ENTER = """set -e
root=$1 work=$2 repository=$3; shift 3
mount -t tmpfs tmpfs "$work/top"
mkdir "$work/top/upper" "$work/top/work"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/top/upper,workdir=$work/top/work" "$work/root"
mount --bind "$work/data" "$work/root/mnt"
mount --bind -o ro "$repository" "$work/root/srv"
mount --rbind /proc "$work/root/proc"
mount --rbind /sys "$work/root/sys"
mount --rbind /dev "$work/root/dev"
mount -t tmpfs tmpfs "$work/root/run"
cp "$work/registries.conf" "$work/root/etc/containers/registries.conf.d/bench.conf"
exec chroot "$work/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
  PYTHONPATH=/srv/daemon:/srv PYTHONDONTWRITEBYTECODE=1 "$@"
"""


class Trixie:
    """A work folder with `data/` (seen as /mnt inside); `insecure` are the host:port of registries without TLS."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.data = work / "data"
        for name in ("data", "root", "top"):
            (work / name).mkdir(parents=True, exist_ok=True)

    def trust(self, addresses: list[str]) -> None:
        (self.work / "registries.conf").write_text(
            "".join(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n' for address in addresses)
        )

    def fresh(self) -> None:
        """Cold stores: nothing of an earlier run is left."""
        shutil.rmtree(self.data)
        self.data.mkdir()

    def run(self, module: str, request: dict[str, Any], *, timeout: float = 300) -> dict[str, Any]:
        """Run `python3 -m module` inside with `request` as JSON on standard input; its answer is JSON as well."""
        argv = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _ENTER, "enter"]
        argv += [str(rootfs.ensure()), str(self.work), str(REPOSITORY), "python3", "-m", module]
        ended = subprocess.run(
            argv, input=json.dumps(request), capture_output=True, text=True, timeout=timeout, check=False
        )
        if ended.returncode != 0:
            raise RuntimeError(f"{module} failed inside: {ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
        answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return answer
