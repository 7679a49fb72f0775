# SPDX-License-Identifier: Apache-2.0
"""The power is cut the moment that lashd reports a success, and what it reported must be so afterwards.

The tracer stops lashd at that moment, before it can do anything more, and the power is cut with all that the kernel had
not written back.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from demo.shell import Failed
from tests.faults import gate
from tests.faults.after import arrives, left_behind, recorded, started
from tests.faults.gate_edges import stop_at
from tests.faults.table import Row
from tests.faults.tracing import SUCCESS, Moment, log, moments, trace, wait_for_moment
from tests.faults.work import Done, Scale, Task, sliced
from tests.faults.world import World

_RUNS = 2
_STORE = "/sysroot/ostree/bootc/storage"
_LOOK = "success: which are reported"


@dataclass(frozen=True)
class Story:
    """`make` returns when lashd has stopped at the moment that it is given; `then` looks once the host is up again."""

    name: str
    make: Callable[[World, Moment], None]
    then: Callable[[World], str]
    moment: str = ""


def tasks(scale: Scale) -> Iterator[Task]:
    yield Task("successes", _LOOK, arguments=(scale(_RUNS),), finds=(name(STAGED.name),))
    for story in STORIES:
        yield from sliced("successes", name(story.name), scale(_RUNS), 1, Moment(SUCCESS + story.moment))


def name(what: str) -> str:
    return f"power cut right after a reported success: {what}"


def do(world: World, task: Task) -> Done:
    if task.name == _LOOK:
        return Done(tasks=list(_found(world, *task.arguments)))
    (moment,) = task.arguments
    story = next((one for one in STORIES if name(one.name) == task.name), STAGED)
    row = Row(task.name)
    for _ in range(task.times):
        row.run(lambda: cut(world, story, moment))
    return Done([row])


def _found(world: World, times: int) -> Iterator[Task]:
    """Every success from the moment that something is staged until it is declared ready, in one run of it."""
    world.fresh()
    trace(world)
    before = len(log(world))
    world.stage()
    world.wait(world.declared, "declared with the tracer")
    time.sleep(1)
    found = moments(log(world), before, SUCCESS)
    print(f"{len(found)} successes:", *(f"  {one.what} ({one.number})" for one in found), sep="\n")
    for moment in found:
        what = moment.what.removeprefix(SUCCESS)
        shown = "an image is present" if what.startswith("present ") else what
        yield from sliced("successes", name(f"staged by somebody, {shown}"), times, 1, moment)


def cut(world: World, story: Story, moment: Moment) -> str:
    story.make(world, moment)
    # Whatever was called present until then, or has a record that vouches for it.
    called = [one.what.rpartition(" ")[2] for one in moments(log(world), kind=f"{SUCCESS}present ")]
    called += recorded(world)
    world.host.power_cut()
    return started(world, called) or story.then(world)


def command(world: World, *argv: str) -> None:
    """Have lashctl ask for something, and do not wait for the answer, which may never come."""
    world.host.run("systemd-run", "--quiet", "--no-block", "lashctl", *argv)


# ---- what is done, until lashd stops itself ----


def staged(world: World, moment: Moment) -> None:
    world.fresh()
    trace(world, moment, "stop")
    world.stage()
    wait_for_moment(world)


def staged_again(world: World, moment: Moment) -> None:
    """After a reboot that has lost it."""
    world.fresh(online=False)
    world.stage()
    world.wait(lambda: world.host.run("test", "-e", "/var/lib/lashd/owed.json", check=False).status == 0, "it is owed")
    trace(world, moment, "stop", at_boot=True)
    boot = world.host.boots()
    with contextlib.suppress(Failed):  # it may die with the guest that it is in
        world.host.run("systemctl", "reboot", "--no-block", check=False)
    # While it is down: else the first try would fail, and the next is some time later.
    world.wait(lambda: world.host.leader() == 0 or world.host.boots() > boot, "it goes down")
    world.online(True)
    world.host.wait_until_up(boot + 1)
    wait_for_moment(world)


def upgrade(world: World, moment: Moment) -> None:
    world.fresh()
    trace(world, moment, "stop")
    command(world, "upgrade")
    wait_for_moment(world)


def repair(world: World, moment: Moment) -> None:
    """A layer of the running system is gone, and is fetched again."""
    world.fresh()
    trace(world, moment, "stop")
    # The one that was put there last is in no use by a container that would keep it.
    script = f"mount -o remount,rw /sysroot && rm -rf $(ls -td {_STORE}/overlay/*/ | grep -v '/l/$' | head -n 1)"
    world.host.run("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
    command(world, "bind", "booted")
    wait_for_moment(world)


def verify(world: World, moment: Moment) -> None:
    world.fresh()
    trace(world, moment, "stop")
    command(world, "verify", "--deep")
    wait_for_moment(world)


def collect(world: World, moment: Moment) -> None:
    """What nobody binds is removed."""
    world.fresh()
    gate.fill(world)
    # Long ago: what has just come is left to whoever fetched it.
    script = f"mount -o remount,rw /sysroot && touch -d yesterday {_STORE}/overlay-images/*/"
    world.host.run("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
    trace(world, moment, "stop")
    command(world, "collect")
    wait_for_moment(world)


def roll_back(world: World, moment: Moment) -> None:
    world.fresh(second=True)
    trace(world, moment, "stop")
    command(world, "rollback")
    wait_for_moment(world)


def discard(world: World, moment: Moment) -> None:
    world.fresh(online=False)
    world.stage()
    trace(world, moment, "stop")
    command(world, "discard")
    wait_for_moment(world)


def order(world: World, moment: Moment) -> None:
    world.fresh()
    world.stage()
    world.wait(world.declared, "v2 is declared ready")
    trace(world, moment, "stop")
    command(world, "hold")
    wait_for_moment(world)


def gate_decides(world: World, moment: Moment) -> None:
    world.fresh()
    world.stage()
    world.wait(world.declared, "v2 is declared ready")
    trace(world, moment, "stop", program="gate")
    stop_at(world)


def finalised(world: World, moment: Moment) -> None:
    """What the gate has let through is the next boot's."""
    world.fresh()
    world.stage()
    world.wait(world.declared, "v2 is declared ready")
    trace(world)  # for the place where it notes what has happened
    line = "ExecStop=/bin/sh -c ': > /var/lib/edges/reached; sleep 20'"
    gate.change_unit(world, line, unit="ostree-finalize-staged.service")
    stop_at(world)


