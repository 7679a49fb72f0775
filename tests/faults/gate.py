# SPDX-License-Identifier: Apache-2.0
"""Faults of the gate at shutdown: whatever becomes of it, a system comes up that has all of its images.

Each fault is made on a host that runs v1 and has v2 staged by a third party, with the daemon stopped, so that only the
gate is between the two. `scenario` makes one and answers what came of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from demo.shell import Failed
from tests.faults.table import Row
from tests.faults.work import Done, Scale, Task, sliced
from tests.faults.world import STAGED_LOCK, World

NOTE = "/run/ostree/staged-deployment"
_GATE = "/usr/lib/lashd/gate stop"
_VERDICT = "/var/lib/lashd/last-shutdown.json"


# Records the first deployment of the list as the daemon would, by what is in the store.
_RECORD = """
import time
from pathlib import Path
from lashd.steps.evidence import gather
from lashd.steps.record import Records
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.things.store import Store
from lashd.words.config import Settings

settings = Settings()
store = Store(settings.store, settings.store_run, settings.host.sysroot)
records = Records(settings.paths.state / "records")
one = OstreeSysroot(settings).deployments()[0]
found = gather(one, store, records, since=0, now=time.time())
assert found.decision.release, found
if found.new is not None:
    records.write(found.new)
"""


_ORDER = """
from lashd.steps.shutdowns import Shutdowns
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.words.config import Settings
from lashd.words.model import Order

settings = Settings()
one = OstreeSysroot(settings).deployments()[0]
shutdowns = Shutdowns(settings.paths.state, settings.paths.run)
"""
_BOOTED = """
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.words.config import Settings

print(next(one.key for one in OstreeSysroot(Settings()).deployments() if "booted" in one.roles))
"""
_NEXTROOT = """
import subprocess
from pathlib import Path
from gi.repository import GLib
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.words.config import Settings

root = OstreeSysroot(Settings()).deployments()[0].root
nextroot = Path("/run/nextroot")
nextroot.mkdir(exist_ok=True)
for source, target in ((root, nextroot), ("/sysroot", nextroot / "sysroot"), ("/var", nextroot / "var")):
    subprocess.run(["mount", "--bind", source, target], check=True)
found = root.stat()
text = f"{{'backing-root-device-inode': <(uint64 {found.st_dev}, uint64 {found.st_ino})>, 'sysroot-ro': <true>}}"
note = GLib.Variant.parse(GLib.VariantType.new("a{sv}"), text, None, None)
Path("/run/ostree/nextroot-booted").write_bytes(note.get_data_as_bytes().get_data())
"""


@dataclass(frozen=True)
class Fault:
    """`make` is called with v2 staged; then the host reboots, and must come up as `expected` (a version).

    `complete`: all images of v2 are in the store, else none that v1 does not have. `result` is the verdict that must be
    there afterwards, empty when the gate may not have come to one. `says`: what the journal of that boot says, in this
    order, and `reason` is the code of one that the verdict names. `careless`: somebody wanted it without its images.
    `check` looks at more, and answers what is wrong. Of `work.FULL` runs of the main faults this one gets `runs`.
    """

    name: str
    make: Callable[[World], None]
    complete: bool = False
    expected: tuple[str, ...] = ("1",)
    result: str = ""
    stage: bool = True
    careless: bool = False
    says: tuple[str, ...] = ()
    reason: str = ""
    runs: int = 5
    check: Callable[[World], str] = lambda world: ""
    end: Callable[[World], None] = lambda world: world.host.reboot() and None


@dataclass(frozen=True)
class Outcome:
    """What came up: its version, what is wrong with its images, and the gate's verdict as it can be read afterwards."""

    version: str
    damage: list[str]
    verdict: dict[str, Any] | None
    journal: str


def scenario(world: World, fault: Fault) -> Outcome:
    """Make `fault` once. The host must run v1, with the images of v2 as the fault wants them (see `prepare`)."""
    host = world.host
    alone(world)
    if fault.stage:
        world.stage()
    host.run("rm", "-f", _VERDICT, "/var/lib/lashd/order.json")
    fault.make(world)
    fault.end(world)
    return look(world)


def soft_reboot(world: World) -> None:
    """Start userspace anew, in whatever is mounted on /run/nextroot, and wait until it is up."""
    count = ("systemctl", "show", "--property=SoftRebootsCount", "--value")
    before = world.host.run(*count).output.strip()
    world.host.run("systemctl", "soft-reboot", check=False)
    # Who enters just while everything is being ended may be stopped there for good.
    world.wait(
        lambda: world.host.run(*count, timeout=3).output.strip() not in ("", before), "userspace was started anew"
    )
    world.host.run("systemctl", "is-system-running", "--wait", check=False)


