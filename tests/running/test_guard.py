# SPDX-License-Identifier: Apache-2.0
"""Beside a program that removes images by its own rules: what deployments are bound to is back within a moment."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lashd.running.guard import Guard
from lashd.steps.protect import Protection
from lashd.steps.record import Records
from tests.steps.test_protect import AGENT, ONE, record
from tests.support.stores import make_store, podman_remove, put


@contextlib.asynccontextmanager
async def guarded(guard: Guard) -> AsyncIterator[None]:
    task = asyncio.create_task(guard.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_what_is_recorded_is_guarded_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, records = make_store(tmp_path), Records(tmp_path / "records")
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    busy = True
    guard = Guard(Protection(store, tmp_path / "images"), records, tmp_path / "records", lambda: busy)

    def there() -> bool:
        return store.index().image_with_digest(AGENT, ONE.digest) is not None

    async with guarded(guard):
        records.write(record(store, ONE))
        await asyncio.sleep(1)
        assert not store.index().anchored()
        busy = False
        await until(lambda: bool(store.index().anchored()))
        podman_remove(store, ONE.image_id)
        assert not there()
        await until(there)
        # A deployment that is gone needs nothing any more.
        records.remove("abc.0")
        await until(lambda: not list((tmp_path / "images").iterdir()))
    assert not [each for each in caplog.records if each.levelname == "WARNING"]
