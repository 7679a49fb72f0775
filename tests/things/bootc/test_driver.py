# SPDX-License-Identifier: Apache-2.0
"""Running bootc where there is no systemd to do it: a plain child. In units it is tested on the booted host."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lashd.things.bootc import is_there
from lashd.things.bootc.driver import Driver
from lashd.words.config import Settings, settings_from
from lashd.words.errors import ErrorName, LashdError
from lashd.words.progress import Event, ItemProgress, Stage, StageStarted
from tests.things.bootc.test_progress import EXPECTED, WHOLE

Install = Callable[..., Driver]
# Notes how it was called; then does what is asked of it.
SCRIPT = """\
#!/bin/bash
[ "$1" = --version ] && {{ echo "bootc {version}"; exit 0; }}
printf '%s\\n' "$@" > {place}/called
env > {place}/environment
for fd; do :; done
{body}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "run").mkdir()
    return settings_from({"paths": {"root": tmp_path / "root", "run": tmp_path / "run"}})


@pytest.fixture
def install(settings: Settings, tmp_path: Path) -> Install:
    def put(body: str, version: str = "1.16.9") -> Driver:
        path = settings.paths.root / "usr/bin/bootc"
        path.parent.mkdir(parents=True)
        path.write_text(SCRIPT.format(version=version, place=tmp_path, body=body))
        path.chmod(0o755)
        return Driver(settings)

    return put


def called(tmp_path: Path) -> list[str]:
    return (tmp_path / "called").read_text().splitlines()


async def test_progress_and_environment(install: Install, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(WHOLE)
    driver = install(f'cat {tmp_path}/lines >&"$fd"')
    found: list[Event] = []
    await driver.change(["upgrade", "--quiet"], "The upgrade", found.append, image="example.com/os:1")
    assert found == EXPECTED
    *words, number = called(tmp_path)
    assert words == ["upgrade", "--quiet", "--progress-fd"]
    assert int(number) > 2
    environment = dict(line.partition("=")[::2] for line in (tmp_path / "environment").read_text().splitlines())
    assert environment["PATH"].split(":")[0] == f"{tmp_path}/root/usr/lib/lashd/bootc-tools"
    assert environment["LASHD_HOST_IMAGE"] == "example.com/os:1"
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    await driver.change(["upgrade"], "The upgrade", found.append)
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


async def test_more_progress_than_a_pipe_holds(install: Install, tmp_path: Path) -> None:
    count = 3000
    lines = [{"type": "ProgressBytes", "subtasks": [{"id": f"l{number}", "bytes": 1}]} for number in range(count)]
    (tmp_path / "lines").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    driver = install(f'cat {tmp_path}/lines >&"$fd"')
    found: list[Event] = []
    await asyncio.wait_for(driver.change(["upgrade"], "The upgrade", found.append), 60)
    assert found[0] == StageStarted(Stage.STAGE)
    assert [event.item for event in found if isinstance(event, ItemProgress)] == [f"l{n}" for n in range(count)]


@pytest.mark.parametrize(("version", "verb"), [("1.1.3", "upgrade"), ("0.9", "upgrade"), ("1.16.9", "rollback")])
async def test_where_progress_is_not_known(install: Install, tmp_path: Path, version: str, verb: str) -> None:
    driver = install("exit 0", version)
    await driver.change([verb], "It")
    assert called(tmp_path) == [verb]


async def test_its_failure_in_our_words(install: Install) -> None:
    driver = install("echo Fetching >&2; echo 'error: Upgrading: Insufficient free space for x' >&2; exit 1")
    with pytest.raises(LashdError, match="The upgrade failed") as caught:
        await driver.change(["upgrade"], "The upgrade")
    assert caught.value.name is ErrorName.NO_SPACE


async def test_cancelled(install: Install, tmp_path: Path) -> None:
    driver = install(f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 60")
    task = asyncio.create_task(driver.change(["upgrade"], "The upgrade"))
    while not (tmp_path / "pid").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid}").exists()


async def test_a_version_that_is_none(install: Install) -> None:
    assert await install("exit 0", "of today").version() == (0, 0, 0)


async def test_not_installed(settings: Settings) -> None:
    with pytest.raises(LashdError, match="not installed") as caught:
        await Driver(settings).change(["upgrade"], "The upgrade")
    assert caught.value.name is ErrorName.HOST_COMMAND_FAILED


def test_is_it_there(settings: Settings, install: Install) -> None:
    assert not is_there(settings)
    install("exit 0")
    assert is_there(settings)
    elsewhere = settings_from({"host": {"sysroot": "/mnt"}, "paths": {"root": settings.paths.root}})
    assert not is_there(elsewhere)