def look(world: World) -> Outcome:
    said = world.host.run("cat", _VERDICT, check=False).output
    journal = world.host.run(
        *("journalctl", "--boot=-1", "--output=short-monotonic", "--no-pager"),
        *("-u", "lashd-gate", "-u", "ostree-finalize-staged", "-u", "late"),
        check=False,
    ).output
    return Outcome(world.version(), world.damage(), json.loads(said) if said else None, journal)


def wrong(fault: Fault, outcome: Outcome) -> str:
    """What did not hold, empty when all did."""
    problems = [] if fault.careless else list(outcome.damage)
    if outcome.version not in fault.expected:
        problems.insert(0, f"came up as v{outcome.version}")
    result = (outcome.verdict or {}).get("result", "")
    if fault.result and result != fault.result:
        problems.append(f"verdict {outcome.verdict}")
    if fault.reason and fault.reason not in [code for code, _ in (outcome.verdict or {}).get("reasons", [])]:
        problems.append(f"no reason {fault.reason}: {outcome.verdict}")
    places = [outcome.journal.find(word) for word in fault.says]
    if -1 in places or places != sorted(places):
        problems.append(f"the journal does not say {fault.says} in this order")
    return "\n".join([*problems, outcome.journal]) if problems else ""


def alone(world: World) -> None:
    """Stop the daemon, for this boot: it would fetch, release and stage again by itself."""
    world.host.run("systemctl", "mask", "--runtime", "--now", "lashd.service")


def prepare(world: World, *, complete: bool) -> None:
    """A host on v1, whose store has the images of v2 or not."""
    world.fresh()
    alone(world)
    world.host.run("python3", "-", input=_RECORD.encode())
    if complete:
        fill(world)
        world.stage()
        world.host.run("python3", "-", input=_RECORD.encode())
    world.online(False)


def fill(world: World) -> None:
    """Fetch the images of v2 without lashd, so that no record vouches for them."""
    names = " ".join(binding.reference for binding in world.second.bindings)
    script = (
        "set -e; mount -o remount,rw /sysroot; for name in $0; do skopeo copy --quiet docker://$name "
        "containers-storage:[overlay@/sysroot/ostree/bootc/storage+/run/bootc/storage]$name; done"
    )
    world.host.run("unshare", "--mount", "--propagation", "private", "sh", "-c", script, names)


def replace_gate(world: World, command: str) -> None:
    """Have this done in place of the gate's own program, after whatever its unit does before."""
    unit = world.host.run("cat", "/usr/lib/systemd/system/lashd-gate.service").output
    stops = [line for line in unit.splitlines() if line.startswith("ExecStop=")]
    assert stops[-1] == f"ExecStop={_GATE}", stops
    change_unit(world, "ExecStop=", *stops[:-1], f"ExecStop={command}")


def change_unit(world: World, *lines: str, unit: str = "lashd-gate.service") -> None:
    """Change a service until the next boot."""
    place = f"/run/systemd/system/{unit}.d"
    text = "\n".join(["[Service]", *lines, ""])
    world.host.run("sh", "-c", f"mkdir -p {place} && cat >> {place}/90-fault.conf", input=text.encode())
    world.host.run("systemctl", "daemon-reload")


# ---- the faults ----


def nothing(world: World) -> None:
    pass


def kill(world: World) -> None:
    """SIGKILL some time after its start, which takes some 200 ms in all."""
    seconds = random.uniform(0.0, 0.25)
    line = f"{_GATE} & pid=$!; sleep {seconds:.3f}; kill -KILL $pid; wait $pid"
    replace_gate(world, f"/bin/sh -c '{line.replace('$', '$$')}'")


def kill_itself(world: World) -> None:
    replace_gate(world, "/bin/sh -c 'kill -KILL $$$$'")


def kill_itself_unheld(world: World) -> None:
    kill_itself(world)
    no_lock(world)


def stop_for_good(world: World) -> None:
    """SIGSTOP, past its time limit."""
    line = f"{_GATE} & kill -STOP $!; wait $!"
    change_unit(world, "TimeoutStopSec=1")
    replace_gate(world, f"/bin/sh -c '{line.replace('$', '$$')}'")


def false(world: World) -> None:
    replace_gate(world, "/bin/false")