# ---- what must be so then ----


def goes_on(world: World) -> str:
    return arrives(world) or left_behind(world)


def stays(world: World) -> str:
    return "" if (version := world.version()) == "1" else f"v{version} came up"


def discarded(world: World) -> str:
    time.sleep(3)
    return stays(world) or ("what was discarded is back" if world.known() else "")


def collected(world: World) -> str:
    """What was removed is gone, whole: nothing of it is there, and v2, which binds it, fetches it and comes up."""
    if wrong := stays(world):
        return wrong
    digests = {binding.app.image.digest for binding in world.first.bindings}
    script = f"grep -rlE '^Ahoy from web 2' {_STORE}/overlay; cat {_STORE}/overlay-images/images.json"
    page, _, index = world.host.run("sh", "-c", script).output.rpartition("\n")
    if page or (back := {image["digest"] for image in json.loads(index)} - digests):
        return f"what was removed is back: {page or back}"
    world.stage()
    return goes_on(world)


def ordered(world: World) -> str:
    """It is staged again, and still held by the order."""

    def held() -> bool:
        codes = [reason["code"] for reason in world.status()["blockedBy"]]
        return world.known() and "order-hold" in codes

    try:
        world.wait(held, "v2 is staged again, and held by the order", 60)
    except Failed as error:
        return str(error)
    return stays(world)


def boots(version: str) -> Callable[[World], str]:
    return lambda world: "" if world.version() == version else f"v{world.version()} came up"


STAGED = Story("staged by somebody", staged, goes_on)
STORIES = (
    Story("restage job", staged_again, goes_on, "job restage success"),
    Story("bind job after a restage", staged_again, goes_on, "job bind success"),
    Story("upgrade job", upgrade, goes_on, "job upgrade success"),
    Story("bind job that repairs the running system", repair, boots("1"), "job bind success"),
    Story("verify job", verify, boots("1"), "job verify unchanged"),
    Story("collect job", collect, collected, "job collect success"),
    Story("rollback job", roll_back, boots("1"), "job rollback success"),
    Story("discard job", discard, discarded, "job discard success"),
    Story("order to hold", order, ordered, "ordered to hold"),
    Story("the gate's release", gate_decides, goes_on, "gate released"),
    Story("finalised", finalised, boots("2")),
)
