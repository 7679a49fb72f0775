# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lashd.things import journal


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket in the place of the journal's, in the working directory: its path may not be long."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        monkeypatch.chdir(tmp_path)
        made.bind("journal")
        made.settimeout(5)
        yield made


def test_an_entry_has_the_fields_that_it_was_given(listening: socket.socket) -> None:
    forged = "one\nMESSAGE_ID=00000000000000000000000000000000\n"
    assert journal.send({"MESSAGE": forged, "PRIORITY": "4", "X": "é\udcff"}, journal=Path("journal"))
    length = len(forged).to_bytes(8, "little")
    assert listening.recv(9999) == b"MESSAGE\n" + length + forged.encode() + b"\nPRIORITY=4\nX=\xc3\xa9?\n"


def test_nobody_waits_for_a_journal_that_hangs_or_is_not_there(listening: socket.socket, tmp_path: Path) -> None:
    sent, began = 0, time.monotonic()
    while journal.send({"MESSAGE": "x" * 1000}, journal=Path("journal")):
        sent += 1
    assert sent > 0
    assert time.monotonic() - began < 2
    assert not journal.send({"MESSAGE": "x"}, journal=tmp_path / "nowhere")


def test_only_what_would_go_to_the_journal_anyway_goes_there(
    listening: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "send", lambda fields, send=journal.send: send(fields, journal=Path("journal")))
    monkeypatch.setattr(journal, "own_unit", lambda: "lashd-gate.service")
    with open(tmp_path / "out", "w") as out:
        status = os.fstat(out.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not journal.tell(out, "so", {}, priority=4, identifier="me")
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert journal.tell(out, "so", {"MESSAGE_ID": "ab" * 16}, priority=4, identifier="me")
    assert listening.recv(9999).decode().splitlines() == [
        "MESSAGE=so",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=me",
        f"MESSAGE_ID={'ab' * 16}",
        "OBJECT_SYSTEMD_UNIT=lashd-gate.service",
    ]
    assert (tmp_path / "out").read_text() == ""


def test_the_unit_is_told_by_the_cgroup(tmp_path: Path) -> None:
    cgroups = tmp_path / "cgroup"
    cgroups.write_text("0::/system.slice/lashd-gate.service\n")
    assert journal.own_unit(cgroups) == "lashd-gate.service"
    cgroups.write_text("0::/user.slice/user-0.slice/session-1.scope\n")
    assert journal.own_unit(cgroups) == ""
    assert journal.own_unit(tmp_path / "nowhere") == ""