def false_and_no_hold(world: World) -> None:
    change_unit(world, "ExecStop=", "ExecStop=/bin/false")
    no_lock(world)


def mask(world: World) -> None:
    world.host.run("systemctl", "mask", "--runtime", "lashd-gate.service")
    world.host.run("systemctl", "stop", "lashd-gate.service")
    no_lock(world)


def stop_by_hand(world: World) -> None:
    world.host.run("systemctl", "stop", "lashd-gate.service")
    if not world.host.run("cat", STAGED_LOCK, check=False).output.startswith("lashd\n"):
        raise Failed("a stop outside of a shutdown does not hold")


def no_lock(world: World) -> None:
    """Nor is there anybody who sets it again."""
    world.host.run("systemctl", "stop", "lashd-hold.path", "lashd-hold.service")
    world.host.run("rm", "-f", STAGED_LOCK)


def late_stager(world: World) -> None:
    """An ordinary service that takes 3 s to stop and stages at its end."""
    line = f"sleep 3; echo late: stages; mv {NOTE}.late {NOTE}; rm -f {STAGED_LOCK}"
    unit = f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecStop=/bin/sh -c '{line}'\n"
    world.host.run("sh", "-c", "cat > /run/systemd/system/late.service", input=unit.encode())
    world.host.run("systemctl", "daemon-reload")
    world.host.run("systemctl", "start", "late.service")
    world.host.run("mv", NOTE, f"{NOTE}.late")


def lose_state(world: World) -> None:
    world.host.run("rm", "-rf", "/var/lib/lashd")


def lock_as_somebody_else(world: World) -> None:
    no_lock(world)
    world.host.run("ostree", "admin", "lock-finalization")


def lock_by_an_empty_file(world: World) -> None:
    no_lock(world)
    world.host.run("sh", "-c", f": > {STAGED_LOCK}")


def order(world: World, hold: bool) -> None:
    """What an operator ordered about just what is staged."""
    words = f"shutdowns.give_order(Order(one.key, one.digest, {hold}, 7, 'so', 1))"
    world.host.run("python3", "-", input=(_ORDER + words).encode())


def release(world: World) -> None:
    order(world, hold=False)


def hold(world: World) -> None:
    order(world, hold=True)


def release_somebody_elses(world: World) -> None:
    release(world)
    lock_as_somebody_else(world)


def warn(world: World) -> None:
    text = b"[gate]\npolicy = 'warn'\n"
    world.host.run("sh", "-c", "mkdir -p /run/lashd/lashd.d && cat > /run/lashd/lashd.d/warn.toml", input=text)


def deploy_without_staging(world: World) -> None:
    world.host.run("ostree", "admin", "deploy", "--os=default", world.checksum)


def fetched_now(world: World) -> None:
    """All that v1 does not have came in this boot, and nobody recorded it."""
    world.online(True)
    fill(world)
    world.online(False)


def prepare_soft_reboot(world: World) -> None:
    """As libostree 2025.3 does it: what is staged is mounted on /run/nextroot, whoever holds it."""
    world.host.run("python3", "-", input=_NEXTROOT.encode())


def same_root(world: World) -> str:
    """Nothing of what was prepared is left, and what runs is the deployment that ran before."""
    left = world.host.run("sh", "-c", "mountpoint -q /run/nextroot && findmnt /run/nextroot", check=False).output
    note = world.host.run("test", "-e", "/run/ostree/nextroot-booted", check=False).status == 0
    return f"still prepared: {left}" if left or note else ""


def no_check(world: World) -> None:
    """As if lashd's drop-in for ostree's service were not there."""
    unit = "ostree-finalize-staged.service"
    change_unit(world, "ExecStop=", "ExecStop=/usr/bin/ostree admin finalize-staged", unit=unit)


def finalise_all_the_same(world: World) -> None:
    """The check before ostree's own command is gone, and a service takes the lock away after the gate has set it."""
    no_check(world)
    unit = (
        "[Unit]\nDefaultDependencies=no\nAfter=ostree-finalize-staged.service\nBefore=lashd-gate.service\n"
        "Conflicts=final.target\nBefore=final.target\n"
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
        f"ExecStop=/bin/sh -c 'echo late: unlocks; rm -f {STAGED_LOCK}'\n"
    )
    world.host.run("sh", "-c", "cat > /run/systemd/system/late.service", input=unit.encode())
    world.host.run("systemctl", "daemon-reload")
    # As on a host on which all of them were started at boot.
    world.host.run("systemctl", "start", "late.service")


