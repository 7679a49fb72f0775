# SPDX-License-Identifier: Apache-2.0
"""Weekly windows as text."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.words.config import load
from lashd.words.errors import ErrorName, LashdError
from lashd.words.window import EVERY_DAY, Window, parse

WEEKEND, WORKDAYS = frozenset({5, 6}), frozenset(range(5))


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("Sat,Sun 02:00-04:30", Window(WEEKEND, 120, 270)),
        ("Mon..Fri 23:00-05:00 Europe/Berlin", Window(WORKDAYS, 1380, 300, "Europe/Berlin")),
        ("* 00:00-24:00", Window(EVERY_DAY, 0, 1440)),
        ("daily 22:00-00:00", Window(EVERY_DAY, 1320, 1440)),
        ("  sun..MON\t3:05-3:06  UTC ", Window(frozenset({6, 0}), 185, 186, "UTC")),
        ("Fri..Mon,Wed 10:00-11:00", Window(frozenset({4, 5, 6, 0, 2}), 600, 660)),
        ("Mon..Mon 10:00-11:00 Etc/GMT+5", Window(frozenset({0}), 600, 660, "Etc/GMT+5")),
    ],
)
def test_reads(text: str, window: Window) -> None:
    assert parse(text) == window


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Write days, times"),
        ("Sat", "Write days, times"),
        ("02:00-04:30", "Write days, times"),
        ("Sat 02:00-04:30 Europe/Berlin UTC", "Write days, times"),
        ("Sat, Sun 02:00-04:30", "'' is no day"),
        ("Saturday 02:00-04:30", "'Saturday' is no day"),
        ("Mon.. 02:00-04:30", "'' is no day"),
        ("Mon..Wed..Fri 02:00-04:30", "'Wed..Fri' is no day"),
        ("Sat 02:00", "are no times"),
        ("Sat 2-4", "are no times"),
        ("Sat ٠٢:00-04:00", "are no times"),
        ("Sat 02:60-04:00", "no clock shows"),
        ("Sat 24:00-02:00", "no clock shows"),
        ("Sat 02:00-24:01", "no clock shows"),
        ("Sat 25:00-26:00", "no clock shows"),
        ("Sat 02:00-02:00", "ends when it begins"),
        ("Sat 02:00-04:00 Europe/Atlantis", "'Europe/Atlantis' is not known"),
        ("Sat 02:00-04:00 ../../etc/localtime", "is not known"),
        ("Sat 02:00-04:00 /etc/localtime", "is not known"),
        ("Sat 02:00-04:00 Europe", "is not known"),
    ],
)
def test_refuses(text: str, words: str) -> None:
    with pytest.raises(LashdError) as caught:
        parse(text)
    assert caught.value.name is ErrorName.INVALID_ARGUMENT
    assert words in caught.value.message
    assert f"'{text}'" in caught.value.message


windows = st.builds(
    Window,
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(1, 1440),
    st.sampled_from(["", "UTC", "America/New_York"]),
).filter(lambda window: window.start != window.end)


@given(windows)
def test_what_is_printed_is_read_again(window: Window) -> None:
    assert parse(str(window)) == window


@given(st.text())
def test_any_text_is_a_window_or_refused(text: str) -> None:
    with contextlib.suppress(LashdError):
        window = parse(text)
        assert window.days
        assert 0 <= window.start < 1440
        assert 0 < window.end <= 1440


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('windows = ["Sat 02:00-04:00", "Sun 2-4"]', "'reboot.windows': 'Sun 2-4' is not a weekly window"),
        ('fleetlock_url = "fleet.example.org"', "'reboot.fleetlock_url': 'fleet.example.org' is not the address"),
        ('fleetlock_url = "https://me:secret@fleet.example.org"', "'reboot.fleetlock_url'"),
        ('fleetlock_url = "https://fleet.example.org/?x=1"', "'reboot.fleetlock_url'"),
        ('fleetlock_group = "all of them"', "'reboot.fleetlock_group': 'all of them' is not the name"),
        (r'fleetlock_id = "a\nb"', "'reboot.fleetlock_id'"),
    ],
)
def test_settings_refuse_it_by_file_and_key(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "50-x.toml").write_text(f"[reboot]\n{line}\n")
    with pytest.raises(LashdError) as caught:
        load([tmp_path])
    assert caught.value.name is ErrorName.INVALID_ARGUMENT
    assert f"{tmp_path}/50-x.toml, line 2: {words}" in caught.value.message
    assert ".." not in caught.value.message.replace("Mon..Fri", "")
    assert "Value error" not in caught.value.message


def test_settings_accept_what_is_right(tmp_path: Path) -> None:
    (tmp_path / "50-x.toml").write_text(
        '[reboot]\nwhen = "window"\nwindows = ["Mon..Fri 23:00-05:00 Europe/Berlin", "Sun 02:00-04:00"]\n'
        'fleetlock_url = "https://fleet.example.org:8443/lock"\n'
    )
    reboot = load([tmp_path]).reboot
    assert [str(parse(each)) for each in reboot.windows] == [
        "Mon,Tue,Wed,Thu,Fri 23:00-05:00 Europe/Berlin",
        "Sun 02:00-04:00",
    ]
