# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from lashd.running.alerts import Alerts
from lashd.words.events import MessageId

LACKS = ("running-lacks", "In the running system: quay.io/a is not in the store.")
WAITING = ("waiting", "It has been waiting since 2026-01-01.")


def row(state: str = "idle", *blocked: tuple[str, str], staged: str = "") -> dict[str, Any]:
    return {"State": state, "Staged": staged, "Booted": "ab.0", "BlockedBy": list(blocked)}


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    found = [(vars(record)["MESSAGE_ID"], vars(record).get("LASHD_DEPLOYMENT", "")) for record in caplog.records]
    caplog.clear()
    return found


def test_it_is_said_once_when_it_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note = tmp_path / "run/alerts.json"
    alerts = Alerts(note)
    alerts.look(row("idle", LACKS))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert said(caplog) == [(MessageId.RUNNING_LACKS, "ab.0")]
    alerts.look(row("idle", LACKS))
    # Neither does another daemon of this boot say it again.
    alerts = Alerts(note)
    alerts.look(row("idle", LACKS))
    assert said(caplog) == []
    alerts.look(row())
    alerts.look(row("idle", LACKS))
    assert said(caplog) == [(MessageId.RUNNING_LACKS, "ab.0")]


def test_held_is_what_nobody_works_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alerts = Alerts(tmp_path / "alerts.json")
    why = ("missing", "quay.io/b is not in the store.")
    alerts.look(row("working", why, WAITING, staged="cd.0"))
    assert said(caplog) == []
    alerts.look(row("held", why, WAITING, staged="cd.0"))
    assert why[1] in caplog.text
    assert said(caplog) == [(MessageId.HELD, "cd.0")]
    # Another sentence for the same is no news, another deployment is.
    alerts.look(row("held", WAITING, staged="cd.0"))
    assert said(caplog) == []
    alerts.look(row("held", WAITING, staged="ef.0"))
    assert said(caplog) == [(MessageId.HELD, "ef.0")]


def test_each_image_and_each_program_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alerts = Alerts(tmp_path / "alerts.json")
    other = ("running-lacks", "In the running system: quay.io/b is not in the store.")
    blocked = ("inhibited", "backup forbids it."), ("store-damaged", "It is."), ("other-updater", "zincati.")
    alerts.look(row("ready", LACKS, other, *blocked, ("outside-window", "The reboot waits.")))
    assert [message for message, _ in said(caplog)] == [
        *(MessageId.RUNNING_LACKS, MessageId.RUNNING_LACKS),
        *(MessageId.REBOOT_BLOCKED, MessageId.STORE_DAMAGED, MessageId.OTHER_UPDATER),
    ]


def test_a_note_that_cannot_be_kept_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    alerts = Alerts(tmp_path / "file/alerts.json")
    for _ in range(3):
        alerts.look(row("idle", LACKS))
    assert said(caplog) == [(MessageId.RUNNING_LACKS, "ab.0")]
