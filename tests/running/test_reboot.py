# SPDX-License-Identifier: Apache-2.0
"""When the host reboots: single stories, then any story that hypothesis can think of."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from lashd.running.reboot import Rebooter
from lashd.running.reboot_unit import PATIENCE_SECONDS
from lashd.running.reboot_ways import Outlook, Ways
from lashd.things import fleetlock
from lashd.things.logind import Inhibitor, Unanswered
from lashd.things.rebooting import SOFT_UNIT, UNIT, Going
from lashd.words.config import Settings, settings_from
from lashd.words.errors import ErrorName, LashdError
from tests.support.fleetlock import FleetLock
from tests.support.told import told

BACKUP = Inhibitor("backup", "Nightly backup", 1000)
SATURDAY_NIGHT = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
WINDOWS = ("Sat 02:00-04:00",)


@dataclass
class World:
    """All that is outside of the Rebooter, and what it did to it."""

    directory: Path
    when: str = "never"
    windows: tuple[str, ...] = WINDOWS
    url: str = ""
    soft: bool = False
    boot: str = "boot-1"
    outlook: Outlook = field(default_factory=lambda: Outlook("v1", "v2", True))
    inhibitors: tuple[Inhibitor, ...] = ()
    deaf: bool = False  # logind does not answer
    clock: datetime = SATURDAY_NIGHT
    ticks: float = 1000.0
    slots: int = 1
    holders: set[str] = field(default_factory=set)
    server: str = "well"  # refuses, lost-before, lost-after
    systemd: str = "well"  # refuses, lost-before, lost-after
    going: Going = Going.DOWN
    ostree: tuple[int, ...] = (2025, 2)
    started: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    surprise: Callable[[], None] = lambda: None  # happens while something is waited for
    at_start: Callable[[], None] = lambda: None
    changes: int = 0

    def settings(self) -> Settings:
        return settings_from(
            {
                "paths": {"run": self.directory / "run", "state": self.directory / "state"},
                "reboot": {
                    "when": self.when,
                    "windows": self.windows,
                    "soft": self.soft,
                    "fleetlock_url": self.url,
                    "fleetlock_id": "me",
                },
            }
        )

    def rebooter(self, **ways: Any) -> Rebooter:
        mine = {
            "blockers": self.blockers,
            "pre_reboot": self.pre_reboot,
            "steady_state": self.steady_state,
            "start": self.start,
            "look": self.look,
            "ostree_version": self.ostree_version,
            "now": lambda: self.clock,
            "monotonic": lambda: self.ticks,
        }

        def changed() -> None:
            self.changes += 1

        return Rebooter(
            self.settings(), lambda: self.outlook, boot=self.boot, ways=Ways(**mine | ways), changed=changed
        )

    def later(self, seconds: float) -> None:
        self.clock += timedelta(seconds=seconds)
        self.ticks += seconds

    def restart_host(self) -> None:
        self.boot = f"boot-{int(self.boot[5:]) + 1}"
        shutil.rmtree(self.directory / "run", ignore_errors=True)
        self.ticks = 10.0

    async def blockers(self) -> tuple[Inhibitor, ...]:
        self.asked.append("blockers")
        await asyncio.sleep(0)
        self.surprise()
        if self.deaf:
            raise Unanswered("logind does not say whether something blocks the reboot: it sleeps.")
        return self.inhibitors

    async def _serve(self, act: Callable[[], None]) -> None:
        await asyncio.sleep(0)
        self.surprise()
        if self.server == "refuses":
            raise LashdError(ErrorName.INHIBITED, "The FleetLock server refuses.")
        if self.server != "lost-before":
            act()
        if self.server.startswith("lost"):
            raise LashdError(ErrorName.NETWORK_UNAVAILABLE, "The FleetLock server is away.")

    async def pre_reboot(self, who: fleetlock.Client) -> None:
        self.asked.append("pre-reboot")

        def take() -> None:
            if len(self.holders - {who.id}) >= self.slots:
                raise LashdError(ErrorName.INHIBITED, "All slots are taken.")
            self.holders.add(who.id)

        await self._serve(take)

    async def steady_state(self, who: fleetlock.Client) -> None:
        self.asked.append("steady-state")
        await self._serve(lambda: self.holders.discard(who.id))

    async def start(self, unit: str) -> None:
        self.at_start()
        await asyncio.sleep(0)
        if self.systemd == "refuses":
            raise LashdError(ErrorName.HOST_COMMAND_FAILED, f"{unit} could not be started.")
        if self.systemd != "lost-before":
            self.started.append(unit)
        if self.systemd.startswith("lost"):
            raise LashdError(ErrorName.TIMEOUT, "systemctl did not end.")

    async def look(self, unit: str) -> Going:
        return self.going

    async def ostree_version(self, program: str) -> tuple[int, ...]:
        await asyncio.sleep(0)
        self.surprise()
        return self.ostree


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def codes(rebooter: Rebooter) -> list[str]:
    return [code for code, _ in rebooter.blocked()]


async def refused(asking: Awaitable[object], name: ErrorName) -> str:
    with pytest.raises(LashdError) as caught:
        await asking
    assert caught.value.name is name, caught.value.message
    return caught.value.message


# -- what the settings want -------------------------------------------------------------------------------------------


async def test_never_does_nothing_and_asks_nobody(world: World) -> None:
    rebooter = world.rebooter()
    assert await rebooter.consider() is None
    assert (world.started, world.asked, rebooter.blocked()) == ([], [], [])


async def test_when_ready(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.when = "ready"
    world.outlook = Outlook("v1", "v2", False)
    rebooter = world.rebooter()
    assert await rebooter.consider() is None
    assert world.started == []
    assert rebooter.blocked() == [], "what is missing is told by others"
    world.outlook = Outlook("v1", "v2", True)
    assert await rebooter.consider() == 10
    assert world.started == [UNIT]
    assert rebooter.begun()
    await rebooter.consider()
    assert world.started == [UNIT]
    assert told(caplog) == [{"NAME": "REBOOT_STARTED", "LASHD_DEPLOYMENT": "v2"}]


async def test_nothing_to_boot_into(world: World) -> None:
    world.when = "ready"
    world.outlook = Outlook("v1", "", True)
    await world.rebooter().consider()
    assert world.started == []


async def test_window(world: World) -> None:
    world.when = "window"
    world.clock = SATURDAY_NIGHT - timedelta(hours=1, seconds=90)
    rebooter = world.rebooter()
    assert await rebooter.consider() == 60
    assert world.asked == []
    assert rebooter.blocked() == [
        ("outside-window", "The reboot waits for its window; the next one opens on Sat 21 Nov at 02:00 UTC.")
    ]
    world.later(60)
    assert await rebooter.consider() == 30
    world.later(30)
    await rebooter.consider()
    assert world.started == [UNIT]


async def test_a_window_that_is_missing(world: World) -> None:
    """Somebody asked for one, and then the settings lost them all; that they want one and name none is a mistake."""
    world.windows = ("Sun 02:00-04:00",)
    assert await world.rebooter().request("window", name="ann", uid=1000) == "waiting"
    world.windows = ()
    rebooter = world.rebooter()
    assert await rebooter.consider() == 60
    assert rebooter.blocked() == [
        ("outside-window", "The reboot waits for its window; no window is set that ever opens.")
    ]


async def test_inhibitors_are_named_and_asked_about_again(world: World) -> None:
    world.when = "ready"
    world.url = "http://fleet"
    world.inhibitors = (BACKUP,)
    rebooter = world.rebooter()
    assert await rebooter.consider() == 60
    assert rebooter.blocked() == [("inhibited", "backup (user 1000) blocks the reboot: Nightly backup.")]
    assert world.asked == ["blockers"], "the right to reboot is asked for last"
    world.inhibitors = ()
    world.later(59)
    assert await rebooter.consider() == 1
    assert world.started == []
    world.later(1)
    await rebooter.consider()
    assert world.started == [UNIT]


async def test_when_logind_does_not_answer_nothing_is_started(world: World) -> None:
    world.when, world.deaf = "ready", True
    rebooter = world.rebooter()
    await rebooter.consider()
    assert codes(rebooter) == ["inhibited"]
    assert world.started == []


# -- the right to reboot ----------------------------------------------------------------------------------------------


async def test_against_a_real_server(world: World) -> None:
    with FleetLock(slots=1) as server:
        server.holders["default"].add("another")
        world.when, world.url = "ready", server.url
        real = {"pre_reboot": fleetlock.pre_reboot, "steady_state": fleetlock.steady_state}
        rebooter = world.rebooter(**real)
        await rebooter.consider()
        assert codes(rebooter) == ["fleetlock"]
        assert "All 1 slots are taken (failed_lock)" in rebooter.blocked()[0][1]
        assert not (json.loads((world.directory / "state/reboot.json").read_text()))["taken"]
        server.holders["default"].clear()
        world.later(60)
        await rebooter.consider()
        assert world.started == [UNIT]
        assert server.holders["default"] == {"me"}
        # The next boot: kept until it has proved good.
        world.restart_host()
        world.outlook = Outlook("v2", "", False)
        rebooter = world.rebooter(**real)
        await rebooter.consider()
        assert server.holders["default"] == {"me"}
        await rebooter.steady()
        assert server.holders["default"] == set()
        seen = len(server.requests)
        await rebooter.steady()
        assert len(server.requests) == seen


async def test_is_given_back_when_somebody_blocks_meanwhile(world: World) -> None:
    world.when, world.url = "ready", "http://fleet"

    def surprise() -> None:
        if world.holders:
            world.inhibitors = (BACKUP,)

    world.surprise = surprise
    rebooter = world.rebooter()
    await rebooter.consider()
    assert world.asked == ["blockers", "pre-reboot", "blockers", "steady-state"]
    assert codes(rebooter) == ["inhibited"]
    assert (world.started, world.holders) == ([], set())


async def test_is_given_back_when_the_start_fails(world: World) -> None:
    world.when, world.url, world.systemd = "ready", "http://fleet", "refuses"
    rebooter = world.rebooter()
    await rebooter.consider()
    assert world.holders == set()
    assert codes(rebooter) == ["reboot-failed"]
    world.systemd = "well"
    world.later(60)
    await rebooter.consider()
    assert (world.started, world.holders) == ([UNIT], {"me"})


@pytest.mark.parametrize(("going", "after"), [(Going.FAILED, 5.0), (Going.UP, PATIENCE_SECONDS + 1)])
async def test_is_given_back_when_the_host_does_not_go_down(world: World, going: Going, after: float) -> None:
    world.when, world.url = "ready", "http://fleet"
    await world.rebooter().consider()
    rebooter = world.rebooter()  # also after a restart of the daemon
    world.going = Going.UP
    world.later(4)
    await rebooter.consider()
    assert world.holders == {"me"}
    assert rebooter.begun()
    world.going = going
    world.later(after - 4)
    await rebooter.consider()
    assert world.holders == set()
    assert codes(rebooter) == ["reboot-failed"]
    assert not rebooter.begun()


async def test_one_that_may_be_held_is_given_back_later(world: World) -> None:
    world.when, world.url, world.server = "ready", "http://fleet", "lost-after"
    rebooter = world.rebooter()
    await rebooter.consider()
    assert codes(rebooter) == ["fleetlock"]
    world.outlook = Outlook("v1", "", False)
    world.server = "well"
    rebooter = world.rebooter()
    await rebooter.consider()
    assert world.holders == set()


async def test_the_former_server_gets_its_slot_back(world: World) -> None:
    world.when, world.url, world.server = "ready", "http://old", "lost-after"
    await world.rebooter().consider()
    asked: list[tuple[str, str]] = []

    async def steady_state(who: fleetlock.Client) -> None:
        asked.append(("steady-state", who.url))

    async def pre_reboot(who: fleetlock.Client) -> None:
        asked.append(("pre-reboot", who.url))

    world.url = "http://new"
    await world.rebooter(steady_state=steady_state, pre_reboot=pre_reboot).consider()
    assert asked == [("steady-state", "http://old"), ("pre-reboot", "http://new")]
    assert world.started == [UNIT]


async def test_one_from_before_the_boot_is_kept_until_that_has_proved_good(world: World) -> None:
    world.when, world.url = "ready", "http://fleet"
    await world.rebooter().consider()
    world.restart_host()
    world.asked.clear()
    rebooter = world.rebooter()

    def surprise() -> None:
        if "pre-reboot" in world.asked:
            world.inhibitors = (BACKUP,)

    world.surprise = surprise
    await rebooter.consider()
    assert world.asked == ["blockers", "pre-reboot", "blockers"]
    assert world.holders == {"me"}
    await rebooter.steady()
    world.later(60)
    await rebooter.consider()
    assert world.holders == set()


async def test_a_start_that_nobody_confirms_may_have_happened(world: World) -> None:
    world.when, world.url, world.systemd = "ready", "http://fleet", "lost-after"
    rebooter = world.rebooter()
    await rebooter.consider()
    assert rebooter.begun()
    assert world.holders == {"me"}, "the host is going down"
    assert world.started == [UNIT]


async def test_who_blocks_is_asked_again_after_giving_back(world: World) -> None:
    world.when, world.url, world.server = "ready", "http://fleet", "lost-after"
    await world.rebooter().consider()
    world.url = ""  # the server is not asked any more, and still has a slot for us

    def surprise() -> None:
        world.outlook = Outlook("v1", "v2", False)

    world.surprise = surprise
    rebooter = world.rebooter()
    await rebooter.consider()
    assert world.asked[-1] == "steady-state"
    world.surprise = lambda: None
    world.outlook = Outlook("v1", "v2", True)
    world.inhibitors = (BACKUP,)
    await rebooter.consider()
    assert world.started == []


async def test_while_it_rests_nobody_is_asked(world: World) -> None:
    world.when, world.url, world.server = "ready", "http://fleet", "refuses"
    rebooter = world.rebooter()
    await rebooter.consider()
    asked = list(world.asked)
    for _ in range(5):
        await rebooter.consider()
    assert world.asked == asked
    assert codes(rebooter) == ["fleetlock"]


async def test_it_is_on_disk_before_it_is_asked_for(world: World) -> None:
    world.when, world.url = "ready", "http://fleet"

    async def killed(who: fleetlock.Client) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await world.rebooter(pre_reboot=killed).consider()
    world.holders.add("me")  # it had arrived
    world.outlook = Outlook("v1", "v2", False)
    await world.rebooter().consider()
    assert world.holders == set()


# -- what people want -------------------------------------------------------------------------------------------------


async def test_now(world: World) -> None:
    world.clock += timedelta(hours=12)  # outside every window
    rebooter = world.rebooter()
    assert await rebooter.request("now", name="ann", uid=1000) == "started"
    assert world.started == [UNIT]
    assert await rebooter.request("now", name="ben", uid=1001) == "started"
    assert world.started == [UNIT]
    with pytest.raises(LashdError, match="cannot be withdrawn"):
        await rebooter.withdraw(name="ann", uid=1000)


async def test_now_is_refused(world: World) -> None:
    rebooter = world.rebooter()
    await refused(rebooter.request("later", name="", uid=0), ErrorName.INVALID_ARGUMENT)
    world.outlook = Outlook("v1", "", True)
    for when in ("now", "ready", "window"):
        await refused(rebooter.request(when, name="", uid=0), ErrorName.NOTHING_STAGED)
    world.outlook = Outlook("v1", "v2", False)
    await refused(rebooter.request("now", name="", uid=0), ErrorName.HELD)
    world.outlook = Outlook("v1", "v2", True)
    world.inhibitors = (BACKUP, Inhibitor("", "", 0))
    said = await refused(rebooter.request("now", name="", uid=0), ErrorName.INHIBITED)
    assert "backup (user 1000) blocks the reboot: Nightly backup. Somebody (root) blocks the reboot, without" in said
    world.inhibitors = ()
    world.systemd = "refuses"
    await refused(rebooter.request("now", name="", uid=0), ErrorName.HOST_COMMAND_FAILED)
    assert world.started == []
    world.systemd = "well"
    assert await rebooter.request("now", name="", uid=0) == "started", "nothing of before is remembered"


async def test_now_needs_the_right_too(world: World) -> None:
    world.url = "http://fleet"
    world.holders.add("another")
    rebooter = world.rebooter()
    said = await refused(rebooter.request("now", name="", uid=0), ErrorName.INHIBITED)
    assert said.startswith("All slots are taken.")
    world.holders.clear()
    assert await rebooter.request("now", name="", uid=0) == "started"
    assert world.holders == {"me"}


async def test_now_is_refused_when_it_is_held_meanwhile(world: World) -> None:
    def surprise() -> None:
        world.outlook = Outlook("v1", "v3", False)

    world.surprise = surprise
    await refused(world.rebooter().request("now", name="", uid=0), ErrorName.HELD)
    assert world.started == []


async def test_a_request_that_waits_outlives_the_daemon_but_no_reboot(world: World) -> None:
    world.outlook = Outlook("v1", "v2", False)
    rebooter = world.rebooter()
    assert await rebooter.request("ready", name="ann", uid=1000) == "waiting"
    assert world.changes
    again = world.rebooter()
    row = again.row()
    assert (row["when"], row["asked-by"], row["asked-uid"], row["started"]) == ("ready", "ann", 1000, False)
    world.outlook = Outlook("v1", "v2", True)
    await again.consider()
    assert world.started == [UNIT]
    world.restart_host()
    world.started.clear()
    after = world.rebooter()
    await after.consider()
    assert world.started == []
    assert after.row()["when"] == "never"


async def test_a_request_of_another_boot_counts_for_nothing(world: World) -> None:
    world.outlook = Outlook("v1", "v2", False)
    await world.rebooter().request("ready", name="ann", uid=1000)
    world.boot = "boot-2"  # and /run is as it was
    world.outlook = Outlook("v1", "v2", True)
    await world.rebooter().consider()
    assert world.started == []


async def test_a_request_for_the_window(world: World) -> None:
    world.clock = SATURDAY_NIGHT + timedelta(hours=2)
    rebooter = world.rebooter()
    assert await rebooter.request("window", name="ann", uid=0) == "waiting"
    assert codes(rebooter) == ["outside-window"]
    world.clock += timedelta(days=7, hours=-2)
    await rebooter.consider()
    assert world.started == [UNIT]


async def test_a_request_for_a_window_that_never_comes(world: World) -> None:
    world.windows = ()
    said = await refused(world.rebooter().request("window", name="", uid=0), ErrorName.OUTSIDE_WINDOW)
    assert "No reboot window is set" in said


async def test_withdrawn(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.outlook = Outlook("v1", "v2", False)
    rebooter = world.rebooter()
    assert not await rebooter.withdraw(name="ben", uid=1001)
    await rebooter.request("ready", name="ann", uid=1000)
    before, changes = rebooter.asked, world.changes
    assert await rebooter.withdraw(name="ben", uid=1001)
    assert "withdrawn by ben (user 1001)" in caplog.text
    assert rebooter.asked != before
    assert world.changes > changes
    world.outlook = Outlook("v1", "v2", True)
    await world.rebooter().consider()
    assert world.started == []


async def test_withdrawn_while_it_waits_for_its_window(world: World) -> None:
    """What it waited for is told no more, and a right to reboot that may be held goes back."""
    world.clock += timedelta(hours=2)
    world.url, world.holders = "http://fleet", {"me"}
    rebooter = world.rebooter()
    await rebooter.request("window", name="ann", uid=0)
    world.clock -= timedelta(hours=2)
    world.server = "lost-after"
    await rebooter.consider()
    assert codes(rebooter) == ["fleetlock"]
    world.later(60)
    world.server = "well"
    assert await rebooter.withdraw(name="ann", uid=0)
    assert (codes(rebooter), world.holders) == ([], set())


async def test_what_the_settings_want_is_not_withdrawn(world: World) -> None:
    world.when = "window"
    world.clock += timedelta(hours=2)
    world.inhibitors = (BACKUP,)
    rebooter = world.rebooter()
    await rebooter.request("ready", name="ann", uid=0)
    assert codes(rebooter) == ["inhibited"]
    assert await rebooter.withdraw(name="ann", uid=0)
    assert (rebooter.row()["when"], rebooter.row()["asked-uid"]) == ("window", -1)
    assert "outside-window" in codes(rebooter)


async def test_a_request_goes_with_what_it_was_about(world: World) -> None:
    world.outlook = Outlook("v1", "v2", False)
    rebooter = world.rebooter()
    await rebooter.request("ready", name="ann", uid=1000)
    world.outlook = Outlook("v1", "", False)  # discarded
    await rebooter.consider()
    world.outlook = Outlook("v1", "v3", True)
    await rebooter.consider()
    assert world.started == []


# -- what goes wrong --------------------------------------------------------------------------------------------------


async def test_reboots_without_effect_come_to_an_end(world: World) -> None:
    world.when = "ready"
    for _ in range(6):
        rebooter = world.rebooter()
        await rebooter.consider()
        world.restart_host()
    assert world.started == [UNIT] * 3
    assert codes(rebooter) == ["reboot-without-effect"]
    world.outlook = Outlook("v1", "v3", True)
    await world.rebooter().consider()
    assert len(world.started) == 4, "another target is another matter"
    world.restart_host()
    world.outlook = Outlook("v1", "v2", True)
    assert await world.rebooter().request("now", name="", uid=0) == "started", "and a person may"


@pytest.mark.parametrize(("good", "reboots"), [(True, 5), (False, 3)])
async def test_the_count_ends_when_the_target_is_a_good_one(world: World, good: bool, reboots: int) -> None:
    """A system that comes up and is left again each time is not rebooted into for ever."""
    world.when = "ready"
    for _ in range(5):
        await world.rebooter().consider()
        world.restart_host()
        world.outlook = Outlook("v2", "", False)
        rebooter = world.rebooter()
        await rebooter.consider()
        if good:
            await rebooter.steady()
        world.outlook = Outlook("v1", "v2", True)
        world.restart_host()
    assert world.started == [UNIT] * reboots


async def test_a_full_disk_starts_nothing_that_is_not_noted(world: World, tmp_path: Path) -> None:
    world.when, world.url = "ready", "http://fleet"
    rebooter = world.rebooter()
    (tmp_path / "state").write_text("in the way")
    await rebooter.consider()
    assert world.asked == ["blockers"]
    assert codes(rebooter) == ["fleetlock"]
    world.url = ""
    rebooter = world.rebooter()
    await rebooter.consider()
    assert codes(rebooter) == ["reboot-failed"]
    assert world.started == []


@pytest.mark.parametrize("text", ["", "{", '{"started": 3}', "[]", '{"boot": "boot-1", "request": {"when": []}}'])
async def test_rubbish_in_the_notes_counts_as_nothing(world: World, text: str) -> None:
    for name in ("run", "state"):
        (world.directory / name).mkdir()
        (world.directory / name / "reboot.json").write_text(text)
    rebooter = world.rebooter()
    await rebooter.steady()
    assert (rebooter.begun(), rebooter.row()["when"], world.asked) == (False, "never", [])


async def test_soft_where_the_host_can(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.when, world.soft = "ready", True
    await world.rebooter().consider()
    assert world.started == [UNIT]
    assert (
        "This host's ostree (2025.2) cannot prepare a soft reboot, which needs 2025.3; it is an ordinary" in caplog.text
    )
    shutil.rmtree(world.directory)
    world.outlook, world.ostree = Outlook("v1", "v2", True, finalised=True), (2025, 3)
    rebooter = world.rebooter()
    await rebooter.consider()
    assert world.started[1:] == [SOFT_UNIT]
    world.going = Going.FAILED
    await rebooter.consider()
    world.later(60)
    await rebooter.consider()
    assert world.started[2:] == [UNIT], "what failed is not tried for ever"


@pytest.mark.parametrize("then", [Outlook("v1", "v3", True), Outlook("v1", "v2", False), Outlook("v1", "", False)])
async def test_what_changes_at_the_last_moment_counts(world: World, then: Outlook) -> None:
    world.when, world.soft = "ready", True

    async def slow(program: str) -> tuple[int, ...]:
        world.outlook = then
        return (2025, 2)

    rebooter = world.rebooter(ostree_version=slow)
    await rebooter.consider()
    if not then.ready:
        assert world.started == []
    else:
        assert json.loads((world.directory / "state/reboot.json").read_text())["target"] == then.target


async def test_runs_by_itself(world: World) -> None:
    world.when = "ready"
    world.outlook = Outlook("v1", "v2", False)
    rebooter = world.rebooter()
    task = asyncio.create_task(rebooter.run())
    await asyncio.sleep(0.05)
    assert world.started == []
    world.outlook = Outlook("v1", "v2", True)
    await asyncio.sleep(0.05)
    assert world.started == [], "it sleeps until it is told"
    rebooter.poke()
    await asyncio.sleep(0.05)
    assert world.started == [UNIT]
    task.cancel()
    await asyncio.wait([task])


# -- any story --------------------------------------------------------------------------------------------------------


class AnyStory(RuleBasedStateMachine):
    """Never is a reboot started that must not be, and no right to reboot is kept by a host that does not need it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="lashd-reboot-"))
        self.world = World(self.directory)
        self.world.at_start = self.must_be_right
        self.loop = asyncio.Runner()
        self.personal = ""  # what a person asked for that still waits
        self.now = False

    @initialize(when=st.sampled_from(["never", "ready", "window"]), shared=st.booleans(), soft=st.booleans())
    def begin(self, when: str, shared: bool, soft: bool) -> None:
        self.world.when, self.world.url, self.world.soft = when, "http://fleet" if shared else "", soft
        self.rebooter = self.world.rebooter()

    def must_be_right(self) -> None:
        world = self.world
        open_now = world.clock.weekday() == 5 and 2 <= world.clock.hour < 4
        assert world.outlook.target, "nothing to boot into"
        assert world.outlook.ready, "not ready"
        assert not world.inhibitors, "inhibited"
        assert not world.deaf, "nobody knows whether it is inhibited"
        assert not world.url or "me" in world.holders, "without the right to reboot"
        assert (
            self.now or "ready" in (world.when, self.personal) or (open_now and "window" in (world.when, self.personal))
        ), "nobody wants it now"

    @rule(ready=st.booleans(), other=st.sampled_from(["", "v2", "v3"]), finalised=st.booleans())
    def other_outlook(self, ready: bool, other: str, finalised: bool) -> None:
        self.world.outlook = Outlook("v1", other, ready, finalised)
        if not other:
            self.loop.run(self.rebooter.consider())
            self.personal = ""

    @rule(blocked=st.booleans(), deaf=st.booleans())
    def inhibitors(self, blocked: bool, deaf: bool) -> None:
        self.world.inhibitors = (BACKUP,) if blocked else ()
        self.world.deaf = deaf and not blocked

    @rule(how=st.sampled_from(["well", "refuses", "lost-before", "lost-after"]), others=st.booleans())
    def server(self, how: str, others: bool) -> None:
        self.world.server = how
        self.world.holders.discard("another")
        if others and not self.world.holders:
            self.world.holders.add("another")

    @rule(how=st.sampled_from(["well", "refuses", "lost-before", "lost-after"]), going=st.sampled_from(Going))
    def systemd(self, how: str, going: Going) -> None:
        self.world.systemd, self.world.going = how, going

    @rule(what=st.sampled_from(["nothing", "inhibitor", "held", "gone", "window"]))
    def surprise(self, what: str) -> None:
        """It happens while somebody is asked, the next time."""

        def happens() -> None:
            self.world.surprise = lambda: None
            if what == "inhibitor":
                self.world.inhibitors = (BACKUP,)
            elif what == "held":
                self.world.outlook = Outlook("v1", "v2", False)
            elif what == "gone":
                self.world.outlook = Outlook("v1", "", False)
            elif what == "window":
                self.world.later(3600)

        self.world.surprise = happens

    @rule(seconds=st.sampled_from([1, 60, 301, 3600, 6 * 86400]))
    def time_goes_by(self, seconds: int) -> None:
        self.world.later(seconds)
        self.loop.run(self.rebooter.consider())

    @rule(hours=st.integers(-30, 30))
    def clock_jumps(self, hours: int) -> None:
        self.world.clock += timedelta(hours=hours)

    @rule()
    def consider(self) -> None:
        pause = self.loop.run(self.rebooter.consider())
        assert pause is None or 0 < pause <= 60

    @rule(when=st.sampled_from(["now", "ready", "window"]))
    def request(self, when: str) -> None:
        # While one is under way another request changes nothing.
        waits = when != "now" and not self.rebooter.begun()
        before, self.personal = self.personal, when if waits else self.personal
        self.now = when == "now"
        try:
            self.loop.run(self.rebooter.request(when, name="ann", uid=1000))
        except LashdError:
            self.personal = before
        finally:
            self.now = False
        if not self.rebooter.row()["asked-by"]:
            self.personal = ""

    @rule()
    def withdraw(self) -> None:
        try:
            self.loop.run(self.rebooter.withdraw(name="ben", uid=1001))
            self.personal = ""
        except LashdError:
            assert self.rebooter.begun()

    @rule()
    def daemon_restarts(self) -> None:
        self.rebooter = self.world.rebooter()
        self.loop.run(self.rebooter.consider())

    @rule(good=st.booleans())
    def host_restarts(self, good: bool) -> None:
        self.world.restart_host()
        self.world.started.clear()
        self.personal = ""
        self.rebooter = self.world.rebooter()
        if good:
            self.loop.run(self.rebooter.steady())

    @precondition(lambda self: "me" in self.world.holders)
    @rule()
    def nobody_wants_it_any_more(self) -> None:
        """Then the right is back in one retry time, unless a reboot is under way or this boot is yet to prove good."""
        earlier = json.loads((self.directory / "state/reboot.json").read_text())["taken"]["boot"] != self.world.boot
        self.calm()
        if not self.rebooter.begun():
            assert "me" not in self.world.holders or earlier

    def calm(self) -> None:
        self.world.surprise = lambda: None
        self.world.server, self.world.systemd = "well", "well"
        self.world.outlook = Outlook("v1", "", False)
        self.personal = ""
        for _ in range(2):
            self.world.later(61)
            self.loop.run(self.rebooter.consider())

    def teardown(self) -> None:
        try:
            if hasattr(self, "rebooter"):
                self.world.outlook = Outlook("v2", "", False)  # the reboot brought it up
                self.host_restarts(good=True)
                self.calm()
                assert "me" not in self.world.holders, "kept for ever"
        finally:
            self.loop.close()
            shutil.rmtree(self.directory)


def test_any_story() -> None:
    run_state_machine_as_test(
        AnyStory, settings=hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
    )
