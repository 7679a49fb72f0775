# SPDX-License-Identifier: Apache-2.0
"""The gate on a real sysroot and a real store, one of whose deployments plays the staged one."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from lashd.running import gate as module
from lashd.running.gate import PASSED, Gate
from lashd.steps.evidence import gather
from lashd.steps.record import Records
from lashd.steps.shutdowns import Shutdowns, boot_id
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.things.ostree.lockfile import ASIDE, LOCK, NOTE, STAGED, Lock, own_key, read_lock, write_lock
from lashd.things.ostree.nextroot import PREPARED
from lashd.things.store import Store
from lashd.words import config, files
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId
from lashd.words.model import Deployment, Order, Owed, Passed, Role, Verdict
from tests.bench.service import furnish, settings_below
from tests.conftest import REPOSITORY
from tests.support.registry import Registry
from tests.support.staged import backing, note, play_booted
from tests.things.ostree.conftest import needs_root

HOLD = REPOSITORY / "packaging/libexec/hold"

pytestmark = needs_root


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, str]]:
    """A sysroot with one deployment that binds three images, all of them in the store, and its record."""
    work = tmp_path_factory.mktemp("gate")
    settings = settings_below(work)
    with Registry() as registry:
        key = asyncio.run(furnish(registry, settings, 3))
    yield settings, key
    subprocess.run(["chattr", "-R", "-f", "-i", str(work)], check=False)


@dataclass
class Stage:
    """A host in front of a shutdown: the booted deployment, and what is staged."""

    settings: Settings
    sysroot: OstreeSysroot
    staged: Deployment
    first: list[Deployment] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.settings.paths.ostree_run

    @property
    def shutdowns(self) -> Shutdowns:
        return Shutdowns(self.settings.paths.state, self.settings.paths.run)

    @property
    def records(self) -> Records:
        return Records(self.settings.paths.state / "records")

    @property
    def passed(self) -> bool:
        path = self.settings.paths.run / PASSED
        return path.exists() and path.read_bytes() == (self.run / STAGED).read_bytes()

    def gate(self, *, since: float | None = None) -> Gate:
        return Gate(
            self.settings,
            sysroot=self.sysroot,
            since=time.time() if since is None else since,
            nextroot=self.settings.paths.root / "run/nextroot",
            put_first=self.first.append,
        )

    def end(self, **more: float) -> Verdict:
        """The shutdown, as the unit has it: the hold first, then the gate."""
        subprocess.run(["sh", HOLD, self.run, self.settings.paths.run], check=True)
        return self.gate(**more).shut_down()

    def policy(self, policy: str) -> None:
        gate = replace(self.settings.gate, policy=policy)
        self.settings = replace(self.settings, gate=gate)


@pytest.fixture
def stage(furnished: tuple[Settings, str], tmp_path: Path) -> Iterator[Stage]:
    template, _key = furnished
    for name in ("state", "run", "ostree_run", "root"):
        shutil.copytree(getattr(template.paths, name), tmp_path / name, symlinks=True)
    paths = {name: tmp_path / name for name in ("state", "run", "ostree_run", "root")}
    settings = replace(template, paths=replace(template.paths, **paths))
    sysroot = play_booted(settings, OstreeSysroot(settings).deployments()[0])
    one, two = sysroot.deployments()
    assert (one.roles, two.roles) == ({Role.STAGED}, {Role.BOOTED})
    yield Stage(settings, sysroot, one)
    shutil.rmtree(one.root, ignore_errors=True)
    Path(f"{one.root}.origin").unlink(missing_ok=True)


@pytest.fixture
def lose_image(stage: Stage) -> Iterator[Callable[[], None]]:
    """Takes the directory of one layer out of the store, until the test is over."""
    overlay = stage.settings.store / "overlay"
    layers = json.loads((stage.settings.store / "overlay-layers/layers.json").read_text())
    top = next(layer["id"] for layer in layers if layer["id"] not in {each.get("parent") for each in layers})
    yield lambda: (overlay / top).rename(overlay.parent / "lost") and None
    if (overlay.parent / "lost").exists():
        (overlay.parent / "lost").rename(overlay / top)


def lose_records(stage: Stage) -> None:
    shutil.rmtree(stage.settings.paths.state / "records")


def lock_as(stage: Stage, whose: str) -> None:
    if whose == "ours":
        write_lock(stage.run, Lock(stage.staged.key))
    elif whose == "ours, ready":
        write_lock(stage.run, Lock(stage.staged.key, ready=True))
    elif whose == "ours, of another":
        write_lock(stage.run, Lock("f" * 64 + ".0", ready=True))
    elif whose == "ours, while staging":
        write_lock(stage.run, Lock("staging"))
    elif whose == "file":
        (stage.run / LOCK).touch()
    elif whose in ("key", "key and file", *OWN_KEYS):
        (stage.run / STAGED).write_bytes(note(stage.staged.key, "bench", "'locked': <true>"))
        if whose == "key and file":
            (stage.run / LOCK).touch()
        elif whose == "own key":
            own_key(stage.run)
            write_lock(stage.run, Lock(stage.staged.key))
        elif whose == "own key, killed":
            (stage.run / NOTE).write_text(stage.staged.checksum)


OURS = ("none", "ours", "ours, ready", "ours, of another", "ours, while staging")
POLICIES = ("hold", "warn", "off")
OWN_KEYS = ("own key", "own key, killed")
FOREIGN = ("file", "key", "key and file")


@pytest.mark.parametrize(
    ("policy", "ordered", "lock", "missing"),
    [
        *itertools.product(POLICIES, ("",), (*OURS, *OWN_KEYS, *FOREIGN), (False, True)),
        *itertools.product(POLICIES, ("hold", "release", "release another"), ("ours", *OWN_KEYS, "key"), (True,)),
    ],
)
def test_the_table(
    stage: Stage, lose_image: Callable[[], None], policy: str, ordered: str, lock: str, missing: bool
) -> None:
    """What may pass, and what becomes of the locks: never a lock of somebody else's, never without being recorded."""
    stage.policy(policy)
    lock_as(stage, lock)
    if missing:
        lose_image()
    if ordered:
        key = "f" * 64 + ".0" if ordered == "release another" else stage.staged.key
        order = Order(key, stage.staged.digest or "", ordered == "hold", 7, "a reason", 1)
        stage.shutdowns.give_order(order)
    before = (stage.run / LOCK).read_bytes() if lock != "none" and (stage.run / LOCK).exists() else None

    verdict = stage.end()

    ours = lock in OURS
    if ordered in ("hold", "release"):
        wanted = ours and ordered == "release"
    else:
        wanted = ours and (policy != "hold" or not missing)
    assert verdict.result is (Passed.RELEASED if wanted else Passed.HELD)
    assert (verdict.deployment, verdict.digest) == (stage.staged.key, stage.staged.digest or "")
    assert verdict.boot == boot_id()
    assert stage.shutdowns.verdict() == verdict
    codes = [code for code, _ in verdict.reasons]
    assert ("incomplete" in codes) is (missing and policy != "off" and lock not in FOREIGN)
    assert ("ordered" in codes) is (ordered in ("hold", "release") and ours)
    assert ("foreign-lock" in codes) is (lock in FOREIGN)
    assert ("locked-key" in codes) is (lock in OWN_KEYS)
    owed = stage.shutdowns.owed()
    assert (owed is not None and owed.deployment == stage.staged.key) is (lock not in FOREIGN and policy != "off")
    assert stage.passed is wanted
    assert (stage.run / LOCK).exists() is not wanted
    if before is not None and not wanted:
        assert (stage.run / LOCK).read_bytes() == before
    assert stage.first == []


