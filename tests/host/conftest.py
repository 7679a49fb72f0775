# SPDX-License-Identifier: Apache-2.0
"""Booted hosts for tests: v1 is installed once for the whole session, and each test gets a copy of that disk."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo import disk, images
from demo.host import Host
from demo.images import Version
from tests.support.installed import publish, shared_disk
from tests.support.registry import Registry

_numbers = itertools.count()


@dataclass(frozen=True)
class HostImages:
    """The demo's two host images; lashd in them is the checkout's."""

    first: Version
    second: Version


def _name() -> str:
    return f"t{os.getpid()}-{next(_numbers)}"


def common(factory: pytest.TempPathFactory) -> Path:
    """A directory that the processes of one test run have in common."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def host_images() -> HostImages:
    if os.geteuid() != 0:
        pytest.skip("a throwaway host needs root")
    layers = images.common_layers()
    return HostImages(images.first(layers), images.second(layers))


@pytest.fixture(scope="session")
def installed_disk(host_images: HostImages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk with v1 installed and its bound images fetched; to be copied, never booted."""
    with shared_disk(common(tmp_path_factory), host_images.first, _name()) as path:
        yield path


@pytest.fixture
def new_host(installed_disk: Path, tmp_path: Path) -> Iterator[Callable[[], Host]]:
    """Makes hosts with v1 on their disks, switched off; all of them are gone after the test."""
    hosts: list[Host] = []

    def make() -> Host:
        name = _name()
        directory = tmp_path / name
        directory.mkdir()
        disk.copy(installed_disk, directory / "disk.img")
        hosts.append(Host(name, directory).__enter__())
        return hosts[-1]

    try:
        yield make
    finally:
        for host in hosts:
            host.stop()
            host.disk.unlink()


@pytest.fixture
def host(new_host: Callable[[], Host]) -> Host:
    """A host that has booted v1."""
    made = new_host()
    made.start()
    return made


@pytest.fixture(scope="module")
def booted(installed_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host on v1 for those tests of a module that do not reboot it."""
    directory = tmp_path_factory.mktemp("booted")
    disk.copy(installed_disk, directory / "disk.img")
    with Host(_name(), directory) as made:
        made.start()
        yield made


@pytest.fixture
def host_registry(host: Host, host_images: HostImages, tmp_path: Path) -> Iterator[Registry]:
    """A registry that only `host` can reach, under the address its images name, holding v1 and what it binds."""
    with Registry(netns=host.network.path, port=images.REGISTRY_PORT, storage=tmp_path / "registry") as registry:
        publish(registry, host_images.first)
        yield registry
