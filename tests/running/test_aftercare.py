# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lashd.running.aftercare import Aftercare, came_up
from lashd.words.errors import ErrorName, LashdError


class Care:
    """An Aftercare whose host is steered by the test; `done` lists what it did."""

    def __init__(self, state: Path, *, collects: bool = True) -> None:
        self.checksum, self.complete, self.busy = "a" * 64, True, 0
        self.done: list[str] = []
        self.care = Aftercare(
            state,
            checksum=lambda: self.checksum,
            complete=lambda: self.complete,
            steady=lambda: self.note("steady"),
            collect=self.collect if collects else None,
            mend=lambda: self.note("mend"),
            look_seconds=0.01,
        )

    async def note(self, what: str) -> None:
        self.done.append(what)

    async def collect(self) -> bool:
        if self.busy:
            self.busy -= 1
            if self.busy % 2:
                return False  # it was started, and failed or was cancelled
            raise LashdError(ErrorName.BUSY)
        self.done.append("collect")
        return True

    async def run(self) -> list[str]:
        self.done = []
        await asyncio.wait_for(self.care.run(), 5)
        return self.done


@pytest.fixture(autouse=True)
def up(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What systemd says each time, the last for ever."""
    answers = [True]

    async def say(*_: object) -> bool:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr("lashd.running.aftercare.came_up", say)
    return answers


async def test_a_new_deployment_is_cleaned_up_after_once(tmp_path: Path) -> None:
    care = Care(tmp_path / "state")
    assert await care.run() == ["mend", "steady", "collect"]
    assert await care.run() == ["mend", "steady"]
    care.checksum = "b" * 64
    assert await care.run() == ["mend", "steady", "collect"]


async def test_cleaning_up_waits_until_nothing_else_runs(tmp_path: Path) -> None:
    care = Care(tmp_path)
    care.busy = 3
    assert await care.run() == ["mend", "steady", "collect"]


async def test_a_state_that_cannot_be_written_is_no_reason_to_collect_for_ever(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    assert await Care(tmp_path / "state").run() == ["mend", "steady", "collect"]


async def test_by_the_settings_nothing_is_collected(tmp_path: Path) -> None:
    assert await Care(tmp_path, collects=False).run() == ["mend", "steady"]


@pytest.mark.parametrize("lacks", ["boot", "images", "adoption"])
async def test_nothing_is_done_before_the_boot_is_a_good_one(tmp_path: Path, up: list[bool], lacks: str) -> None:
    care = Care(tmp_path)
    care.complete, care.checksum = lacks != "images", "" if lacks == "adoption" else "a" * 64
    up[0] = lacks != "boot"
    task = asyncio.create_task(care.care.run())
    await asyncio.sleep(0.1)
    assert care.done == []
    care.complete, care.checksum, up[0] = True, "a" * 64, True
    await asyncio.wait_for(task, 5)
    assert care.done == ["mend", "steady", "collect"]


@pytest.mark.parametrize(
    ("state", "judged", "good"),
    [
        ("running", "inactive", True),
        ("degraded", "active", True),
        ("starting", "inactive", False),
        ("initializing", "inactive", False),
        ("running", "failed", False),
    ],
)
async def test_what_systemd_says(tmp_path: Path, state: str, judged: str, good: bool) -> None:
    program = tmp_path / "systemctl"
    answers = f"is-system-running) echo {state}; [ {state} = running ];;\nis-failed) [ {judged} = failed ];;\n"
    program.write_text(f"#!/bin/sh\ncase $1 in\n{answers}esac\n")
    program.chmod(0o755)
    assert await came_up(str(program)) is good


async def test_no_systemd_is_no_reason_to_wait(tmp_path: Path) -> None:
    assert await came_up(str(tmp_path / "none"))
