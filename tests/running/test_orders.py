# SPDX-License-Identifier: Apache-2.0
"""What an operator's word leaves behind: an order to hold, one to let through, or none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest

from lashd.running.blocked import Situation, reasons
from lashd.running.jobs import Initiator
from lashd.running.orders import Orders
from lashd.running.service import Service
from lashd.steps.shutdowns import Shutdowns
from lashd.things.host import HostBackend
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Order, Role
from tests.running.test_service import SCHEMA
from tests.running.test_walk import StagingBackend
from tests.support.told import told

DIGEST = "sha256:" + "d" * 64
STAGED = Deployment(
    *("os", "e" * 64, 0, Path("/nowhere"), frozenset({Role.STAGED})), digest=DIGEST, version="2", locked=True
)
ANN, BEN = Initiator(1000), Initiator(1001)


class Backend:
    def __init__(self) -> None:
        self.did: list[str] = []
        self.fails = False

    async def hold(self, staged: Deployment) -> None:
        self.did.append("hold")

    async def release(self, staged: Deployment) -> None:
        if self.fails:
            raise LashdError(ErrorName.SYSROOT_LOCKED)
        self.did.append("release")


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def shutdowns(tmp_path: Path) -> Shutdowns:
    return Shutdowns(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def orders(backend: Backend, shutdowns: Shutdowns) -> Orders:
    return Orders(cast(HostBackend, backend), shutdowns)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("complete", [True, False])
async def test_only_what_is_incomplete_is_let_through_by_order(
    orders: Orders,
    backend: Backend,
    shutdowns: Shutdowns,
    caplog: pytest.LogCaptureFixture,
    *,
    held: bool,
    complete: bool,
) -> None:
    """To take back one's own hold does not switch the gate off for what happens later."""
    if held:
        await orders.hold(STAGED, ANN, "freeze")
    await orders.release(STAGED, BEN, "now", complete=complete)
    assert backend.did[-1] == "release"
    order = shutdowns.order()
    if complete:
        assert order is None
    else:
        assert order is not None
        assert (order.hold, order.uid, order.reason) == (False, 1001, "now")
    entries = [(entry["NAME"], entry["LASHD_UID"], entry["LASHD_DEPLOYMENT"]) for entry in told(caplog)]
    assert entries[-1] == ("RELEASED" if complete else "FORCED", "1001", STAGED.key)
    assert entries[:-1] == [("HELD", "1000", STAGED.key)] * held


async def test_a_release_that_fails_leaves_the_order_before(
    orders: Orders, backend: Backend, shutdowns: Shutdowns
) -> None:
    await orders.hold(STAGED, ANN, "freeze")
    before, backend.fails = shutdowns.order(), True
    for complete in (True, False):
        with pytest.raises(LashdError):
            await orders.release(STAGED, BEN, "now", complete=complete)
        assert shutdowns.order() == before


async def test_a_hold_said_again_keeps_its_reason(orders: Orders, shutdowns: Shutdowns) -> None:
    for said, kept in (("", ""), ("freeze", "freeze"), ("", "freeze"), ("other", "other")):
        await orders.hold(STAGED, ANN, said)
        order = shutdowns.order()
        assert order is not None
        assert order.reason == kept
    await orders.release(STAGED, ANN, "broken", complete=False)
    await orders.hold(STAGED, ANN, "")
    assert shutdowns.order().reason == ""  # type: ignore[union-attr]


async def test_what_is_said_of_a_hold(orders: Orders, shutdowns: Shutdowns) -> None:
    await orders.hold(STAGED, ANN, "not before Monday.")
    ((code, sentence), *_) = reasons(Situation(staged=STAGED, order=shutdowns.order()))
    assert code == "order-hold"
    assert "held back: not before Monday. " in sentence
    assert f"'lashctl release {DIGEST}'" in sentence


def service(settings: Settings, policy: Any, **staged: Any) -> tuple[Service, Deployment]:
    """With a staged deployment beside the booted one, of the same content, and locked by nobody but the first hold."""
    backend = StagingBackend(replace(settings, gate=replace(settings.gate, policy=policy)))
    (booted,) = backend.deployments()
    new = replace(booted, serial=9, roles=frozenset({Role.STAGED}), **{"locked": True} | staged)
    backend.deployments = lambda: (new, booted)  # type: ignore[method-assign]
    return Service(replace(settings, gate=replace(settings.gate, policy=policy)), backend), new


GONE = {"root": Path("/nowhere")}


@pytest.mark.parametrize(
    ("policy", "staged", "hold", "gate", "lacks", "ready"),
    [
        ("hold", {}, False, "held", 0, False),
        ("hold", GONE, False, "held", 0, False),
        ("warn", GONE, False, "open", 1, False),
        ("warn", {}, False, "open", 0, False),
        ("warn", GONE, True, "held", 0, False),
        ("warn", {"foreign_lock": True}, False, "held", 0, False),
        ("off", GONE, False, "open", 0, True),
        ("off", {}, True, "held", 0, False),
        ("off", {"foreign_lock": True}, False, "held", 0, False),
        ("hold", {"locked": False, "declared": True, **GONE}, False, "released", 1, True),
    ],
)
async def test_what_the_gate_will_do_is_what_is_shown(
    nothing_bound: Settings, policy: str, staged: dict[str, Any], hold: bool, gate: str, lacks: int, ready: bool
) -> None:
    running, new = service(nothing_bound, policy, **staged)
    order = Order(new.key, new.digest or "", True, 0, "freeze", 1) if hold else None
    Shutdowns(nothing_bound.paths.state, nothing_bound.paths.run).give_order(order)
    document = json.loads(running.describe())
    jsonschema.validate(document, SCHEMA)
    assert (document["gate"], document["policy"], document["order"].get("hold")) == (gate, policy, hold or None)
    assert document["deployments"][0]["next-boot"] is (gate != "held")
    assert (document["state"] == "held") is (gate == "held")
    assert len(running._lacks()) == lacks
    assert running._look_ahead().ready is ready


async def test_why_there_is_no_reboot(nothing_bound: Settings) -> None:
    """What is complete, and kept back by an order, does not lack anything."""
    running, new = service(nothing_bound, "hold")
    Shutdowns(nothing_bound.paths.state, nothing_bound.paths.run).give_order(
        Order(new.key, new.digest or "", True, 0, "freeze", 1)
    )
    job, _ = running.reboot({}, Initiator(0))
    await job.wait(20)
    assert job.error_name == "Held"
    assert "freeze" in job.error_message
    assert "lashctl release" in job.error_message
    assert "not all of its bound images" not in job.error_message
    await running.jobs.stop()
