# SPDX-License-Identifier: Apache-2.0
"""The units of the gate: what must be in them, and what they repeat of ostree's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from demo import tree
from lashd.bus.service import AGAIN
from lashd.things.bootc.driver import WEIGHTS
from lashd.words.errors import ERRORS, ErrorName
from tests.conftest import REPOSITORY

UNITS = REPOSITORY / "units"
FINALIZE = "ostree-finalize-staged.service"
COMPOSEFS = "bootc-finalize-staged.service"
# As bootc's own unit has it (bootc 1.9 and later).
COMPOSEFS_STOP = "/usr/bin/bootc composefs-finalize-staged"


def settings(path: Path) -> list[tuple[str, str]]:
    """(Section/Key, value) of each line, in order."""
    found, section = [], ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and line[0] not in "#;":
            key, _, value = line.partition("=")
            found.append((f"{section}/{key}", value))
    return found


def values(path: Path, key: str) -> list[str]:
    return [value for found, value in settings(path) if found == key]


@pytest.mark.host
def test_the_drop_in_repeats_what_ostree_does() -> None:
    vendor = tree.ensure() / "usr/lib/systemd/system" / FINALIZE
    dropped = UNITS / f"{FINALIZE}.d/50-lashd.conf"
    reset, check, *repeated = values(dropped, "Service/ExecStop")
    assert (reset, check) == ("", "/bin/sh /usr/lib/lashd/passed")
    assert repeated == values(vendor, "Service/ExecStop"), "ostree's own command has changed: repeat it as it is now"
    assert values(dropped, "Unit/Wants") == ["lashd-gate.service"]


def test_the_drop_in_for_the_composefs_backend() -> None:
    dropped = UNITS / f"{COMPOSEFS}.d/50-lashd.conf"
    assert values(dropped, "Service/ExecStop") == ["", "/bin/sh /usr/lib/lashd/passed /run/composefs", COMPOSEFS_STOP]
    assert values(dropped, "Unit/Wants") == ["lashd-gate.service"]
    # Nothing else: on an ostree host the unit need not exist, and must not come into being.
    assert {key for key, _ in settings(dropped)} == {"Service/ExecStop", "Unit/Wants"}


def test_both_notes_are_noticed_and_held() -> None:
    notes = ["/run/ostree/staged-deployment", "/run/composefs/staged-deployment"]
    assert set(notes) <= set(values(UNITS / "lashd-hold.path", "Path/PathChanged"))
    # Either of them is enough.
    assert values(UNITS / "lashd-hold.service", "Unit/ConditionPathExists") == [f"|{note}" for note in notes]


def test_what_lashd_cannot_run_with_is_not_tried_again_and_again() -> None:
    never = (ErrorName.INVALID_ARGUMENT, ErrorName.UNSUPPORTED_HOST)
    statuses = " ".join(str(ERRORS[name].exit_status) for name in never)
    assert values(UNITS / "lashd.service", "Service/RestartPreventExitStatus") == [statuses]


def test_the_gate_runs_when_it_must() -> None:
    """Each of these was tried: see docs/decisions.md, 'The gate'."""
    unit = UNITS / "lashd-gate.service"
    assert values(unit, "Unit/DefaultDependencies") == ["no"]
    assert {FINALIZE, COMPOSEFS} <= set(values(unit, "Unit/After")[0].split())
    assert {"basic.target", "final.target"} <= set(values(unit, "Unit/Before")[0].split())
    assert values(unit, "Unit/Conflicts") == ["final.target"]
    assert {"/sysroot", "/var/lib/lashd"} <= set(values(unit, "Unit/RequiresMountsFor")[0].split())
    assert values(unit, "Service/Type") == ["oneshot"]
    assert values(unit, "Service/RemainAfterExit") == ["yes"]
    assert values(unit, "Service/ExecStart") == []
    assert values(unit, "Service/ExecStop") == ["-/bin/sh /usr/lib/lashd/hold", "/usr/lib/lashd/gate stop"]
    assert values(unit, "Service/TimeoutStopSec") == ["30"]
    # The gate is a control process of the unit, never its main one.
    assert values(unit, "Service/NotifyAccess") == ["exec"]
    assert not [key for key, _ in settings(unit) if "Condition" in key or "Assert" in key]


def test_noticing_does_not_go_round_in_circles() -> None:
    keys = [key for key, _ in settings(UNITS / "lashd-hold.path") if key.startswith("Path/")]
    assert set(keys) == {"Path/PathChanged"}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A root in which the units are, and each program that they start."""
    place = tmp_path / "usr/lib/systemd/system"
    shutil.copytree(UNITS, place)
    (tmp_path / "bin").symlink_to("usr/bin")
    for path in (path for path in UNITS.rglob("*.*") if path.is_file()):
        for value in (value for key, value in settings(path) if key.startswith("Service/Exec")):
            if value:
                program = tmp_path / value.split()[0].lstrip("-/")
                program.parent.mkdir(parents=True, exist_ok=True)
                program.touch(0o755)
    return tmp_path


