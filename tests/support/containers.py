# SPDX-License-Identifier: Apache-2.0
"""Real containers, by the machine's own podman, that run from a bound image store.

image = sleeper("one")
with Podman(store, tmp_path) as podman:
    podman("run", "--detach", "--name=web", *LIMITS, "quay.io/edge/web:1")
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from lashd.things.store import Store
from tests.support.images import Content, Image, LayerBlob, Program, build, files

# What this machine allows: no limits can be raised, and there is no network to set up.
LIMITS = ("--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


@functools.cache
def _program() -> LayerBlob:
    """`sleep` with the libraries it needs."""
    sleep = shutil.which("sleep") or "/usr/bin/sleep"
    said = subprocess.run(["ldd", sleep], check=True, capture_output=True, text=True).stdout
    tree: dict[str, Content] = dict.fromkeys(("dev", "etc", "proc", "run", "sys", "tmp"))
    for path in ("/usr/bin/sleep", *re.findall(r"(/\S+) \(0x", said)):
        tree[path.lstrip("/")] = Program(Path(path if path != "/usr/bin/sleep" else sleep).read_bytes())
    return files(tree)


def sleeper(version: str) -> Image:
    """An image whose containers run until they are stopped; all share their lowest layer."""
    return build([_program(), {"version": version.encode()}], cmd=["/usr/bin/sleep", "600"])


class Podman:
    """podman with a primary store of its own, as a host's `root` has one, and `store` as an additional one."""

    def __init__(self, store: Store) -> None:
        # podman takes no run root of more than 50 characters.
        self.root = Path(tempfile.mkdtemp(prefix="lashd-podman-"))
        self.graph = self.root / "var/lib/containers/storage"
        self._store = store

    def __enter__(self) -> Self:
        """The root's storage.conf names both stores."""
        (self.root / "etc/containers").mkdir(parents=True)
        self.configure(f'[storage]\ngraphroot = "{self.seen(self.graph)}"\nrunroot = "/run/c"\n')
        return self

    def seen(self, path: Path) -> str:
        """`path` as an absolute path on the system below `root`."""
        return "/" + str(path.relative_to(self.root))

    def configure(self, text: str) -> None:
        (self.root / "etc/containers/storage.conf").write_text(text)

    def __call__(self, *argv: str, check: bool = True) -> str:
        command = ["podman", "--root", str(self.graph), "--runroot", str(self.root / "run/c")]
        command += ["--runtime=runc", "--cgroup-manager=cgroupfs", "--storage-opt"]
        command += [f"additionalimagestore={self._store.root}"]
        done = subprocess.run([*command, *argv], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait_until_gone(self, name: str) -> None:
        """With --rm a container is removed a moment after it has stopped, by a process of its own."""
        deadline = time.monotonic() + 20
        while name in self("ps", "--all", "--format={{.Names}}").split():
            assert time.monotonic() < deadline, f"the container {name} is still there"
            time.sleep(0.1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self("rm", "--all", "--force", "--time=0", check=False)
        # podman's own cleaning process may still be at work, and mount and write once more.
        for _ in range(50):
            subprocess.run(["umount", "--recursive", self.graph / "overlay"], capture_output=True, check=False)
            shutil.rmtree(self.root, ignore_errors=True)
            if not self.root.exists():
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.root} cannot be removed")