def test_a_record_is_written_before_it_passes(stage: Stage) -> None:
    """Nobody recorded what is staged, but its layers are vouched for by the record of another deployment."""
    assert stage.records.get(stage.staged.key) is None
    assert stage.end().result is Passed.RELEASED
    record = stage.records.get(stage.staged.key)
    assert record is not None
    assert len(record.images) == 3
    assert all(image.layers and image.stamps for image in record.images)


@pytest.mark.parametrize("fetched_now", [True, False])
def test_without_any_state(stage: Stage, fetched_now: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came in this boot is synced, then recorded, then let through; what was there before is held."""
    shutil.rmtree(stage.settings.paths.state)
    done: list[str] = []
    monkeypatch.setattr(files, "sync_filesystem", lambda path: done.append(f"sync {path.name}"))
    write = Records.write
    monkeypatch.setattr(Records, "write", lambda self, record: (done.append("record"), write(self, record)))
    remove = module.remove_lock
    monkeypatch.setattr(module, "remove_lock", lambda run: (done.append("unlock"), remove(run)))
    verdict = stage.end(since=0 if fetched_now else time.time())
    if fetched_now:
        assert (verdict.result, verdict.reasons) == (Passed.RELEASED, ())
        assert done == ["sync storage", "record", "unlock"]
        assert stage.end().result is Passed.RELEASED, "there is a record now"
    else:
        assert verdict.result is Passed.HELD
        assert {code for code, _ in verdict.reasons} == {"unverified"}
        assert done == []
    assert stage.shutdowns.verdict() is not None


def test_state_that_cannot_be_written(stage: Stage) -> None:
    """The promise is about images; a verdict that cannot be kept does not keep an update away."""
    shutil.rmtree(stage.settings.paths.state)
    stage.settings.paths.state.write_text("a file")
    assert stage.end().result is Passed.HELD
    assert stage.end(since=0).result is Passed.RELEASED


def test_an_origin_that_is_no_file(stage: Stage, lose_image: Callable[[], None]) -> None:
    """It is not waited for; what cannot be staged again is not owed."""
    lose_image()
    origin = Path(f"{stage.staged.root}.origin")
    origin.unlink()
    os.mkfifo(origin)
    assert stage.end().result is Passed.HELD
    assert stage.shutdowns.owed() is None


def test_what_is_owed(stage: Stage, lose_image: Callable[[], None]) -> None:
    lose_image()
    stage.end()
    owed = stage.shutdowns.owed()
    assert owed is not None
    assert (owed.deployment, owed.stateroot, owed.checksum) == (stage.staged.key, "bench", stage.staged.checksum)
    assert (owed.digest, owed.boot, owed.wasted) == (stage.staged.digest, boot_id(), 0)
    assert "container-image-reference=" in owed.origin
    assert abs(owed.since - time.time()) < 60
    # Who knew it before knows since when, and what it has cost.
    (stage.run / STAGED).write_bytes(note(stage.staged.key, "bench", "'kargs': <['a', 'b=c']>"))
    known = Owed(stage.staged.key, "bench", owed.checksum, owed.digest, "old", "another boot", 17, 2, "then")
    stage.shutdowns.owe(known)
    stage.end()
    again = stage.shutdowns.owed()
    assert again == Owed(
        *(stage.staged.key, "bench", owed.checksum, owed.digest, owed.origin, boot_id(), 17, 2, "then", ("a", "b=c")),
        owed.base,
    )
    assert len(owed.base) == 64
    # Another one took its place.
    stage.shutdowns.owe(replace(known, checksum="other", digest="sha256:other"))
    stage.end()
    other = stage.shutdowns.owed()
    assert other == replace(owed, since=other.since, kargs=("a", "b=c"))
    assert abs(other.since - time.time()) < 60


def test_released_stays_owed_until_it_has_booted(stage: Stage) -> None:
    assert stage.end().result is Passed.RELEASED
    owed = stage.shutdowns.owed()
    assert owed is not None
    assert owed.deployment == stage.staged.key


@pytest.mark.parametrize("lock", FOREIGN)
def test_what_somebody_else_holds_is_not_owed(stage: Stage, lock: str) -> None:
    lock_as(stage, lock)
    stage.end()
    assert stage.shutdowns.owed() is None


def test_policy_off_leaves_no_word_but_the_verdict(stage: Stage) -> None:
    stage.policy("off")
    lose_records(stage)
    stage.end()
    assert stage.shutdowns.owed() is None
    assert not (stage.settings.paths.state / "records").exists()


def test_another_one_is_staged_at_the_last_moment(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is let through is what was looked at, or it is looked at again."""
    looks: list[str] = []
    write = Shutdowns.write_verdict

    def stage_again(self: Shutdowns, verdict: Verdict) -> None:
        write(self, verdict)
        looks.append(verdict.result.value)
        if looks[-1:] == ["released"]:
            lock_as(stage, "key")

    monkeypatch.setattr(Shutdowns, "write_verdict", stage_again)
    verdict = stage.end()
    # All begins, and each look, with the word that it is not finished; what did not pass after all is not said to have.
    assert looks == ["held", "held", "released", "held", "held", "held"]
    assert verdict.result is Passed.HELD
    assert not stage.passed
    assert read_lock(stage.run) is not None


def test_it_changes_again_and_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Shutdowns.write_verdict
    number = itertools.count()

    def stage_again(self: Shutdowns, verdict: Verdict) -> None:
        write(self, verdict)
        (stage.run / STAGED).write_bytes(note(stage.staged.key, "bench", f"'n': <{next(number)}>"))

    monkeypatch.setattr(Shutdowns, "write_verdict", stage_again)
    assert stage.end().result is Passed.HELD
    assert not stage.passed
    assert (stage.run / LOCK).exists()


def test_a_lock_that_comes_at_the_last_moment_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Shutdowns.write_verdict

    def lock(self: Shutdowns, verdict: Verdict) -> None:
        write(self, verdict)
        # Not with the word that is left before anything is decided: that lock would be looked at.
        if verdict.result is Passed.RELEASED:
            (stage.run / LOCK).write_text("")

    monkeypatch.setattr(Shutdowns, "write_verdict", lock)
    assert stage.end().result is Passed.HELD
    assert (stage.run / LOCK).read_text() == ""
    assert not stage.passed


@pytest.mark.parametrize("content", [b"", b"\xff" * 64])
def test_what_cannot_be_understood_is_held(stage: Stage, content: bytes) -> None:
    (stage.run / STAGED).write_bytes(content)
    verdict = stage.end()
    assert verdict.result is (Passed.HELD if content else Passed.NOTHING)
    assert not (stage.settings.paths.run / PASSED).exists()
    assert (stage.run / LOCK).exists()


def test_nothing_staged(stage: Stage) -> None:
    (stage.run / STAGED).unlink()
    verdict = stage.end()
    assert (verdict.result, verdict.deployment, verdict.reasons) == (Passed.NOTHING, "", ())
    assert stage.shutdowns.verdict() == verdict
    assert not (stage.run / LOCK).exists()
    assert stage.shutdowns.owed() is None


@pytest.mark.parametrize(("boot", "stays"), [(boot_id(), False), ("another boot", True)])
def test_what_was_dropped_in_this_boot_is_not_owed(stage: Stage, boot: str, stays: bool) -> None:
    (stage.run / STAGED).unlink()
    owed = Owed("b" * 64 + ".0", "bench", "b" * 64, "", "[origin]", boot, 17)
    stage.shutdowns.owe(owed)
    assert stage.end().result is Passed.NOTHING
    assert stage.shutdowns.owed() == (owed if stays else None)


def test_what_stands_behind_it_in_the_boot_order_is_looked_at(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should ostree fail to finalise what passes, that is what boots."""
    why = ("boot-order-restored", "The running system was put back before it.")
    seen: list[tuple[bool, Verdict | None]] = []

    def check(*_: object) -> tuple[None, list[tuple[str, str]]]:
        seen.append((stage.passed, stage.shutdowns.verdict()))
        return None, [why]

    monkeypatch.setattr(module, "check_boot_order", check)
    verdict = stage.end()
    assert (verdict.result, verdict.reasons) == (Passed.RELEASED, (why,))
    assert stage.shutdowns.verdict() == verdict
    # That may take too long, and what is complete is not lost over it.
    assert seen == [(True, replace(verdict, reasons=(), decided=seen[0][1].decided))]  # type: ignore[union-attr]
    # What is not complete waits for it, and the word that it does is on disk.
    write_lock(stage.run, Lock(stage.staged.key))
    stage.shutdowns.give_order(Order(stage.staged.key, stage.staged.digest or "", True, 7, "", 1))
    assert stage.end().result is Passed.HELD
    passed, before = seen[1]
    assert not passed
    assert before is not None
    assert (before.result, before.deployment, before.reasons[0][0]) == (
        Passed.HELD,
        stage.staged.key,
        "gate-not-finished",
    )


def test_a_word_that_cannot_be_replaced_is_taken_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what has passed would be said to have booted although it was held."""
    write = Shutdowns.write_verdict

    def full(self: Shutdowns, verdict: Verdict) -> None:
        if verdict.result is Passed.RELEASED:
            raise LashdError(ErrorName.NO_SPACE)
        write(self, verdict)

    monkeypatch.setattr(Shutdowns, "write_verdict", full)
    assert stage.end().result is Passed.RELEASED
    assert stage.passed
    assert stage.shutdowns.verdict() is None


def test_a_failure_is_told_and_holds(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = stage.gate()
    monkeypatch.setattr(gate, "_decide", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        gate.shut_down()
    assert "division" in str(caught.value)
    gate.failed()
    verdict = stage.shutdowns.verdict()
    assert verdict is not None
    assert (verdict.result, verdict.deployment) == (Passed.HELD, stage.staged.key)
    assert verdict.stays == stage.sysroot.deployments()[1].name
    ((code, sentence),) = verdict.reasons
    assert code == "gate-failed"
    name = stage.staged.version or stage.staged.key[:12]
    assert sentence == (
        f"The gate failed before it had decided, so that the deployment {name} was not let through; "
        "'journalctl -b -1 -u lashd-gate' has the details. "
        "It is staged again by itself; 'lashctl discard' gives it up."
    )
    assert not stage.passed


@pytest.mark.parametrize("change", ["foreign", "off", "no-restage", "initrds"])
def test_nothing_is_promised_that_is_not_done(stage: Stage, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    if change == "foreign":
        lock_as(stage, "file")
    elif change == "initrds":
        initrds = f"'overlay-initrds': <['{'e' * 64}']>"
        (stage.run / STAGED).write_bytes(note(stage.staged.key, "bench", initrds))
    else:
        gate = {"policy": "off"} if change == "off" else {"restage": False}
        stage.settings = replace(stage.settings, gate=replace(stage.settings.gate, **gate))
    play_program(monkeypatch, stage, "stopping")
    monkeypatch.setattr(module.Judge, "judge", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.main(["stop"])
    verdict = stage.shutdowns.verdict()
    assert verdict is not None
    assert verdict.reasons[0][1].endswith("It has to be staged again by hand.")


def test_a_failure_before_the_first_look(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then ostree's own note still says what waits. What Python says is for the journal, not for people."""
    stage.shutdowns.write_verdict(Verdict(Passed.RELEASED, "another boot", 1))
    play_program(monkeypatch, stage, "stopping")
    monkeypatch.setattr(stage.sysroot, "deployments", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.main(["stop"])
    verdict = stage.shutdowns.verdict()
    assert verdict is not None
    assert (verdict.result, verdict.deployment, verdict.stays) == (Passed.HELD, stage.staged.key, "")
    assert [code for code, _ in verdict.reasons] == ["gate-failed"]
    assert "division" not in verdict.reasons[0][1]
    assert stage.staged.key[:12] in verdict.reasons[0][1]


def test_word_is_left_before_anything_can_fail(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a gate that is killed over its first look."""
    seen: list[Verdict | None] = []
    gate = stage.gate()
    for place, name in ((module.composefs, "is_host"), (module, "Judge"), (stage.sysroot, "deployments")):
        with monkeypatch.context() as patch:
            stage.shutdowns.write_verdict(Verdict(Passed.RELEASED, "another boot", 1))
            patch.setattr(place, name, lambda *_: seen.append(stage.shutdowns.verdict()) or 1 / 0)
            with pytest.raises(ZeroDivisionError):
                gate.shut_down()
    assert [(one.result, one.deployment, one.reasons[0][0]) for one in seen if one] == [
        (Passed.HELD, stage.staged.key, "gate-not-finished")
    ] * 3


def test_it_is_owed_before_it_is_looked_at(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that is ended over that leaves it owed, also where no daemon ever ran."""
    monkeypatch.setattr(module.Judge, "judge", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage.gate().shut_down()
    owed = stage.shutdowns.owed()
    assert owed is not None
    assert owed.deployment == stage.staged.key


def test_a_failure_afterwards_does_not_take_back_what_passed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = stage.gate()
    monkeypatch.setattr(module, "check_boot_order", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gate.shut_down()
    gate.failed("division by zero")
    assert stage.passed
    verdict = stage.shutdowns.verdict()
    assert verdict is not None
    assert verdict.result is Passed.RELEASED


# ---- the order in which deployments boot ----


@pytest.fixture
def installed(stage: Stage) -> Iterator[Stage]:
    """The other deployment is not staged, but the next one to boot. ostree clears the directory of the staged one."""
    sysroot, checksum = stage.settings.host.sysroot, stage.staged.checksum
    (stage.run / STAGED).unlink()
    admin = ["ostree", "admin", f"--sysroot={sysroot}"]
    subprocess.run([*admin[:2], "deploy", admin[2], "--os=bench", "--no-merge", "--retain", checksum], check=True)
    stage.sysroot = OstreeSysroot(stage.settings)
    stage.sysroot.booted = True
    assert [one.roles for one in stage.sysroot.deployments()] == [{Role.ROLLBACK}, {Role.BOOTED}]
    yield stage
    subprocess.run([*admin[:2], "undeploy", admin[2], "0"], check=True)


@pytest.mark.parametrize(
    ("policy", "ordered", "missing", "result"),
    [
        ("hold", "", False, Passed.NOTHING),
        ("hold", "", True, Passed.RESTORED),
        ("hold", "hold", False, Passed.RESTORED),
        ("hold", "release", True, Passed.NOTHING),
        ("warn", "", True, Passed.NOTHING),
        ("off", "", True, Passed.NOTHING),
    ],
)
def test_what_boots_next_without_having_been_staged(
    installed: Stage, lose_image: Callable[[], None], policy: str, ordered: str, missing: bool, result: Passed
) -> None:
    following, booted = installed.sysroot.deployments()
    installed.policy(policy)
    # Without records: it was there before, and what it needs with it.
    lose_records(installed)
    if missing:
        lose_image()
    if ordered:
        order = Order(following.key, following.digest or "", ordered == "hold", 7, "", 1)
        installed.shutdowns.give_order(order)
    verdict = installed.end()
    assert (verdict.result, verdict.deployment) == (result, following.key)
    assert installed.first == ([booted] if result is Passed.RESTORED else [])
    assert ("incomplete" in [code for code, _ in verdict.reasons]) is (missing and policy != "off")
    assert installed.shutdowns.verdict() == verdict


def test_a_boot_order_that_cannot_be_put_right_is_told(installed: Stage, lose_image: Callable[[], None]) -> None:
    lose_image()

    def fail(first: Deployment) -> None:
        raise LashdError(ErrorName.SYSROOT_LOCKED)

    gate = Gate(installed.settings, sysroot=installed.sysroot, since=0, put_first=fail)
    verdict = gate.shut_down()
    assert verdict.result is Passed.NOTHING
    assert [code for code, _ in verdict.reasons][-1] == "boot-order-not-restored"


_ENDED = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from lashd.running.gate import Gate
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.words.config import settings_from
settings = settings_from(json.loads(sys.argv[2]))
sysroot = OstreeSysroot(settings)
sysroot.booted = True
def put_first(first):
    print("at it", flush=True)
    time.sleep(60)
Gate(settings, sysroot=sysroot, put_first=put_first).shut_down()
"""


def test_a_gate_that_is_killed_leaves_word(installed: Stage, lose_image: Callable[[], None]) -> None:
    """While the boot order is put right, which takes long; the word of the shutdown before would be misleading."""
    lose_image()
    installed.shutdowns.write_verdict(Verdict(Passed.RELEASED, "another boot", 1))
    argv = [sys.executable, "-c", _ENDED, REPOSITORY / "daemon", json.dumps(asdict(installed.settings), default=str)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at it\n"
        process.kill()
    verdict = installed.shutdowns.verdict()
    assert verdict is not None
    assert (verdict.result, verdict.boot) == (Passed.HELD, boot_id())
    # Nothing is staged; it says which one the trouble is about, and not that nothing boots.
    following, booted = installed.sysroot.deployments()
    assert (verdict.deployment, verdict.stays) == (following.key, booted.name)
    ((code, sentence),) = verdict.reasons
    assert code == "gate-not-finished"
    assert "the boot order could not be put right, in time" in sentence
    assert "not let through" not in sentence


def test_there_is_time_to_put_the_boot_order_right(
    installed: Stage, lose_image: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short, what is first boots without its images; so the gate asks for time before it looks."""
    asked: list[tuple[float, int]] = []
    judged = itertools.count(1)
    judge = module.Judge.judge
    monkeypatch.setattr(module.Judge, "judge", lambda self, one: next(judged) and judge(self, one))
    monkeypatch.setattr(module, "ask_for_time", lambda seconds: asked.append((seconds, next(judged))))
    lose_image()
    assert installed.end().result is Passed.RESTORED
    assert asked == [(120, 1)]


def test_otherwise_it_has_as_long_as_its_unit_says(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ask_for_time", lambda seconds: 1 / 0)
    assert stage.end().result is Passed.RELEASED


@pytest.mark.parametrize("newer", [False, True])
def test_what_was_put_aside_comes_back(stage: Stage, lose_image: Callable[[], None], newer: bool) -> None:
    """The worker was killed while it put the boot order right behind what has passed."""

    def die(first: Deployment) -> None:
        (stage.run / STAGED).rename(stage.run / ASIDE)
        if newer:
            (stage.run / STAGED).write_bytes(b"newer")
        raise LashdError(ErrorName.HOST_COMMAND_FAILED)

    gate = Gate(stage.settings, sysroot=stage.sysroot, since=time.time(), put_first=die)
    before = (stage.run / STAGED).read_bytes()
    with pytest.raises(LashdError):
        gate._put_first(stage.staged)
    assert (stage.run / STAGED).read_bytes() == (b"newer" if newer else before)
    assert not (stage.run / ASIDE).exists()


def test_what_is_to_come_up_again_is_said(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is held, unless something else may boot: somebody put it first, and it has its images."""
    booted = stage.sysroot.deployments()[1]
    stage.shutdowns.give_order(Order(stage.staged.key, stage.staged.digest or "", True, 7, "", 1))
    assert stage.end().stays == booted.name
    other = replace(booted, stateroot="other", roles=frozenset())
    for codes, stays in (([], ""), (["boot-order-restored"], booted.name), (["boot-order-not-restored"], booted.name)):
        answer = other, [(code, "") for code in codes]
        monkeypatch.setattr(module, "check_boot_order", lambda *_, answer=answer: answer)
        assert stage.end().stays == stays
    assert stage.shutdowns.verdict() == stage.end()


def test_boot_entries_that_cannot_be_read_are_told(stage: Stage) -> None:
    loader = stage.settings.host.sysroot / "boot/loader"
    loader.rename(loader.with_name("lost"))
    try:
        verdict = stage.end()
    finally:
        loader.with_name("lost").rename(loader)
    assert verdict.result is Passed.RELEASED, "what is staged is complete"
    assert [code for code, _ in verdict.reasons] == ["unknown"]


# ---- soft reboot ----


@pytest.mark.parametrize(
    ("policy", "target", "missing", "taken"),
    [
        ("hold", "staged", True, True),
        ("hold", "staged", False, False),
        ("hold", "booted", True, False),
        ("hold", "nowhere", False, True),
        ("warn", "staged", True, False),
        ("off", "staged", True, False),
        ("off", "nowhere", True, False),
    ],
)
def test_a_soft_reboot_goes_only_where_a_reboot_may(
    stage: Stage, lose_image: Callable[[], None], policy: str, target: str, missing: bool, taken: bool
) -> None:
    stage.policy(policy)
    if missing:
        lose_image()
    staged, booted = stage.sysroot.deployments()
    root = {"staged": staged.root, "booted": booted.root, "nowhere": stage.run}[target]
    (stage.run / PREPARED).write_bytes(backing(root))
    verdict = stage.end()
    assert (stage.run / PREPARED).exists() is not taken
    assert ("soft-reboot-cancelled" in [code for code, _ in verdict.reasons]) is taken


# ---- the program ----


@pytest.mark.parametrize("program", ["gate", "activate"])
def test_it_loads_little(program: str) -> None:
    """Loading takes longer than the work, while the whole system waits."""
    script = f"import sys, lashd.running.{program}; print(*sys.modules)"
    argv = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY / 'daemon')!r}); {script}"]
    loaded = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    heavy = {"pydantic", "asyncio", "argparse", "subprocess", "tarfile", "tempfile", "logging", "ssl"}
    assert heavy & set(loaded) == set()


def test_outside_of_a_shutdown_nothing_is_decided(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(module, "Gate", lambda *_: 1 / 0)
    monkeypatch.setattr(module, "system_state", lambda: "running")
    assert module.main(["stop"]) == 0
    assert "The system is running" in capsys.readouterr().out
    assert module.main([]) == 2
    assert module.main(["start"]) == 2


def play_program(monkeypatch: pytest.MonkeyPatch, stage: Stage, *states: str) -> list[float]:
    """Let the program work on `stage` while systemd answers with one of `states` after the other; answers its waits."""
    answers, waits = iter(states), list[float]()
    monkeypatch.setattr(module, "system_state", lambda: next(answers))
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(module, "load_or_default", lambda say: stage.settings)
    monkeypatch.setattr(module, "Gate", lambda settings: Gate(settings, sysroot=stage.sysroot, since=0))
    return waits


def test_systemd_may_be_too_busy_to_answer_at_once(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    waits = play_program(monkeypatch, stage, "", "stopping")
    assert module.main(["stop"]) == 0
    assert waits == [1]
    assert stage.passed


def test_without_an_answer_nothing_passes_and_that_is_told(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    play_program(monkeypatch, stage, "", "stopping")
    monkeypatch.setattr(module, "_PATIENCE", 0)
    assert module.main(["stop"]) == 1
    assert not stage.passed
    verdict = stage.shutdowns.verdict()
    assert verdict is not None
    assert (verdict.result, [code for code, _ in verdict.reasons]) == (Passed.HELD, ["gate-failed"])


@pytest.mark.parametrize(
    "error",
    [
        LashdError(ErrorName.INVALID_ARGUMENT, "The settings are broken."),
        ValueError("Exceeds the limit (4300 digits) for integer string conversion"),
        RecursionError("too deep"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_settings_that_cannot_be_read_hold(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, capsys, error: Exception
) -> None:
    used: list[Settings] = []

    class Seen(Gate):
        def __init__(self, settings: Settings) -> None:
            used.append(settings)
            super().__init__(stage.settings, sysroot=stage.sysroot, since=0)

    def broken(directories: object) -> Settings:
        raise error

    monkeypatch.setattr(module, "system_state", lambda: "stopping")
    monkeypatch.setattr(config, "load", broken)
    monkeypatch.setattr(module, "Gate", Seen)
    assert module.main(["stop"]) == 0
    assert used == [Settings()]
    said = capsys.readouterr().out
    assert str(error) in said
    assert "The settings that lashd comes with" in said
    # Where the journal listens it is told there, and nowhere else.
    sent: list[dict[str, str]] = []
    monkeypatch.setattr(module.journal, "tell", lambda stream, said, fields, **_: not sent.append(fields))
    assert module.main(["stop"]) == 0
    assert sent[0] == {"MESSAGE_ID": MessageId.SETTINGS_BROKEN.value}
    assert str(error) not in capsys.readouterr().out


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, dict[str, str]]]:
    """What goes to the journal with fields: sentence, priority, fields."""
    found: list[tuple[str, int, dict[str, str]]] = []

    def tell(stream: object, sentence: str, fields: dict[str, str], *, priority: int, identifier: str) -> bool:
        found.append((sentence, priority, fields))
        return identifier == "lashd-gate"

    monkeypatch.setattr(module.journal, "tell", tell)
    return found


@pytest.mark.parametrize("lost", [True, False])
def test_what_it_came_to_is_told_with_an_id(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, lose_image, entries, capsys, *, lost: bool
) -> None:
    if lost:
        lose_image()
    play_program(monkeypatch, stage, "stopping")
    assert module.main(["stop"]) == 0
    result, message, level = ("held", "GATE_HELD", 4) if lost else ("released", "GATE_PASSED", 6)
    about = {"LASHD_DEPLOYMENT": stage.staged.key, "LASHD_DIGEST": stage.staged.digest}
    fields = {"MESSAGE_ID": MessageId[message].value, **{key: value for key, value in about.items() if value}}
    assert entries == [(f"{result}: {stage.staged.key}", level, fields)]
    # The reasons follow as ever, and are not said twice.
    said = capsys.readouterr().out
    assert "released" not in said
    assert bool(said) is lost


def test_a_gate_that_fails_is_told_with_an_id(monkeypatch: pytest.MonkeyPatch, stage: Stage, entries) -> None:
    play_program(monkeypatch, stage, "", "stopping")
    monkeypatch.setattr(module, "_PATIENCE", 0)
    assert module.main(["stop"]) == 1
    ((_, _, fields),) = entries
    assert (fields["MESSAGE_ID"], fields["LASHD_ERROR"]) == (MessageId.GATE_HELD, "Internal")


def test_when_the_system_was_booted() -> None:
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert time.time() - uptime - 2 < module.booted_at() < time.time()


async def test_it_starts_no_process(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["sh", HOLD, stage.run, stage.settings.paths.run], check=True)
    for name in ("Popen", "run"):
        monkeypatch.setattr(subprocess, name, lambda *_, **__: 1 / 0)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", lambda *_, **__: 1 / 0)
    assert stage.gate().shut_down().result is Passed.RELEASED


def test_the_daemon_and_the_gate_see_the_same(stage: Stage) -> None:
    store = Store(stage.settings.store, stage.settings.store_run, stage.settings.host.sysroot)
    evidence = gather(stage.staged, store, stage.records, since=time.time(), now=time.time())
    assert evidence.decision.release
    assert not evidence.unsynced
