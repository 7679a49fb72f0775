# SPDX-License-Identifier: Apache-2.0
"""The demo tells the truth, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo import disk, tree
from demo.host import Host
from demo.shell import Failed
from demo.story import Story
from demo.terminal import NotTrue, Terminal

pytestmark = pytest.mark.host


def test_the_whole_story(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree.ensure()
    with Host(f"story{os.getpid()}", tmp_path) as host:
        try:
            Story(host, Terminal(live=False)).tell()
        except NotTrue as error:
            pytest.fail(f"{error}\n{capfd.readouterr().out}\n{host.journal()}")
    shown = capfd.readouterr().out
    assert "✓ lashd lists the 3 images of v2, all present" in shown
    assert "✓ probe 2 was started by probe.service at boot, from the bound image" in shown
    assert "✓ the registry is still gone" in shown
    assert host.boots() == 3


@pytest.fixture
def up(installed_disk: Path, tmp_path: Path) -> Host:
    disk.copy(installed_disk, tmp_path / "disk.img")
    with Host(f"demo{os.getpid()}", tmp_path) as host:
        host.start()
        yield host


@pytest.mark.parametrize("live", [True, False])
def test_a_command_is_shown_as_it_runs(up: Host, live: bool, capfd: pytest.CaptureFixture[str]) -> None:
    output = Terminal(live=live).run(up, "sh", "-c", "test -t 1 && echo terminal; echo shown; echo too >&2")
    assert output == ("terminal\n" if live else "") + "shown\ntoo\n"
    assert "shown" in capfd.readouterr().out


def test_a_command_that_fails_or_hangs_is_not_true(up: Host) -> None:
    terminal = Terminal(live=False)
    with pytest.raises(NotTrue, match="'false' ended with status 1"):
        terminal.run(up, "false")
    with pytest.raises(NotTrue, match="did not end within 1 s"):
        terminal.run(up, "sleep", "60", timeout=1)
    assert up.run("pgrep", "--runstates=SRD", "sleep", check=False).output == ""
    with pytest.raises(Failed, match="no end after 1 s"):
        up.run("sleep", "60", timeout=1)
    assert up.run("pgrep", "--runstates=SRD", "sleep", check=False).output == ""
    with pytest.raises(NotTrue, match=r"the moon is cheese: not so\. It is rock"):
        terminal.true("the moon is cheese", False, "It is rock")


_OWNER = """\
import sys, time
from pathlib import Path
from demo.host import Host
from demo.shell import Failed
host = Host(sys.argv[1], Path(sys.argv[2])).__enter__()
host.start()
if sys.argv[3] == "keep":
    host.keep()
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("word", ["keep", "do not"])
def test_a_host_lives_no_longer_than_its_owner_unless_it_is_kept(
    installed_disk: Path, tmp_path: Path, word: str
) -> None:
    name = f"owned{os.getpid()}"
    disk.copy(installed_disk, tmp_path / "disk.img")
    argv = [sys.executable, "-c", _OWNER, name, str(tmp_path), word]
    host = Host(name, tmp_path)
    try:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"up\n"
            owner.send_signal(signal.SIGKILL)
        if word == "keep":
            time.sleep(0.5)
            assert host.run("systemctl", "is-system-running").output == "running\n"
        else:
            deadline = time.monotonic() + 10
            while host.is_on() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not host.is_on()
    finally:
        host.stop()
    assert not host.network.path.exists()
    assert disk.loops(host.disk) == []
