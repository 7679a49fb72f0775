# SPDX-License-Identifier: Apache-2.0
"""The units of the gate: what must be in them, and what they repeat of ostree's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import tree
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
