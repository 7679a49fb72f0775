# SPDX-License-Identifier: Apache-2.0
"""The gate on a host of bootc's composefs backend: what passes there, what is held, and what an operator may say."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lashd.running import composefs as module
from lashd.running import gate
from lashd.running.gate import PASSED, Gate
from lashd.steps.shutdowns import Shutdowns, boot_id
from lashd.things import composefs
from lashd.things.bootc.deployments import ComposefsSysroot
from lashd.things.composefs import STAGED, read_note
from lashd.words import config, files
from lashd.words.config import PathSettings, Settings
from lashd.words.model import Order, Passed, Role, Verdict
from tests.conftest import REPOSITORY

HOLD, CHECK = (REPOSITORY / "packaging/libexec" / name for name in ("hold", "passed"))
ID, OTHER, RUNNING = "a1" * 64, "b2" * 64, "c3" * 64
KEY = f"{ID}.0"


def text(deployment: str = ID, *, locked: bool = False) -> bytes:
    return json.dumps({"depl_id": deployment, "finalization_locked": locked}, separators=(",", ":")).encode()


NO_FLAG = b'{"depl_id":"%s"}' % ID.encode()


@dataclass
class Host:
    settings: Settings

    @property
    def run(self) -> Path:
        return self.settings.paths.composefs_run

    @property
    def shutdowns(self) -> Shutdowns:
        return Shutdowns(self.settings.paths.state, self.settings.paths.run)

    def stage(self, content: bytes) -> None:
        (self.run / "bootc").write_bytes(content)
        (self.run / "bootc").rename(self.run / STAGED)

    def policy(self, policy: str) -> None:
        self.settings = replace(self.settings, gate=replace(self.settings.gate, policy=policy))

    def hold(self) -> None:
        paths = self.settings.paths
        subprocess.run(["sh", HOLD, paths.ostree_run, paths.run, self.run], check=False)

    def gate(self) -> Gate:
        return Gate(self.settings, since=time.time(), nextroot=self.settings.paths.root / "run/nextroot")

    def end(self) -> Verdict:
        """The shutdown, as the unit has it: the hold first, then the gate."""
        self.hold()
        return self.gate().shut_down()

    def finalised(self) -> bool:
        """As bootc-finalize-staged.service has it: the check, then bootc's own command, which heeds the flag."""
        if subprocess.run(["sh", CHECK, self.run, self.settings.paths.run], stdout=subprocess.DEVNULL).returncode:
            return False
        try:
            return not json.loads((self.run / STAGED).read_bytes()).get("finalization_locked", False)
        except ValueError:
            return False


@pytest.fixture
def host(tmp_path: Path) -> Host:
    names = ("state", "run", "ostree_run", "composefs_run", "root")
    for name in (*names, "root/proc"):
        (tmp_path / name).mkdir()
    (tmp_path / "root/proc/cmdline").write_text(f"root=UUID=1 composefs={RUNNING} rw\n")
    return Host(replace(Settings(), paths=PathSettings(**{name: tmp_path / name for name in names})))


@pytest.mark.parametrize(
    ("policy", "ordered", "staged", "held_before"),
    [
        *itertools.product(
            ("hold", "warn", "off"),
            ("", "hold", "release", "release another"),
            (text(), text(locked=True), NO_FLAG),
            (True, False),
        )
    ],
)
def test_the_table(host: Host, policy: str, ordered: str, staged: bytes, held_before: bool) -> None:
    """Nothing is released for being complete; a lock of somebody else's stays, whatever is ordered."""
    host.policy(policy)
    host.stage(staged)
    if ordered:
        about = f"{OTHER}.0" if ordered == "release another" else KEY
        host.shutdowns.give_order(Order(about, "", ordered == "hold", 7, "a reason", 1))
    foreign = staged == text(locked=True)
    wanted = not foreign and {"hold": False, "release": True}.get(ordered, policy != "hold")

    verdict = host.end() if held_before else host.gate().shut_down()

    assert (verdict.result, verdict.deployment) == (Passed.RELEASED if wanted else Passed.HELD, KEY)
    assert verdict.boot == boot_id()
    assert host.shutdowns.verdict() == verdict
    codes = [code for code, _ in verdict.reasons]
    assert ("foreign-lock" in codes) is foreign
    assert ("ordered" in codes) is (ordered in ("hold", "release") and not foreign)
    flagless = staged == NO_FLAG and not wanted
    assert ("unread" in codes) is (policy != "off" and not foreign)
    assert ("unsupported" in codes) is flagless
    assert host.finalised() is wanted
    if wanted or staged == NO_FLAG or foreign:
        assert (host.run / STAGED).read_bytes() == staged, "as bootc wrote it"
    else:
        note = read_note(host.run)
        assert note is not None
        assert (note.locked, note.ours) == (True, True)


