# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[3]
# In the middle it says so, and waits until it is told to go on.
_WORK = """
import signal, sys, time
from pathlib import Path
from lashd.things.ostree.undisturbed import undisturbed

# Whoever runs the tests may ignore some, as nohup does.
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)

def work():
    Path(sys.argv[1], "begun").touch()
    while not Path(sys.argv[1], "go").exists():
        time.sleep(0.01)
    Path(sys.argv[1], "done").touch()

with undisturbed():
    work()
time.sleep(5)
Path(sys.argv[1], "later").touch()
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_end_waits(tmp_path: Path, number: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": str(_REPOSITORY / "daemon")}
    process = subprocess.Popen([sys.executable, "-c", _WORK, tmp_path], env=environment, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "begun")
    process.send_signal(number)
    time.sleep(0.1)
    assert process.poll() is None
    (tmp_path / "go").touch()
    assert process.wait(60) != 0
    assert (tmp_path / "done").exists()
    assert not (tmp_path / "later").exists()


def test_the_end_of_the_parent_is_survived(tmp_path: Path) -> None:
    parent = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', '--', *sys.argv[1:]])\n"
        "time.sleep(30)\n"
    )
    argv = [sys.executable, "-c", parent, sys.executable, "-c", _WORK, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(_REPOSITORY / "daemon")}
    process = subprocess.Popen(argv, env=environment)
    wait_for(tmp_path / "begun")
    process.kill()
    process.wait()
    time.sleep(0.1)
    (tmp_path / "go").touch()
    wait_for(tmp_path / "done")
