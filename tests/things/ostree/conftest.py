# SPDX-License-Identifier: Apache-2.0
"""A real sysroot in a directory, made by ostree itself, and images that lie in an OCI layout beside it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lashd.things.ostree.backend import OstreeBackend
from lashd.things.proxy import ImageProxy
from lashd.words.config import Settings, settings_from
from lashd.words.model import HostImage
from tests.support.host import write_root

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="writes an ostree repository with owners: root only")


class RecordingProxy(ImageProxy):
    """skopeo's proxy, which also notes the blobs that were asked for."""

    fetched: ClassVar[list[str]] = []

    @asynccontextmanager
    async def blob(self, image: Any, digest: str, size: int) -> AsyncIterator[int]:
        self.fetched.append(digest)
        async with super().blob(image, digest, size) as descriptor:
            yield descriptor


@dataclass
class Host:
    settings: Settings
    layout: Path
    backend: OstreeBackend

    @property
    def sysroot(self) -> Path:
        return self.settings.host.sysroot

    @property
    def fetched(self) -> list[str]:
        return RecordingProxy.fetched

    def image(self, tag: str) -> HostImage:
        return HostImage(f"{self.layout}:{tag}", "oci", "ostree-unverified-image")

    def ostree(self, *argv: str) -> str:
        repository = f"--repo={self.sysroot}/ostree/repo"
        done = subprocess.run(["ostree", argv[0], repository, *argv[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def admin(self, *argv: str) -> str:
        done = subprocess.run(["ostree", "admin", f"--sysroot={self.sysroot}", *argv], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


def make_host(base: Path) -> Host:
    sysroot = base / "sysroot"
    sysroot.mkdir()
    subprocess.run(["ostree", "admin", "init-fs", "--modern", sysroot], check=True, capture_output=True)
    subprocess.run(
        ["ostree", "config", f"--repo={sysroot}/ostree/repo", "set", "sysroot.bootloader", "none"], check=True
    )
    (base / "run/ostree").mkdir(parents=True)
    root = write_root(base / "root")
    settings = settings_from(
        {
            "host": {"sysroot": sysroot},
            "paths": {
                "state": base / "state",
                "run": base / "run/lashd",
                "ostree_run": base / "run/ostree",
                "root": root,
            },
            "pull": {"backoff_seconds": 0.01, "reserve_bytes": 0, "attempts": 3, "stall_seconds": 5},
        }
    )
    RecordingProxy.fetched.clear()
    return Host(settings, base / "layout", OstreeBackend(settings, lambda: RecordingProxy(settings)))


def clean(base: Path) -> None:
    for deployment in base.glob("sysroot/ostree/deploy/*/deploy/*.[0-9]*"):
        if deployment.is_dir():
            subprocess.run(["chattr", "-i", deployment], check=False, capture_output=True)
    subprocess.run(["chattr", "-i", base / "sysroot"], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", base / "sysroot"], check=True)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    yield make_host(tmp_path)
    clean(tmp_path)


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """For tests that only fetch: images do not disturb each other."""
    base = tmp_path_factory.mktemp("shared")
    yield make_host(base)
    clean(base)
