# SPDX-License-Identifier: Apache-2.0
"""logind's inhibitors, as far as no logind is needed; tests/host/test_reboot.py has the real one."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things import logind
from lashd.things.logind import Inhibitor, Unanswered, blockers, inhibited, parse


def answer(*rows: tuple[object, ...]) -> bytes:
    return json.dumps({"type": "a(ssssuu)", "data": [list(rows)]}).encode()


BACKUP = Inhibitor("backup", "Nightly backup", 1000)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (("shutdown", "backup", "Nightly backup", "block", 1000, 77), BACKUP),
        (("sleep:shutdown:idle", "backup", "Nightly backup.", "block-weak", 1000, 77), BACKUP),
        (("shutdown", "backup", "Nightly\nbackup\x1b", "block", 1000, 77), BACKUP),
        (("shutdown", "w" * 999, "", "block", 0, 77), Inhibitor("w" * 200, "", 0)),
        (("shutdown", "backup", "Nightly backup", "delay", 1000, 77), None),
        (("sleep:idle:handle-power-key", "backup", "Nightly backup", "block", 1000, 77), None),
        (("shutdown-later", "backup", "Nightly backup", "block", 1000, 77), None),
    ],
)
def test_who_blocks(row: tuple[object, ...], found: Inhibitor | None) -> None:
    assert parse(answer(row)) == ((found,) if found else ())
    assert parse(answer(row, row)) == ((found, found) if found else ())


def test_nobody() -> None:
    assert parse(answer()) == ()


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b"{}", b'{"data": []}', b'{"data": [[["shutdown"]]]}', b'{"data": [3]}', b"\xff"),
        *(answer((1, 2, 3, 4, 5, 6)), answer(("shutdown", "who", "why", "block", "root", 1))),
        *(answer(("shutdown", 3, "why", "block", 0, 1)), b'{"data": [[], []]}'),
    ],
)
def test_what_is_no_list_of_inhibitors(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse(text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x, max_size=7)))
def test_any_answer_is_understood_or_refused(data: object) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse(json.dumps({"data": data}).encode()), tuple)


def test_sentences() -> None:
    assert BACKUP.sentence == "backup (user 1000) blocks the reboot: Nightly backup."
    assert Inhibitor("", "", 0).sentence == "Somebody (root) blocks the reboot, without a reason."


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return os.fspath(path)


async def test_without_logind_nobody_blocks(caplog: pytest.LogCaptureFixture) -> None:
    """With the real busctl, on a machine without a system bus, or without logind on it."""
    caplog.set_level("INFO")
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd runs here")
    assert await blockers() == ()
    assert "logind is not on the bus" in caplog.text


async def test_without_busctl_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(Unanswered, match=r"blocks the reboot: The program .* is not installed; install it\.$"):
        await blockers(os.fspath(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "case $* in *NameHasOwner*) echo '{\"data\": [true]}';; *) echo 'Access denied.' >&2; exit 1;; esac",
            "denied",
        ),
        ("echo rubbish", "Expecting value"),
        ('echo \'{"data": [[["shutdown"]]]}\'', "not enough values"),
        ("sleep 60", "did not end within"),
    ],
)
async def test_when_it_is_there_and_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(logind, "_TIMEOUT", 0.5)
    with pytest.raises(Unanswered, match=words) as caught:
        await blockers(program(tmp_path / "busctl", script))
    assert str(caught.value).startswith("logind does not say whether something blocks the reboot: ")


@pytest.mark.parametrize(
    "script",
    [
        'case $* in *NameHasOwner*) echo \'{"type":"b","data":[false]}\';; *) exit 1;; esac',
        "echo 'Failed to connect to bus' >&2; exit 1",
    ],
)
async def test_when_it_is_not_there(tmp_path: Path, script: str) -> None:
    assert await blockers(program(tmp_path / "busctl", script)) == ()


async def test_an_inhibitor_that_cannot_be_taken_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    async with inhibited("Binding", program=os.fspath(tmp_path / "absent")) as works:
        assert not works
    async with inhibited("Binding", program=program(tmp_path / "refuses", "echo 'Access denied' >&2; exit 1")) as works:
        assert not works
    assert "No delay inhibitor could be taken: Access denied" in caplog.text
    monkeypatch.setattr(logind, "_TIMEOUT", 0.2)
    async with inhibited("Binding", program=program(tmp_path / "hangs", "sleep 60")) as works:
        assert not works
    assert "within 0 seconds" in caplog.text


async def test_an_inhibitor_lasts_as_long_as_the_block(tmp_path: Path) -> None:
    """The stand-in does what systemd-inhibit does: it starts the command, and waits for its end."""
    script = f'echo "$@" > {tmp_path}/args; while [ "$1" != sh ]; do shift; done; "$@"; echo over > {tmp_path}/over'
    stand_in = program(tmp_path / "inhibit", script)
    async with inhibited("Binding x", mode="block", what="shutdown", program=stand_in) as works:
        assert works
        assert (tmp_path / "args").read_text().startswith("--what=shutdown --who=lashd --why=Binding x --mode=block sh")
        assert not (tmp_path / "over").exists()
    with pytest.raises(RuntimeError, match="of the block"):
        async with inhibited("Binding x", program=stand_in):
            raise RuntimeError("of the block")
