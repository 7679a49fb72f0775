# SPDX-License-Identifier: Apache-2.0
"""A transfer watched from outside: real processes that write, read and wait as a skopeo may."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from lashd.steps.line import Load
from lashd.steps.transfer import UNPACK_PATIENCE, State, Transfer
from lashd.words.errors import ErrorName, LashdError

STALL = 0.3
SLACK = 3.0  # a busy machine


class Watched:
    """A shell line that runs as the transfer of `expected` bytes into its folder, `$D`; what was seen at each look."""

    def __init__(self, folder: Path, line: str, expected: int = 1000, *, others: bool = False) -> None:
        self.folder = folder
        self.seen: list[tuple[int, State]] = []
        self.others = others
        self.transfer = Transfer(
            lambda: ["sh", "-c", f"D={folder}; {line}"],
            folder,
            expected,
            subject="quay.io/edge/agent:1",
            stall_seconds=STALL,
            look=lambda: self.seen.append((self.transfer.received, self.transfer.state)),
            others_unpack=lambda: self.others,
        )

    async def timed(self) -> tuple[float, LashdError | None]:
        begun, error = time.monotonic(), None
        try:
            await self.transfer.run()
        except LashdError as raised:
            error = raised
        assert not self.folder.exists()
        return time.monotonic() - begun, error


async def test_bytes_are_seen_and_the_line_is_free_when_all_are_there(tmp_path: Path) -> None:
    put = "head -c 600 /dev/zero > $D/x/1; sleep 0.15; head -c 400 /dev/zero > $D/x/2; sleep 0.15; rm $D/x/1; sleep 0.1"
    watched = Watched(tmp_path / "d", f"mkdir $D/x; {put}")
    assert watched.transfer.load == Load(1000)
    _, error = await watched.timed()
    assert error is None
    assert (600, State.FETCHING) in watched.seen
    assert watched.seen[-1] == (1000, State.UNPACKING)
    assert watched.seen == sorted(watched.seen)
    assert watched.transfer.load == Load(0)


async def test_never_more_than_expected_and_nothing_expected_is_not_unpacking(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "d", "head -c 5000 /dev/zero > $D/1; sleep 0.15")
    await watched.timed()
    assert watched.seen[-1][0] == 1000
    watched = Watched(tmp_path / "d", "head -c 200 /dev/zero > $D/config; sleep 0.15", expected=0)
    await watched.timed()
    assert set(watched.seen) == {(0, State.FETCHING)}


@pytest.mark.parametrize(
    ("line", "others", "least", "what"),
    [
        ("sleep 60", False, STALL, "arrived"),
        ("head -c 10 /dev/zero > $D/1; sleep 60", False, STALL, "arrived"),
        # Bytes have come, so it does not wait for a lock: others are no excuse.
        ("head -c 10 /dev/zero > $D/1; sleep 60", True, STALL, "arrived"),
        ("head -c 1000 /dev/zero > $D/1; sleep 60", False, STALL * UNPACK_PATIENCE, "was unpacked"),
        ("trap '' TERM; kill -STOP $$", False, STALL, "arrived"),
    ],
)
async def test_what_stalls_is_ended(tmp_path: Path, line: str, others: bool, least: float, what: str) -> None:
    took, error = await Watched(tmp_path / "d", line, others=others).timed()
    assert error is not None
    assert (error.name, error.retryable) == (ErrorName.TIMEOUT, True)
    assert f"nothing {what}" in error.message
    assert least <= took < least + 3 * SLACK


@pytest.mark.parametrize("first", ["true", "head -c 1000 /dev/zero > $D/1"])
async def test_waiting_for_anothers_lock_is_no_stall(tmp_path: Path, first: str) -> None:
    watched = Watched(tmp_path / "d", f"{first}; sleep 60", others=True)
    task = asyncio.create_task(watched.timed())
    await asyncio.sleep(STALL * UNPACK_PATIENCE + 0.5)
    assert not task.done()
    assert not watched.transfer.unpacking, "it does nothing itself, so it excuses nobody"
    watched.others = False
    assert (await task)[1] is not None


async def test_a_long_unpacking_is_no_stall(tmp_path: Path) -> None:
    read = "for _ in $(seq 12); do read _ < $D/1; sleep 0.2; done"
    watched = Watched(tmp_path / "d", f"head -c 999 /dev/zero > $D/1; echo >> $D/1; {read}")
    took, error = await watched.timed()
    assert error is None
    assert took > STALL * UNPACK_PATIENCE


async def test_an_exit_status_is_explained(tmp_path: Path) -> None:
    _, error = await Watched(tmp_path / "d", "echo 'FATA manifest unknown' >&2; exit 1").timed()
    assert error is not None
    assert error.name is ErrorName.NOT_FOUND
    assert "quay.io/edge/agent:1" in error.message


async def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "d", "head -c 10 /dev/zero > $D/1; sleep 60 & sleep 60")
    task = asyncio.create_task(watched.transfer.run())
    while (10, State.FETCHING) not in watched.seen:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not watched.folder.exists()
