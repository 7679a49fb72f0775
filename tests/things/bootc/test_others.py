# SPDX-License-Identifier: Apache-2.0
"""Other programs that update the host: seen where they are enabled, and not where they are masked."""

from __future__ import annotations

from pathlib import Path

import pytest

from lashd.things.bootc.others import UPDATERS, others

TIMER = "bootc-fetch-apply-updates.timer"


def enable(root: Path, unit: str, directory: str, target: str = "timers.target") -> None:
    wants = root / directory / f"{target}.wants"
    wants.mkdir(parents=True)
    (wants / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")


@pytest.mark.parametrize("directory", ["etc/systemd/system", "usr/lib/systemd/system", "run/systemd/generator"])
@pytest.mark.parametrize("unit", [unit for unit, _ in UPDATERS])
def test_enabled(tmp_path: Path, unit: str, directory: str) -> None:
    enable(tmp_path, unit, directory, "timers.target" if unit.endswith(".timer") else "multi-user.target")
    (sentence,) = others(tmp_path)
    assert sentence.startswith(f"{unit} is enabled: ")
    assert f"'systemctl disable --now {unit}'" in sentence
    assert sentence.endswith(".")


def test_installed_alone_is_not_enabled(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/system" / TIMER).write_text("[Timer]\n")
    assert list(others(tmp_path)) == []
    assert list(others(tmp_path / "nothing")) == []


@pytest.mark.parametrize("directory", ["etc/systemd/system", "run/systemd/system"])
@pytest.mark.parametrize("empty", [True, False])
def test_masked(tmp_path: Path, directory: str, empty: bool) -> None:
    enable(tmp_path, TIMER, "usr/lib/systemd/system")
    (tmp_path / directory).mkdir(parents=True)
    mask = tmp_path / directory / TIMER
    if empty:
        mask.touch()
    else:
        mask.symlink_to("/dev/null")
    assert list(others(tmp_path)) == []
    mask.unlink()
    mask.write_text("[Timer]\nOnBootSec=1h\n")
    assert len(list(others(tmp_path))) == 1
