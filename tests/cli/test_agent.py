# SPDX-License-Identifier: Apache-2.0
"""polkit's agent beside lashctl: there while something is asked for, gone afterwards, and in nobody's way.

That the real one asks and is answered, a booted host shows (tests/host/test_polkit.py).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lashd.cli import agent

Program = Callable[[str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts a shell script in the agent's place, for somebody who is not root; it says its process id in `pid`."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def put(script: str) -> Path:
        path = tmp_path / "pkttyagent"
        path.write_text(f'#!/bin/bash\necho $$ >{tmp_path}/pid\necho "$*" >{tmp_path}/arguments\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return tmp_path / "pid"

    return put


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_it_is_there_and_goes(program: Program) -> None:
    pid = program('eval "exec $5>&-"; exec sleep 100')
    before = descriptors()
    for _ in range(2):
        async with agent.agent():
            number = int(pid.read_text())
            assert Path(f"/proc/{number}").exists()
            arguments = (pid.parent / "arguments").read_text().split()
            assert arguments[:4] == ["--fallback", "--process", str(os.getpid()), "--notify-fd"]
        assert not Path(f"/proc/{number}").exists()
    assert descriptors() == before


@pytest.mark.parametrize("script", ['eval "exec $5>&-"; exec sleep 100', "exec sleep 100"], ids=["registered", "not"])
async def test_it_goes_with_whoever_gives_up(program: Program, script: str) -> None:
    pid = program(script)

    async def ask() -> None:
        async with agent.agent():
            await asyncio.Event().wait()

    asking = asyncio.create_task(ask())
    deadline = time.monotonic() + 5
    while not pid.exists() or not pid.read_text():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not Path(f"/proc/{int(pid.read_text())}").exists()


async def test_one_that_cannot_register_is_not_waited_for(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program("exit 1")
    started = time.monotonic()
    async with agent.agent():
        assert time.monotonic() - started < agent.START_SECONDS
    # Nor one that never does, for long.
    program("exec sleep 100")
    monkeypatch.setattr(agent, "START_SECONDS", 0.3)
    async with agent.agent():
        pass
    assert time.monotonic() - started < 5


async def test_none_is_needed(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = program("exit 1")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    async with agent.agent():
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(pid))
    async with agent.agent():
        pass
    assert not pid.exists()
