# SPDX-License-Identifier: Apache-2.0
"""One store, several writers: podman and skopeo of the throwaway host's Debian. `make writers` is the long form."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import rootfs
from tests.bench.trixie import Trixie
from tests.bench.writers import write
from tests.support.images import build, random_bytes
from tests.support.registry import Registry

pytestmark = pytest.mark.host

MISMATCH = "database configuration mismatch"


@pytest.fixture
def work() -> Iterator[Path]:
    """On a disk, as a store needs it."""
    if os.geteuid() != 0:
        pytest.skip("a store with owners needs root")
    rootfs.ensure()
    with tempfile.TemporaryDirectory(prefix="writers-", dir=rootfs.CACHE) as folder:
        yield Path(folder)


def test_four_at_once(work: Path) -> None:
    """lashd, podman, bootc's podman and another skopeo; nothing is missing or damaged, for none of the readers."""
    answer = write(work, rounds=5)
    assert answer["wrong"] == []
    # Six images a round; one layer below all, one of each round, one of each image.
    assert (answer["images"], answer["layers"]) == (30, 36)
    assert answer["together"] >= 4
    assert answer["looks"] >= 5
    assert answer["noticed"] == ["lashd", "podman"]


def test_whose_database_it_is(work: Path) -> None:
    """podman's database in the store is of who came first with podman, and shuts out other paths (docs/bootc.md)."""
    trixie = Trixie(work)
    with Registry() as registry:
        registry.push("a/b", build([random_bytes(1000, seed=1)]), "1")
        trixie.trust([registry.address])
        answer = trixie.run("tests.support.databases", {"image": registry.reference("a/b", "1")})
    shut_out = {situation for situation, (status, said) in answer.items() if status == 125 and MISMATCH in said}
    assert shut_out == {
        "bootc first, then podman by the path",
        "bootc first, then podman by the path, pull",
        "podman by the path first, then bootc",
    }
    assert {status for situation, (status, _) in answer.items() if situation not in shut_out} == {0}
