# SPDX-License-Identifier: Apache-2.0
"""The gate on a booted host: each fault of tests/faults/gate.py once, and how its units are started."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.faults import gate
from tests.faults.gate import Fault
from tests.faults.world import STAGED_LOCK, World

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """In place of the suite's own check: one host serves all tests here, and some start it anew."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("a throwaway host needs root")
    with World(tmp_path_factory.mktemp("gate"), f"gate{os.getpid()}") as made:
        yield made


@pytest.mark.parametrize("fault", [*gate.FAULTS, *gate.MUTANTS, *gate.COMPLETE], ids=lambda fault: fault.name)
def test_what_comes_up(world: World, fault: Fault) -> None:
    problem = gate.once(world, fault)
    assert not problem, problem


def test_what_is_staged_is_held_without_the_daemon_and_starts_it(world: World) -> None:
    gate.prepare(world, complete=False)
    host = world.host
    host.run(
        "systemd-analyze",
        "verify",
        "--man=no",
        "lashd-gate.service",
        "lashd-hold.path",
        "ostree-finalize-staged.service",
    )
    world.stage()
    world.wait(lambda: host.run("test", "-e", STAGED_LOCK, check=False).status == 0, "a lock is there", 5)
    key = host.run("cat", STAGED_LOCK).output.splitlines()[1]
    assert key.startswith(f"{world.checksum}.")
    # Staged again, the lock file is gone in between; and when nothing is staged any more nothing is held.
    world.stage()
    world.wait(lambda: key not in host.run("cat", STAGED_LOCK).output, "a lock for the new one is there", 5)
    host.run("ostree", "admin", "undeploy", "0")
    time.sleep(1)
    runs = host.run("journalctl", "--boot", "-u", "lashd-hold.service", "--output=cat", "--no-pager").output
    # A few times for each staging, and not again and again.
    assert 1 <= runs.count("Starting lashd-hold") <= 10, runs
    host.run("systemctl", "unmask", "--runtime", "lashd.service")
    assert host.run("systemctl", "is-active", "lashd.service", check=False).output.strip() != "active"
    world.stage()
    world.wait(
        lambda: host.run("systemctl", "is-active", "lashd.service").output.strip() == "active", "lashd is up", 15
    )