def test_it_says_what_is_so_and_what_to_do(host: Host) -> None:
    host.stage(text())
    ((_, sentence),) = host.end().reasons
    assert ID in sentence
    assert "was not read" in sentence
    assert f"'/usr/lib/lashd/gate release {ID}'" in sentence
    assert 'policy = "warn"' in sentence
    assert sentence.endswith(".")


def test_nothing_staged(host: Host) -> None:
    verdict = host.end()
    assert (verdict.result, verdict.deployment, verdict.reasons) == (Passed.NOTHING, "", ())
    assert host.shutdowns.verdict() == verdict


@pytest.mark.parametrize("policy", ["hold", "warn", "off"])
def test_what_is_not_understood_is_held(host: Host, policy: str) -> None:
    host.policy(policy)
    host.stage(text()[:-1])
    verdict = host.end()
    assert (verdict.result, [code for code, _ in verdict.reasons]) == (Passed.HELD, ["unknown"])
    assert (host.run / STAGED).read_bytes() == text()[:-1]
    assert not host.finalised()


def test_the_verdict_comes_first(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.policy("warn")
    host.stage(text())
    done: list[str] = []
    write, release = Shutdowns.write_verdict, module.release
    monkeypatch.setattr(
        Shutdowns, "write_verdict", lambda self, verdict: (done.append(verdict.result), write(self, verdict))
    )
    monkeypatch.setattr(module, "release", lambda *both: (done.append("unlock"), release(*both))[1])
    assert host.end().result is Passed.RELEASED
    assert done == ["held", "released", "unlock"]


def test_an_end_at_any_write_leaves_it_held(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the last step of a release, whichever it is."""

    class Killed(BaseException):
        pass

    host.policy("warn")
    calls = 0

    def deadly(function):
        def called(*arguments, **more):
            nonlocal calls
            calls += 1
            if calls == deadline:
                raise Killed
            return function(*arguments, **more)

        return called

    monkeypatch.setattr(files, "write_durably", deadly(files.write_durably))
    monkeypatch.setattr(composefs, "_exchanged", deadly(composefs._exchanged))
    for deadline in range(1, 20):
        calls = 0
        host.stage(text())
        host.hold()
        try:
            host.gate().shut_down()
        except Killed:
            assert not host.finalised(), deadline
        else:
            break
    assert deadline > 3
    assert host.finalised()


def test_what_is_staged_meanwhile_is_looked_at(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order is for one deployment; another that comes while it is being let through is not."""
    host.stage(text())
    host.shutdowns.give_order(Order(KEY, "", False, 0, "", 1))
    release = module.release

    def late(run: Path, note: composefs.Note) -> bool:
        host.stage(text(OTHER))
        return release(run, note)

    monkeypatch.setattr(module, "release", late)
    verdict = host.end()
    assert (verdict.result, verdict.deployment) == (Passed.HELD, f"{OTHER}.0")
    assert not (host.settings.paths.run / PASSED).exists()
    assert not host.finalised()


def test_it_changes_again_and_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.policy("warn")
    host.stage(text())
    monkeypatch.setattr(module, "release", lambda *_: False)
    verdict = host.end()
    assert (verdict.result, [code for code, _ in verdict.reasons]) == (Passed.HELD, ["unknown"])
    assert not host.finalised()


@pytest.mark.parametrize(("policy", "taken"), [("hold", True), ("warn", False)])
def test_a_soft_reboot_goes_with_what_is_held(
    host: Host, monkeypatch: pytest.MonkeyPatch, policy: str, taken: bool
) -> None:
    host.policy(policy)
    host.stage(text())
    down: list[Path] = []
    monkeypatch.setattr(module, "mounted", lambda nextroot: True)
    monkeypatch.setattr(module, "take_down", lambda run, nextroot: down.append(nextroot))
    verdict = host.end()
    assert down == ([host.settings.paths.root / "run/nextroot"] if taken else [])
    assert ("soft-reboot-cancelled" in [code for code, _ in verdict.reasons]) is taken


@pytest.mark.parametrize(("policy", "taken"), [("hold", True), ("warn", False)])
def test_a_soft_reboot_to_what_was_never_staged(
    host: Host, monkeypatch: pytest.MonkeyPatch, policy: str, taken: bool
) -> None:
    """As 'bootc rollback --soft-reboot' prepares it."""
    host.policy(policy)
    down: list[Path] = []
    monkeypatch.setattr(module, "mounted", lambda nextroot: True)
    monkeypatch.setattr(module, "take_down", lambda run, nextroot: down.append(nextroot))
    verdict = host.end()
    assert verdict.result is Passed.NOTHING
    assert (len(down), "soft-reboot-cancelled" in [code for code, _ in verdict.reasons]) == (taken, taken)


def test_after_a_soft_reboot(host: Host) -> None:
    """Into what was staged: the note and the kernel's command line are still there, and it is not staged."""
    host.stage(text())
    (host.settings.paths.root / "proc/1").mkdir()
    (host.settings.paths.root / "proc/1/mountinfo").write_text(
        f"1 0 0:1 / / rw - rootfs rootfs rw\n27 1 0:30 / / ro,relatime shared:1 - overlay composefs:{ID} ro\n"
        "28 27 0:31 / /etc rw - ext4 /dev/vda rw\n"
    )
    verdict = host.end()
    assert (verdict.result, verdict.deployment) == (Passed.NOTHING, "")
    (booted,) = ComposefsSysroot(host.settings).deployments()
    assert (booted.key, booted.roles) == (KEY, {Role.BOOTED})
    assert not host.finalised()


def test_a_flag_that_cannot_be_set_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: Path) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(module, "hold", fails)
    host.stage(text())
    verdict = host.gate().shut_down()
    assert (verdict.result, [code for code, _ in verdict.reasons]) == (Passed.HELD, ["unread", "unsupported"])
    assert not host.finalised()


# ---- the program ----


@pytest.fixture
def program(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(gate, "load_or_default", lambda say: host.settings)
    monkeypatch.setattr(gate, "system_state", lambda: "stopping")
    return host


def test_orders(program: Host, capsys: pytest.CaptureFixture[str]) -> None:
    program.stage(text())
    program.hold()
    assert gate.main(["hold", ID, "not", "now"]) == 0
    order = program.shutdowns.order()
    assert order is not None
    assert (order.deployment, order.hold, order.reason) == (KEY, True, "not now")
    program.policy("warn")
    assert gate.main(["stop"]) == 0
    assert not program.finalised()
    program.policy("hold")
    assert gate.main(["release", ID]) == 0
    assert gate.main(["stop"]) == 0
    assert program.finalised()
    assert "released: " + KEY in capsys.readouterr().out


@pytest.mark.parametrize(
    ("staged", "arguments", "sentence"),
    [
        (None, ["release", ID], "No deployment is staged."),
        (text(OTHER), ["release", ID], f"The staged deployment is {OTHER}, not {ID}"),
        (b"{", ["release", ID], "cannot be understood"),
        (text(), ["release"], "usage"),
    ],
)
def test_orders_that_are_refused(
    program: Host, capsys: pytest.CaptureFixture[str], staged: bytes | None, arguments: list[str], sentence: str
) -> None:
    if staged is not None:
        program.stage(staged)
    assert gate.main(arguments) == 2
    assert sentence in capsys.readouterr().err
    assert program.shutdowns.order() is None


def test_on_an_ostree_host_the_daemon_takes_orders(program: Host, capsys: pytest.CaptureFixture[str]) -> None:
    program.stage(text())
    (program.settings.paths.root / "run").mkdir()
    (program.settings.paths.root / "run/ostree-booted").touch()
    assert gate.main(["release", ID]) == 2
    assert "'lashctl release'" in capsys.readouterr().err


def test_settings_that_it_comes_with() -> None:
    assert config.Settings().paths.composefs_run == Path("/run/composefs")
