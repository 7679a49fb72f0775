# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test; the parts themselves know nothing of pytest. Loaded by tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lashd.words.config import HostSettings, PathSettings, Settings
from tests.support.faulty import Faulty
from tests.support.host import write_root
from tests.support.registry import Registry


@pytest.fixture
def registry() -> Iterator[Registry]:
    """An empty plain-HTTP registry of the test's own; starts in 30 ms."""
    with Registry() as started:
        yield started


@pytest.fixture
def faulty(registry: Registry) -> Iterator[Faulty]:
    """A proxy in front of `registry` that breaks nothing until it is told to."""
    with Faulty(registry.address) as proxy:
        yield proxy


@pytest.fixture
def host_root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A root whose registries.conf allows plain HTTP to the test's `registry` and `faulty`, if it uses them."""
    used = [request.getfixturevalue(name) for name in ("registry", "faulty") if name in request.fixturenames]
    return write_root(tmp_path / "root", insecure=[each.address for each in used])


@pytest.fixture
def settings(tmp_path: Path, host_root: Path) -> Settings:
    """Settings that keep everything below `tmp_path`, with `host_root` as the running system and a plain sysroot."""
    for name in ("sysroot", "state", "run", "run-ostree"):
        (tmp_path / name).mkdir()
    return Settings(
        host=HostSettings(backend="ostree", sysroot=tmp_path / "sysroot"),
        paths=PathSettings(
            state=tmp_path / "state", run=tmp_path / "run", ostree_run=tmp_path / "run-ostree", root=host_root
        ),
    )


@pytest.fixture
def registries_conf(host_root: Path) -> Path:
    """The registries.conf of `host_root`, for tools that take CONTAINERS_REGISTRIES_CONF."""
    return host_root / "etc/containers/registries.conf"
