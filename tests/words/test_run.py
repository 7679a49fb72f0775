# SPDX-License-Identifier: Apache-2.0
"""The runner: what a child may see, how it is ended, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lashd.words import run as module
from lashd.words.errors import ErrorName, LashdError
from lashd.words.run import run, started, writable


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(path: Path) -> str:
    for _ in range(500):
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return text
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} never came")


async def test_what_a_child_leaves() -> None:
    ended = await run(["sh", "-c", "cat; echo trouble >&2; exit 3"], timeout=10, stdin=b"in")
    assert (ended.status, ended.stdout, ended.stderr) == (3, b"in", "trouble\n")


async def test_environment_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/somewhere")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    ended = await run(["env"], timeout=10, env={"EXTRA": "1"})
    names = {line.split("=")[0] for line in ended.stdout.decode().splitlines()}
    assert names <= {"PATH", "HOME", "LC_ALL", "TMPDIR", "EXTRA", "PWD", "_", "SHLVL"}
    assert "EXTRA" in names


async def test_arguments_are_never_a_shell_line() -> None:
    ended = await run(["printf", "%s|", "a b", "$(id)", "; id", "--help"], timeout=10)
    assert ended.stdout == b"a b|$(id)|; id|--help|"


@pytest.mark.parametrize("argv", [["no-such-program"], writable(Path("/tmp"), ["no-such-program"])])
async def test_missing_program_is_named(argv: list[str]) -> None:
    if argv[0] == "unshare":
        assert (await run(argv, timeout=10)).status == 127
        return
    with pytest.raises(LashdError, match="'no-such-program' is not installed") as caught:
        await run(argv, timeout=10)
    assert caught.value.name is ErrorName.HOST_COMMAND_FAILED


async def test_time_limit_ends_the_whole_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    pids = tmp_path / "pids"
    script = f"trap '' TERM; (trap '' TERM; exec sleep 300) & echo $$ $! > {pids}; wait"
    with pytest.raises(LashdError, match="did not end within") as caught:
        await run(["sh", "-c", script], timeout=0.5)
    assert caught.value.name is ErrorName.TIMEOUT
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


async def test_cancelling_ends_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    task = asyncio.create_task(run(["sh", "-c", f"sleep 300 & echo $$ $! > {pids}; wait"], timeout=60))
    text = await until(pids)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(alive(int(pid)) for pid in text.split())


@pytest.mark.parametrize("steps", range(8))
async def test_cancelling_while_it_starts_ends_the_whole_group(tmp_path: Path, steps: int) -> None:
    """asyncio itself would end the leader alone, and then wait for as long as anybody has its pipes."""
    pids = tmp_path / "pids"
    task = asyncio.create_task(run(["sh", "-c", f"sleep 300 & echo $$ $! > {pids}; wait"], timeout=60))
    for _ in range(steps):
        await asyncio.sleep(0)
    time.sleep(0.2)  # whatever has been started has come to a child of its own by then
    task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not any(alive(int(pid)) for pid in (pids.read_text().split() if pids.exists() else ()))


async def test_grandchild_left_by_a_normal_end_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with started(["sh", "-c", f"sleep 300 >/dev/null 2>&1 & echo $! > {pids}"]) as process:
        await process.wait()
    assert not alive(int(pids.read_text()))


def test_child_dies_with_a_killed_daemon(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import asyncio; from lashd.words.run import run; "
        f"asyncio.run(run(['sh', '-c', 'echo $$ > {pid_file}; exec sleep 300'], timeout=60))"
    )
    daemon = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": "daemon"})
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    while alive(int(pid_file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_writable_only_inside(tmp_path: Path) -> None:
    """A read-only bind mount is writable in the child's namespace, and stays read-only outside it."""
    sysroot = tmp_path / "sysroot"
    sysroot.mkdir()
    subprocess.run(["mount", "--bind", sysroot, sysroot], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", sysroot], check=True)
        ended = await run(writable(sysroot, ["touch", f"{sysroot}/file"]), timeout=10)
        assert (ended.status, ended.stderr) == (0, "")
        assert (sysroot / "file").exists()
        with pytest.raises(OSError, match="Read-only"):
            (sysroot / "other").touch()
    finally:
        subprocess.run(["umount", sysroot], check=True)