_ASIDE = "/run/ostree/.staged-deployment.aside"
# All of the gate's processes at once.
_KILL = "echo 1 > /sys/fs/cgroup/system.slice/lashd-gate.service/cgroup.kill"


def behind_what_is_staged(world: World) -> None:
    """v2 is the first in the boot order, and v1 is staged once more, complete."""
    deploy_without_staging(world)
    checksum = booted_key(world).partition(".")[0]
    world.host.run("ostree", "admin", "deploy", "--stage", "--os=default", checksum)


def kill_while_aside(world: World) -> None:
    """SIGKILL for all of the gate's processes at once, as of the kernel out of memory, while ostree's note is aside."""
    behind_what_is_staged(world)
    line = f"{_GATE} & while [ ! -e {_ASIDE} ]; do kill -0 $! || exit 1; done; echo late: aside; {_KILL}"
    replace_gate(world, f"/bin/sh -c '{line.replace('$', '$$')}'")


def booted_key(world: World) -> str:
    return world.host.run("python3", "-", input=_BOOTED.encode()).output.strip()


def came_with_it(world: World) -> str:
    """What runs is what was staged, and not what was there before."""
    key = booted_key(world)
    said = json.loads(world.host.run("cat", _VERDICT).output)
    return "" if said["deployment"] == key else f"{key} is running, let through was {said}"


def change_python(world: World, line: str) -> None:
    """Do this first where the gate starts a process; its unit has less time than that may take."""
    script = f'#!/bin/sh\n{line}\nexec /usr/bin/python3 "$@"\n'.encode()
    world.host.run("sh", "-c", "cat > /var/lib/python && chmod +x /var/lib/python", input=script)
    text = b"[tools]\npython = '/var/lib/python'\n"
    world.host.run("sh", "-c", "mkdir -p /run/lashd/lashd.d && cat > /run/lashd/lashd.d/slow.toml", input=text)
    change_unit(world, "TimeoutStopSec=5")


def slow_boot_order(world: World) -> None:
    deploy_without_staging(world)
    change_python(world, "sleep 8")


def killed_boot_order(world: World) -> None:
    deploy_without_staging(world)
    change_python(world, _KILL)


def told_unfinished(world: World) -> str:
    return told_ignored(world, "the gate at the last shutdown did not come to its end")


def told_ignored(world: World, words: str = "held at the last shutdown") -> str:
    """The daemon says that the system which it held runs all the same."""
    world.wait(lambda: world.status()["blockedBy"], "lashd says what is wrong", 30)
    status = world.status()
    codes = [reason["code"] for reason in status["blockedBy"]]
    if "gate-ignored" not in codes or status["lastShutdown"]["result"] != "held":
        return f"nothing says that it was ignored: {codes}, {status['lastShutdown']}"
    found = world.host.run("journalctl", "--boot", "LASHD_ERROR=GateIgnored", "--output=cat", check=False).output
    return "" if words in found else "the journal does not say that it was ignored"


def disable(world: World) -> None:
    """Never enabled: nothing but the finalize service pulls it in."""
    place = "/etc/systemd/system/multi-user.target.wants"
    # Else the daemon stages again what earlier faults have lost, before it can be stopped.
    world.host.run("sh", "-c", f"[ ! -e {NOTE} ] || ostree admin undeploy 0; rm -f /var/lib/lashd/owed.json")
    world.host.run("sh", "-c", f"mkdir -p {place} && ln -sf /dev/null {place}/lashd-gate.service")
    world.host.reboot()
    alone(world)
    active = ("systemctl", "is-active", "lashd-gate.service")
    if world.host.run(*active, check=False).output.strip() == "active":
        raise Failed("the gate is active although it was never enabled")
    world.stage()
    world.host.run(*active)
    no_lock(world)


