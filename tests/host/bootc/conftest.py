# SPDX-License-Identifier: Apache-2.0
"""Hosts that have bootc (the stand-in of tests/support/bootc.py), installed once for all files of this directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.conftest import HostImages, common
from tests.support.bootc_host import first_and_second
from tests.support.installed import shared_disk


@pytest.fixture(scope="session")
def host_images() -> HostImages:
    if os.geteuid() != 0:
        pytest.skip("a throwaway host needs root")
    return HostImages(*first_and_second())


@pytest.fixture(scope="session")
def installed_disk(host_images: HostImages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with shared_disk(common(tmp_path_factory), host_images.first, f"bootc{os.getpid()}") as path:
        yield path
