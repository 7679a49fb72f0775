# SPDX-License-Identifier: Apache-2.0
"""The keeper on real files: a sysroot that ostree wrote, what is staged as libostree notes it, the real watcher.

Jobs are noted instead of run: binding, releasing and staging again on a booted host are in tests/host/test_keeper.py.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from lashd.running.jobs import Initiator, Job, Jobs, Outcome
from lashd.running.keeper import Keeper
from lashd.running.view import View
from lashd.steps.record import Records
from lashd.steps.shutdowns import Shutdowns
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.ostree.lockfile import LOCK, STAGED, Lock, read_lock, write_lock
from lashd.things.primary import PrimaryStore
from lashd.things.store import Store
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Discovery, Order, Owed, Passed, Verdict
from tests.support.told import told
from tests.things.ostree.conftest import Host, host, needs_root
from tests.things.ostree.images import BASE, Entry, file, folder, symlink, write_image
from tests.things.ostree.test_deployments import write_variant

pytestmark = needs_root
__all__ = ["host"]

UNIT = "[Container]\nImage=example.com/app:1\n"
BINDS: tuple[Entry, ...] = (
    folder("usr/lib/bootc"),
    folder("usr/lib/bootc/bound-images.d"),
    folder("usr/share/containers"),
    folder("usr/share/containers/systemd"),
    file("usr/share/containers/systemd/app.container", UNIT),
    symlink("usr/lib/bootc/bound-images.d/app.container", "/usr/share/containers/systemd/app.container"),
)


@dataclass
class Noted:
    """What the keeper asked for; each job ends as `error` says."""

    jobs: Jobs
    asked: list[tuple[str, str]] = field(default_factory=list)
    error: LashdError | None = None
    seconds: float = 0.01

    def keep_bound(self, deployment: Deployment) -> Job:
        return self._start("bind", deployment.key, {"deployment": deployment.key})

    def bring_back(self, owed: Owed) -> Job:
        return self._start("restage", owed.deployment, {})

    def _start(self, kind: str, key: str, options: dict[str, Any]) -> Job:
        self.asked.append((kind, key))

        async def work(job: Job) -> Outcome:
            await asyncio.sleep(self.seconds)
            if self.error:
                raise self.error
            return Outcome(False)

        return self.jobs.start(kind, work, Initiator(0), options, yields=True)[0]


class Bench:
    """A host with a booted deployment that binds nothing, one to stage that binds an image, and the keeper's parts."""

    def __init__(self, host: Host, boot: str = "this-boot", **gate: Any) -> None:
        changed = replace(host.settings.gate, **{"retry_seconds": 0.4} | gate)
        self.settings: Settings = replace(host.settings, gate=changed)
        self.run = self.settings.paths.ostree_run
        self.backend = OstreeBackend(self.settings)
        self.backend._sysroot.booted = True
        store = Store(self.settings.store, self.settings.store_run, self.settings.host.sysroot)
        records = Records(self.settings.paths.state / "records")
        self.shutdowns = Shutdowns(self.settings.paths.state, self.settings.paths.run)
        self.jobs = Jobs()
        self.hands = Noted(self.jobs)
        self.told = 0
        view = View(self.backend, store, records, PrimaryStore(self.settings.paths.root))
        parts = (self.settings, self.backend, view, self.jobs, self.shutdowns, self.hands, self._tell)
        self.keeper = Keeper(*parts, boot=boot)
        self.jobs.subscribe(self)

    def _tell(self) -> None:
        self.told += 1

    def job_done(self, job: Job) -> None:
        self.keeper.job_done(job)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name in ("job_new", "job_changed", "job_removed"):
            return lambda *_: None
        raise AttributeError(name)

    def lock(self) -> Lock | None:
        return read_lock(self.run)


@asynccontextmanager
async def keeping(host: Host, **options: Any) -> AsyncIterator[Bench]:
    bench = Bench(host, **options)
    await bench.keeper.start()
    bench.keeper.known()
    try:
        yield bench
    finally:
        await bench.keeper.stop()
        await bench.jobs.stop()