FAULTS = (
    Fault("gate: nothing is there, no fault", nothing, result="held"),
    Fault("gate: the lock was removed by hand", no_lock, result="held"),
    Fault("gate: killed at a random moment", kill, runs=20),
    Fault("gate: killed at once", kill_itself),
    Fault("gate: killed at once, and nobody held it before", kill_itself_unheld),
    Fault("gate: stopped past its limit", stop_for_good, runs=20),
    Fault("gate: replaced by /bin/false", false, runs=20),
    Fault("gate: replaced by /bin/false, and no hold", false_and_no_hold),
    Fault("gate: masked, and no hold", mask),
    Fault("gate: stopped by hand before", stop_by_hand),
    Fault(
        "gate: a service stages while it is being stopped",
        late_stager,
        result="held",
        runs=20,
        says=("late: stages", "Stopping lashd-gate", "held: ", "Stopped lashd-gate", "Stopping ostree-finalize-staged"),
    ),
    Fault("gate: its state is gone, nothing is there", lose_state, result="held"),
    Fault("gate: somebody else's lock, and an order to let through", release_somebody_elses, result="held"),
    Fault(
        "gate: soft reboot into what is held",
        prepare_soft_reboot,
        result="held",
        reason="soft-reboot-cancelled",
        check=same_root,
        runs=20,
        end=soft_reboot,
    ),
    Fault(
        "gate: reboot, while a soft reboot into what is held is prepared",
        prepare_soft_reboot,
        result="held",
        reason="soft-reboot-cancelled",
        check=same_root,
    ),
    Fault(
        "gate: held, and finalised all the same: it is said afterwards",
        finalise_all_the_same,
        expected=("2",),
        result="held",
        careless=True,
        check=told_ignored,
    ),
    Fault("gate: boots next without having been staged", deploy_without_staging, result="restored", stage=False),
    Fault(
        "gate: boots next without having been staged, and to put that right takes long",
        slow_boot_order,
        result="restored",
        stage=False,
    ),
    Fault(
        "gate: killed while it puts the boot order right: it is said afterwards",
        killed_boot_order,
        expected=("2",),
        result="held",
        reason="gate-not-finished",
        stage=False,
        careless=True,
        check=told_unfinished,
    ),
    Fault(
        "gate: killed while it puts the boot order right behind what has passed",
        kill_while_aside,
        result="released",
        stage=False,
        says=("late: aside",),
        check=came_with_it,
    ),
    Fault("gate: never enabled", disable, result="held", stage=False, runs=20),
    Fault("gate: ordered to let through", release, False, ("2",), "released", careless=True),
    Fault("gate: policy warn", warn, False, ("2",), "released", careless=True),
    Fault("gate: fetched in this boot and not recorded", fetched_now, False, ("2",), "released"),
)
COMPLETE = (
    Fault("gate: everything is there, killed at a random moment", kill, True, ("1", "2")),
    Fault("gate: everything is there, somebody else's lock", lock_as_somebody_else, True, result="held"),
    Fault("gate: everything is there, an empty lock file", lock_by_an_empty_file, True, result="held"),
    Fault("gate: everything is there, ordered to hold", hold, True, result="held"),
    Fault("gate: everything is there, no fault", nothing, True, ("2",), "released"),
    Fault("gate: everything was there before, its state is gone", lose_state, True, result="held"),
)


def without_check(world: World) -> None:
    no_check(world)
    false_and_no_hold(world)


def without_hold_first(world: World) -> None:
    without_check(world)
    change_unit(world, "ExecStop=", "ExecStop=/bin/sh -c 'kill -KILL $$$$'")


# What the faults above would do if a part of the gate were missing: the new system comes up without its images.
MUTANTS = (
    Fault(
        "gate: without the check before ostree's own command, and no hold: v2",
        without_check,
        False,
        ("2",),
        careless=True,
    ),
    Fault("gate: without that check, without a hold, and killed: v2", without_hold_first, False, ("2",), careless=True),
)


def tasks(scale: Scale) -> Iterator[Task]:
    for fault in (*FAULTS, *COMPLETE):
        # Several in a row: the host can often be used as the one before has left it.
        yield from sliced("gate", fault.name, scale(fault.runs), 5)
    for fault in MUTANTS:
        yield Task("gate", fault.name)


def do(world: World, task: Task) -> Done:
    fault = next(one for one in (*FAULTS, *COMPLETE, *MUTANTS) if one.name == task.name)
    row = Row(fault.name)
    for _ in range(task.times):
        row.run(lambda: once(world, fault))
    return Done([row])


def once(world: World, fault: Fault) -> str:
    """Make `fault` once, on the host as it is if that will do. Answers what did not hold."""
    if not _fits(world, fault):
        prepare(world, complete=fault.complete)
    return wrong(fault, scenario(world, fault)) or fault.check(world)


def _fits(world: World, fault: Fault) -> bool:
    try:
        return world.host.is_on() and world.version() == "1" and has_second(world) is fault.complete
    except Failed:
        return False  # what an earlier fault has left cannot be used any more


def has_second(world: World) -> bool:
    """Whether the store has images of v2 that v1 does not have."""
    index = world.host.run("cat", "/usr/lib/bootc/storage/overlay-images/images.json").output
    return world.second.bindings[1].app.image.digest in index
