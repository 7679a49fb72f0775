# SPDX-License-Identifier: Apache-2.0
"""Settings: which file wins, and errors that name the file and the key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lashd.words.config import Settings, load
from lashd.words.errors import ErrorName, LashdError


def put(base: Path, name: str, text: str) -> Path:
    base.mkdir(exist_ok=True)
    (base / name).write_text(text)
    return base


def test_defaults_without_any_file(tmp_path: Path) -> None:
    settings = load([tmp_path / "absent"])
    assert settings.store == Path("/sysroot/ostree/bootc/storage")
    assert settings.store_run == Path("/run/bootc/storage")
    assert settings.pull.parallel == 0


def test_order_of_weight(tmp_path: Path) -> None:
    usr = put(tmp_path / "usr", "10-a.toml", "[pull]\nparallel = 1\nattempts = 3\n")
    put(usr, "20-b.toml", "[pull]\nparallel = 2\n")
    etc = put(tmp_path / "etc", "10-a.toml", "[pull]\nparallel = 9\n")
    put(etc, "30-c.toml", "[host]\nsysroot = '/mnt/x'\n")
    settings = load([usr, etc])
    assert settings.pull.parallel == 2
    assert settings.pull.attempts == 6, "10-a.toml of /etc replaces that of /usr/lib"
    assert settings.store == Path("/mnt/x/ostree/bootc/storage")
    assert settings.store_run == settings.paths.run / "storage"


def test_a_window_without_any_is_a_setting(tmp_path: Path) -> None:
    """It opens when a later file names some; until then `status` says that it never does. No reason not to start."""
    settings = load([put(tmp_path / "usr", "10-x.toml", "[reboot]\nwhen = 'window'\n[gate]\npolicy = 'warn'\n")])
    assert (settings.reboot.when, settings.reboot.windows, settings.gate.policy) == ("window", (), "warn")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[pull]\nattempts = 2\nparalel = 3\n", 3),
        ("# paralel = 1\r\n\r\n[gate]\r\npolicy = 'hold'\r\n[pull]  # paralel\r\n'paralel'=3\r\n", 6),
        ('[host]\nstateroot = """\n[pull]\nparalel = 1\n"""\n[pull]\nparalel = 2\n', 7),
        ("[reboot]\nwindows = [\n  'Sat 02:00-04:00',\n\n]\n\n[pull]\nattempts = 1\nparalel = [\n1,\n]\n", 9),
        ("pull.attempts = 1\npull.paralel = 1\n", 2),
        ("host = {backend = 'auto'}\npull = {attempts = 2, paralel = 3}\n", 2),
        ("[host]\n\n[pull.paralel]\na = 1\n", 3),
    ],
)
def test_the_line_is_named(tmp_path: Path, text: str, line: int) -> None:
    place = put(tmp_path / "etc", "10-x.toml", "")
    (place / "10-x.toml").write_bytes(text.encode())
    with pytest.raises(LashdError) as caught:
        load([place])
    assert f"{place}/10-x.toml, line {line}: 'pull.paralel'" in caught.value.message


def test_the_lines_of_several_mistakes(tmp_path: Path) -> None:
    etc = put(tmp_path / "etc", "10-x.toml", "[gate]\nrestage = 1\n\n[nonsense]\nb = 1\n")
    put(etc, "20-x.toml", "[nonsense]\na = 1\n[gate]\npolicy = 'of'\n")
    with pytest.raises(LashdError) as caught:
        load([etc])
    for place in ("10-x.toml, line 2:", "10-x.toml, line 4, ", "20-x.toml, line 1:", "20-x.toml, line 4:"):
        assert place in caught.value.message
    put(etc, "10-x.toml", "[gate]\nrestage = true\npolicy 'off'\n")
    with pytest.raises(LashdError, match=r"10-x\.toml .*\(at line 3, column \d+\)"):
        load([etc])
    put(etc, "10-x.toml", "# so\nrestage = true\n")
    with pytest.raises(LashdError, match=r"10-x\.toml, line 2: 'restage' must stand in a section"):
        load([etc])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pull]\nparallel = 'many'\n", ["10-x.toml", "'pull.parallel': it must be a whole number, and not a text."]),
        ("[pull]\nparalel = 3\n", ["10-x.toml", "pull.paralel"]),
        ("[pull]\nparallel = -1\n", ["10-x.toml", "pull.parallel"]),
        ("[pull]\nparallel = true\n", ["'pull.parallel': it must be a whole number, and not true or false."]),
        (
            "[pull]\nparallel = 65\nattempts = 0\n",
            ["'pull.parallel': it must be a whole number, at most 64.", "'pull.attempts'"],
        ),
        ("[pull]\nstall_seconds = 0\n", ["'pull.stall_seconds': it must be a number, greater than 0."]),
        ("[pull]\nstall_seconds = nan\n", ["pull.stall_seconds"]),
        ("[gate]\npolicy = 'of'\n", ["gate.policy", "'off'"]),
        ("[gate]\nrestage = 'yes'\n", ["gate.restage", "it must be true or false, and not a text."]),
        ("[host]\nsysroot = 3\n", ["host.sysroot", "it must be a path, and not a whole number."]),
        ("[reboot]\nwindows = 'Sat 02:00-04:00'\n", ["reboot.windows", "it must be a list, and not a text."]),
        ("[nonsense]\na = 1\n", ["10-x.toml", "nonsense"]),
        (f"a = {'[' * 5000}", ["10-x.toml"]),
        ("parallel = 1\n", ["10-x.toml", "'parallel'", "section"]),
        ("[pull\n", ["10-x.toml", "line 1"]),
        (f"[pull]\nreserve_bytes = {'1' * 5000}\n", ["10-x.toml", "digits"]),
        (f"[pull]\nreserve_bytes = 0x{'f' * 9000}\n", ["10-x.toml", "'pull.reserve_bytes'"]),
        (f"[pull]\nstall_seconds = 0x{'f' * 9000}\n", ["10-x.toml", "'pull.stall_seconds'"]),
        ("[paths]\nstate = 'var/lib/lashd'\n", ["10-x.toml", "'paths.state'", "'var/lib/lashd'", "absolute"]),
        ("[paths]\nrun = ''\n", ["10-x.toml", "'paths.run'", "absolute"]),
        ('[paths]\nroot = "/a\\u0000b"\n', ["10-x.toml", "'paths.root'", "path"]),
        ("[host]\nsysroot = '.'\n", ["10-x.toml", "'host.sysroot'", "absolute"]),
        ('[tools]\nskopeo = "a\\u0000b"\n', ["10-x.toml", "'tools.skopeo'", "program"]),
        ("[tools]\npython = ''\n", ["10-x.toml", "'tools.python'", "program"]),
        ("\udcff".encode(errors="surrogateescape").decode("latin-1"), ["10-x.toml"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(LashdError) as caught:
        load([put(tmp_path / "etc", "10-x.toml", text)])
    assert caught.value.name is ErrorName.INVALID_ARGUMENT
    for word in words:
        assert word in caught.value.message


def test_what_may_be_written(tmp_path: Path) -> None:
    text = "[pull]\nstall_seconds = 5\n[reboot]\nwindows = ['Sat 02:00-04:00']\n[gate]\npolicy = 'warn'\n"
    settings = load([put(tmp_path / "etc", "10-x.toml", text)])
    assert settings.pull.stall_seconds == 5.0
    assert isinstance(settings.pull.stall_seconds, float)
    assert settings.reboot.windows == ("Sat 02:00-04:00",)
    assert settings.gate.policy == "warn"


def test_a_file_that_is_too_large_is_refused_by_name(tmp_path: Path) -> None:
    line = "[pull]\nparallel = 1\n"
    assert load([put(tmp_path / "etc", "10-x.toml", line + "#" * (2**20 - len(line)))]).pull.parallel == 1
    with pytest.raises(LashdError, match=r"10-x\.toml.*more than 1048576 bytes"):
        load([put(tmp_path / "etc", "10-x.toml", "#" * 2**20 + "\n[nonsense]\na = 1\n")])


def test_files_that_hide_others_and_such_that_are_none(tmp_path: Path) -> None:
    """Settings are read at boot and at shutdown: nothing in there may keep anyone waiting."""
    usr = put(tmp_path / "usr", "10-a.toml", "[pull]\nparallel = 1\n")
    etc = put(tmp_path / "etc", "20-b.toml", "")
    (etc / "10-a.toml").symlink_to("/dev/null")
    os.mkfifo(etc / "30-c.toml")
    assert load([usr, etc]) == Settings()