async def until(what: Callable[[], object], seconds: float = 3.0) -> float:
    """Wait until `what` is true; answers how long that took."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds, "it does not happen"
        await asyncio.sleep(0.005)
    return time.monotonic() - start


@dataclass
class Staged:
    keys: list[str]
    stage: Callable[..., None]


async def prepare(host: Host) -> Staged:
    """Boot the first deployment; answers what can be staged, and a function that does it as libostree would."""
    write_image(host.layout, "v1", [BASE, [file("usr/version", "1")]], version="1")
    old = await host.backend.stage(
        await host.backend.fetch(host.image("v1"), expected_digest=None, report=lambda _: None), host.image("v1")
    )
    root = host.settings.paths.root
    (root / "run").mkdir(exist_ok=True)
    found = old.root.stat()
    write_variant(
        root / "run/ostree-booted",
        f"{{'backing-root-device-inode': <(uint64 {found.st_dev}, uint64 {found.st_ino})>}}",
    )
    (root / "boot").symlink_to(host.sysroot / "boot")
    keys = []
    for letter in "bc":
        key = f"{letter * 64}.0"
        deployed = old.root.with_name(key)
        for entry in BINDS:
            path = deployed / entry.name
            if entry.type_ == b"5":
                path.mkdir(parents=True)
            elif entry.link:
                path.symlink_to(entry.link)
            else:
                path.write_bytes(entry.data)
        deployed.with_name(f"{key}.origin").write_text(f"[origin]\nrefspec=os/{letter}\n")
        keys.append(key)
    run = host.settings.paths.ostree_run

    def stage(key: str, *, extra: str = "") -> None:
        partial = run / ".new"
        target = f"'target': <{{'name': <'{key}'>, 'osname': <'default'>, 'bootcsum': <'00'>}}>"
        write_variant(partial, f"{{{target}{extra}}}")
        partial.rename(run / STAGED)

    return Staged(keys, stage)


async def test_noticed_held_remembered_and_bound(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    staged = await prepare(host)
    key, other = staged.keys
    async with keeping(host) as bench:
        await asyncio.sleep(0.2)
        assert (bench.lock(), bench.hands.asked) == (None, [])
        staged.stage(key, extra=", 'kargs': <['root=a', 'quiet']>")
        at = (bench.run / STAGED).stat().st_ctime
        await until(bench.lock)
        assert (bench.run / LOCK).stat().st_ctime - at < 0.2
        assert bench.lock() == Lock(key)
        await until(bench.shutdowns.owed)
        owed = bench.shutdowns.owed()
        assert owed is not None
        assert (owed.deployment, owed.boot, owed.wasted) == (key, "this-boot", 0)
        assert (owed.origin, owed.kargs) == ("[origin]\nrefspec=os/b\n", ("root=a", "quiet"))
        await until(lambda: bench.hands.asked == [("bind", key)])
        # Its root is gone when it is lost, so what it binds is noted as well, once it was read.
        await until(lambda: (bench.shutdowns.owed() or owed).binds == ("example.com/app:1",))
        # The same for one that replaces it, and nothing waits for the first one's next try.
        staged.stage(other)
        await until(lambda: bench.lock() == Lock(other))
        await until(lambda: ("bind", other) in bench.hands.asked, 0.35)
        await until(lambda: (bench.shutdowns.owed() or owed).deployment == other)
        # Replacing deletes the lock, late.
        (bench.run / LOCK).unlink()
        assert await until(lambda: bench.lock() == Lock(other)) < 0.5
        # Dropped by somebody: neither it nor a hold comes back.
        (bench.run / STAGED).unlink()
        (bench.run / LOCK).unlink()
        await until(lambda: bench.shutdowns.owed() is None)
        await until(lambda: f"{other} is not waited for any more: somebody dropped it" in caplog.text)
        assert bench.lock() is None
        assert bench.told > 5


async def test_what_was_replaced_is_not_bound_any_further(host: Host) -> None:
    staged = await prepare(host)
    key, other = staged.keys
    async with keeping(host, retry_seconds=60) as bench:
        bench.hands.seconds = 60
        staged.stage(key)
        await until(lambda: bench.hands.asked == [("bind", key)])
        (first,) = bench.jobs.list()
        staged.stage(other)
        await until(lambda: bench.hands.asked == [("bind", key), ("bind", other)], 1)
        second = bench.jobs.list()[1]
        assert (first.result, first.error_name, second.active) == ("cancelled", "Cancelled", True)
        # Dropped, and nothing came instead: that is certain after a moment.
        (bench.run / STAGED).unlink()
        (bench.run / LOCK).unlink()
        await asyncio.sleep(0.3)
        assert second.active
        await until(lambda: second.result == "cancelled")
        await asyncio.sleep(0.2)
        assert len(bench.hands.asked) == 2


async def test_what_a_person_binds_goes_on_whatever_is_staged(host: Host) -> None:
    staged = await prepare(host)
    key, other = staged.keys
    async with keeping(host) as bench:
        bench.hands.seconds = 1.0
        staged.stage(key)
        await until(lambda: bench.hands.asked == [("bind", key)])
        # It was the keeper's own, and then somebody asked for the same.
        options = {"deployment": key, "initiator": "lashctl"}
        job, joined = bench.jobs.start("bind", never, Initiator(1000), options)
        assert joined
        staged.stage(other)
        await until(lambda: bench.lock() == Lock(other))
        await until(lambda: not job.active)
        assert job.result == "unchanged"
        await until(lambda: bench.hands.asked == [("bind", key), ("bind", other)])


async def never(job: Job) -> Outcome:
    raise AssertionError


async def test_a_lock_of_somebody_else_stays_as_it_is(host: Host) -> None:
    staged = await prepare(host)
    key, other = staged.keys
    async with keeping(host) as bench:
        (bench.run / LOCK).write_text("not ours")
        before = (bench.run / LOCK).stat()
        staged.stage(key)
        await until(lambda: bench.hands.asked)
        staged.stage(other)
        await until(lambda: ("bind", other) in bench.hands.asked)
        os.utime(bench.run)
        await asyncio.sleep(0.3)
        assert (bench.run / LOCK).read_text() == "not ours"
        assert (bench.run / LOCK).stat().st_ctime_ns == before.st_ctime_ns
        # Once it is gone, ours is set.
        (bench.run / LOCK).unlink()
        await until(lambda: bench.lock() == Lock(other))
        # By the key in ostree's own file: nothing is done to that either, and there is no file of ours.
        (bench.run / LOCK).unlink()
        staged.stage(key, extra=", 'locked': <true>")
        (bench.run / LOCK).unlink(missing_ok=True)
        await asyncio.sleep(0.3)
        assert bench.lock() is None
        # Whoever locks it wants it to be lost at a reboot: it is not staged again.
        assert bench.shutdowns.owed() is None


async def test_declared_and_then_not_complete_any_more(host: Host) -> None:
    staged = await prepare(host)
    key, _ = staged.keys
    async with keeping(host) as bench:
        staged.stage(key)
        await until(bench.lock)
        await until(lambda: bench.hands.asked and bench.jobs.active is None)
        write_lock(bench.run, Lock(key, ready=True))
        await until(lambda: bench.lock() == Lock(key))


async def test_local_changes_after_it_was_declared(host: Host) -> None:
    staged = await prepare(host)
    key, _ = staged.keys
    (booted,) = host.sysroot.glob("ostree/deploy/default/deploy/*/etc")
    old = booted.parent
    subprocess.run(["chattr", "-i", old], check=True)
    (old / "usr/etc").mkdir(exist_ok=True)
    units = old.parent / key / "usr/share/containers/systemd"
    (units / "app.container").rename(units / "other.container")
    bound = old.parent / key / "usr/lib/bootc/bound-images.d/app.container"
    bound.unlink()
    merges = f", 'merge-deployment': <{{'name': <'{old.name}'>, 'osname': <'default'>, 'bootcsum': <'00'>}}>"
    async with keeping(host, poll_seconds=60) as bench:
        staged.stage(key, extra=merges)
        await until(lambda: bench.lock() == Lock(key))
        # It binds nothing, so it is complete, and whoever binds it declares it.
        await until(lambda: bench.hands.asked and bench.jobs.active is None)
        write_lock(bench.run, Lock(key, ready=True))
        bench.hands.asked.clear()
        await asyncio.sleep(0.3)
        assert (bench.lock(), bench.hands.asked) == (Lock(key, ready=True), [])
        bound.symlink_to("/etc/containers/systemd/below/app.container")
        unit = old / "etc/containers/systemd/below/app.container"
        unit.parent.mkdir(parents=True)
        unit.write_text(UNIT)
        assert await until(lambda: bench.lock() == Lock(key)) < 1
        await until(lambda: bench.hands.asked == [("bind", key)])
        # In a directory that was not there when the watching began.
        bound.unlink()
        unit.unlink()
        await until(lambda: bench.keeper._lookout._view.discovery(bench.backend.deployments()[0]) == Discovery(), 1)


async def test_orders(host: Host) -> None:
    staged = await prepare(host)
    key, other = staged.keys
    async with keeping(host) as bench:
        staged.stage(key)
        await until(bench.lock)
        # Let through as it is: what lacks is bound all the same, and it is not held again.
        bench.shutdowns.give_order(Order(key, "", False, 0, "", 1))
        write_lock(bench.run, Lock(key, ready=True))
        await until(lambda: len(bench.hands.asked) > 1)
        await asyncio.sleep(0.2)
        assert bench.lock() == Lock(key, ready=True)
        # Another one is staged: the order was not about that.
        staged.stage(other)
        await until(lambda: bench.lock() == Lock(other))
        await until(lambda: bench.shutdowns.order() is None)
        # Held back by order, whatever it is.
        bench.shutdowns.give_order(Order(other, "", True, 0, "", 1))
        write_lock(bench.run, Lock(other, ready=True))
        await until(lambda: bench.lock() == Lock(other))


async def test_retries_grow_and_say_when(host: Host) -> None:
    staged = await prepare(host)
    async with keeping(host, retry_seconds=0.2) as bench:
        bench.hands.error = LashdError(ErrorName.NETWORK_UNAVAILABLE)
        staged.stage(staged.keys[0])
        times = []
        for count in (1, 2, 3, 4):
            await until(lambda count=count: len(bench.hands.asked) >= count, 5)  # type: ignore[misc]
            times.append(time.monotonic())
        await until(lambda: bench.keeper.next_try)
        assert time.time() <= bench.keeper.next_try + 1 <= time.time() + 4
    waits = [later - sooner for sooner, later in itertools.pairwise(times)]
    for wait, whole in zip(waits, (0.2, 0.4, 0.8), strict=True):
        assert 0.75 * whole < wait < whole + 0.3, waits


async def test_lost_at_a_reboot_counted_once_and_staged_again(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    staged = await prepare(host)
    key = staged.keys[0]
    async with keeping(host, boot="first") as bench:
        staged.stage(key)
        await until(bench.shutdowns.owed)
    (bench.run / STAGED).unlink()
    (bench.run / LOCK).unlink()
    for _ in range(2):  # a daemon that is started twice in one boot counts once
        async with keeping(host, boot="second") as bench:
            bench.hands.error = LashdError(ErrorName.NOT_FOUND)
            await until(lambda bench=bench: bench.hands.asked)  # type: ignore[misc]
            assert bench.hands.asked[0] == ("restage", key)
            owed = bench.shutdowns.owed()
            assert owed is not None
            assert (owed.wasted, owed.boot) == (1, "first")
    assert told(caplog) == [{"NAME": "REBOOT_WASTED", "LASHD_DEPLOYMENT": key}]
    since = owed.since
    async with keeping(host, boot="second") as bench:
        staged.stage(key.replace(".0", ".0"))
        await until(lambda: (bench.shutdowns.owed() or owed).boot == "second")
        owed = bench.shutdowns.owed()
        assert owed is not None
        assert (owed.wasted, owed.since) == (1, since)
    # Dropped, and the host is shut down at once: stopping looks once more.
    async with keeping(host, boot="second") as bench:
        (bench.run / STAGED).unlink()
    assert bench.shutdowns.owed() is None
    # It booted in the end.
    runs = bench.backend.deployments()[0].checksum
    bench.shutdowns.owe(replace(owed, checksum=runs, deployment="x", base="f" * 64))
    async with keeping(host, boot="third") as bench:
        await until(lambda: bench.shutdowns.owed() is None)
        assert bench.hands.asked == []


async def test_policies(host: Host) -> None:
    staged = await prepare(host)
    key, other = staged.keys
    async with keeping(host, policy="warn") as bench:
        staged.stage(key)
        await until(lambda: bench.hands.asked == [("bind", key)])
        assert bench.lock() is None
        assert bench.shutdowns.owed() is not None
    async with keeping(host, policy="off") as bench:
        staged.stage(other)
        await asyncio.sleep(0.3)
        assert (bench.lock(), bench.hands.asked) == (None, [])
    async with keeping(host, policy="off", boot="later") as bench:
        (bench.run / STAGED).unlink()
        await asyncio.sleep(0.3)
        assert bench.hands.asked == []


async def test_held_before_anything_else_at_the_start(host: Host) -> None:
    staged = await prepare(host)
    staged.stage(staged.keys[0])
    bench = Bench(host)
    await bench.keeper.start()
    held = bench.lock()
    await bench.keeper.stop()
    assert held == Lock(staged.keys[0])


async def test_gate_ignored_is_said_loudly(host: Host, caplog: Any) -> None:
    await prepare(host)
    booted = Bench(host).backend.deployments()[0].key
    shutdowns = Bench(host).shutdowns
    shutdowns.write_verdict(Verdict(Passed.HELD, "boot-before", 1, booted))
    async with keeping(host):
        assert [record.levelname for record in caplog.records if booted in record.message] == ["ERROR"]
        (entry,) = told(caplog)
        assert (entry["NAME"], entry["LASHD_DEPLOYMENT"]) == ("GATE_IGNORED", booted)


async def test_without_inotify_the_poll_finds_it(host: Host, monkeypatch: Any) -> None:
    staged = await prepare(host)
    monkeypatch.setattr("lashd.things.inotify.Watcher.renew", lambda self: None)
    async with keeping(host, poll_seconds=0.3) as bench:
        staged.stage(staged.keys[0])
        await until(bench.lock)
