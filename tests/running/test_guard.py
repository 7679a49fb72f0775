# SPDX-License-Identifier: Apache-2.0
"""Beside a program that removes images by its own rules: what deployments are bound to is back within a moment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lashd.running import guard as guarding
from lashd.running.guard import Guard
from lashd.steps.protect import Protection
from lashd.steps.record import Records
from lashd.things import store_write
from lashd.things.store import Store
from tests.steps.test_protect import AGENT, ONE, OTHER, record
from tests.support.stores import make_store, podman_remove, put, remove_layer_directory, stored
from tests.support.told import told


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
    caplog.set_level(logging.INFO)
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
    assert told(caplog) == [{"NAME": "BROUGHT_BACK", "LASHD_DEPLOYMENT": "abc.0"}]


@pytest.mark.parametrize("fails", ["anchor", "copy"])
async def test_what_fails_is_not_tried_over_and_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Each try changes the store, which wakes the guard; and it does not keep the others waiting."""
    monkeypatch.setattr(guarding, "RETRY_SECONDS", 2.0)
    store, records = make_store(tmp_path), Records(tmp_path / "records")
    protection = Protection(store, tmp_path / "images")
    put(store, ONE, f"{AGENT}@{ONE.digest}")
    records.write(record(store, ONE))
    if fails == "anchor":
        remove_layer_directory(store, f"{AGENT}@{ONE.digest}")
    else:
        await protection.protect(records.load_all().values())
        (tmp_path / "images" / ONE.digest.removeprefix("sha256:") / ONE.image_id).write_bytes(b"{}")
        podman_remove(store, ONE.image_id)

    calls: list[float] = []
    changed = store_write.anchor if fails == "anchor" else store_write.bring_back

    async def counted(store: Store, what: Any, *more: Any) -> Any:
        if ONE.image_id in str(what) or ONE.digest.removeprefix("sha256:") in str(what):
            calls.append(time.monotonic())
        return await changed(store, what, *more)

    def other_is_anchored() -> bool:
        return stored(store, f"{AGENT}:2").top_layer in store.index().anchored()

    monkeypatch.setattr(store_write, changed.__name__, counted)
    async with guarded(Guard(protection, records, tmp_path / "records", lambda: False)):
        await until(lambda: len(calls) == 2)
        put(store, OTHER, f"{AGENT}:2")
        records.write(replace(record(store, OTHER, name=f"{AGENT}:2"), deployment="b.0"))
        await until(lambda: len(calls) > 2 or other_is_anchored())
        assert other_is_anchored()
    assert calls[1] - calls[0] > 1.5
    told = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert len(told) == (1 if fails == "anchor" else 2), told