def analyzed(*argv: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *argv], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.iterdir() if path.is_file()))
def test_systemd_finds_no_fault(unit: str, installed: Path) -> None:
    def verify() -> subprocess.CompletedProcess[str]:
        return analyzed("verify", f"--root={installed}", "--man=no", "--recursive-errors=no", unit)

    found = verify()
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
    # It says so by words only.
    with (installed / "usr/lib/systemd/system" / unit).open("a") as file:
        file.write("NoSuchSetting=1\n")
    assert "NoSuchSetting" in verify().stderr


def exposure(unit: Path) -> float:
    found = analyzed("security", "--offline=true", "--json=short", "--no-pager", unit)
    assert json.loads(found.stdout), found.stderr
    # The sum is told for people only.
    said = analyzed("security", "--offline=true", "--no-pager", unit).stdout
    level = re.search(r"Overall exposure level for .*: ([0-9.]+) ", said)
    assert level, said
    return float(level[1])


def test_the_daemon_has_a_sandbox() -> None:
    assert exposure(UNITS / "lashd.service") <= 4.0


def test_the_sandbox_hides_nothing_that_collect_must_see() -> None:
    """A store, a process or a mount that is not seen would count as gone, and what it stands on would be removed."""
    unit = UNITS / "lashd.service"
    hiding = {
        *("ProtectProc", "ProcSubset", "PrivateDevices", "PrivateUsers", "PrivatePIDs", "RootDirectory", "RootImage"),
        *("InaccessiblePaths", "TemporaryFileSystem", "NoExecPaths", "DynamicUser", "User"),
    }
    assert not hiding & {key.removeprefix("Service/") for key, _ in settings(unit)}
    # Without the right to trace, the mounts of whoever has more rights cannot be read.
    kept = " ".join(values(unit, "Service/CapabilityBoundingSet")).split()
    assert {"CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"} <= set(kept)
    assert values(unit, "Service/ProtectHome") == ["read-only"]


def test_what_the_machine_is_there_for_comes_first() -> None:
    assert {f"Service/{weight}" for weight in WEIGHTS} <= {"=".join(pair) for pair in settings(UNITS / "lashd.service")}


def test_the_daemon_comes_back() -> None:
    unit = UNITS / "lashd.service"
    assert values(unit, "Service/Restart") == ["on-failure"]
    assert values(unit, "Service/WatchdogSec") == ["3min"]
    # Whatever it does last must not be taken for a loop that stands still.
    assert values(unit, "Service/TimeoutStopSec") == ["60"]
    for key in ("RestartForceExitStatus", "SuccessExitStatus"):
        assert values(unit, f"Service/{key}") == [str(AGAIN)]
    assert AGAIN not in {facts.exit_status for facts in ERRORS.values()}


def test_what_wakes_the_daemon_is_no_place_of_its_own() -> None:
    """It is started by the daemon that goes, and by nobody else; no condition that lasts may start that for ever."""
    unit = UNITS / "lashd-wake.path"
    assert {key for key, _ in settings(unit) if key.startswith("Path/")} == {"Path/Unit", "Path/PathChanged"}
    assert values(unit, "Path/Unit") == ["lashd.service"]
    assert not [key for key, _ in settings(unit) if key.startswith("Install/")]
    assert not [path for path in values(unit, "Path/PathChanged") if path.startswith(("/run/lashd", "/var/lib/lashd"))]
    assert values(UNITS / "lashd.service", "Service/ExecStartPost") == [
        "-/usr/bin/systemctl stop --no-block lashd-wake.path"
    ]


def test_images_can_be_unpacked_in_the_sandbox() -> None:
    """Without one of these skopeo goes into a user namespace, which the sandbox forbids; with it programs lose bits."""
    unit = UNITS / "lashd.service"
    needed = {f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP")}
    assert needed <= set(" ".join(values(unit, "Service/CapabilityBoundingSet")).split())
    assert not values(unit, "Service/RestrictSUIDSGID")
    assert {"char-* m", "block-* m"} <= set(values(unit, "Service/DeviceAllow"))
