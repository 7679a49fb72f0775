# SPDX-License-Identifier: Apache-2.0
"""What a reboot has lost: it is told, comes back as it was, and can be given up. A real sysroot, played as booted."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lashd.running.jobs import Initiator, Job
from lashd.running.service import Service
from lashd.steps.shutdowns import Shutdowns, boot_id
from lashd.things.history import HistoryFile
from lashd.things.history_rows import JobEntry
from lashd.things.host import Staging
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Owed, Role
from lashd.words.progress import Report
from tests.running.test_service import SCHEMA
from tests.running.test_walk import StagingBackend

ROOT = Initiator(0)
NEXT = Owed("e" * 64 + ".0", "bench", "e" * 64, "sha256:" + "1" * 64, "[origin]\nrefspec=os\n", "before", 17, 1)


class LosingBackend(StagingBackend):
    """Stages again for as long as nobody lets it: `restaged` is what was asked for, `dropped` what was discarded."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.restaged: list[Owed] = []
        self.dropped: list[str] = []
        self.go = asyncio.Event()
        self.comes_back: Callable[[Owed], str] | None = None

    async def restage(self, owed: Owed, report: Report) -> Deployment:
        self.restaged.append(owed)
        await self.go.wait()
        raise LashdError(ErrorName.NOT_FOUND)

    async def discard(self, deployment: Deployment) -> None:
        self.dropped.append(deployment.key)


@asynccontextmanager
async def losing(settings: Settings, owed: Owed, **gate: Any) -> AsyncIterator[tuple[Service, LosingBackend]]:
    """A daemon that was started after a reboot that has lost `owed`."""
    settings = replace(settings, gate=replace(settings.gate, **gate))
    Shutdowns(settings.paths.state, settings.paths.run).owe(owed)
    backend = LosingBackend(settings)
    service = Service(settings, backend)
    await service.start()
    try:
        yield service, backend
    finally:
        await service.stop()


@pytest.fixture
def settings(nothing_bound: Settings, tmp_path: Path) -> Settings:
    shutil.copytree(nothing_bound.paths.state, tmp_path / "state")
    return replace(nothing_bound, paths=replace(nothing_bound.paths, state=tmp_path / "state", run=tmp_path / "run"))


def lost(service: Service) -> list[str]:
    """What the readers say of it: the sentences of BlockedBy, when the document agrees."""
    document = json.loads(service.describe())
    jsonschema.validate(document, SCHEMA)
    sentences = [sentence for code, sentence in service.blocked_by() if code == "lost"]
    assert bool(document["owed"]) is bool(sentences)
    return sentences


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def discard(service: Service, **options: str) -> Job:
    job, _ = service.discard(options, ROOT)
    await job.wait(20)
    return job


async def test_it_can_be_given_up(settings: Settings) -> None:
    """Under every policy, also while it is being staged again; and it does not come back."""
    for number, gate in enumerate(({"policy": "off"}, {"restage": False}, {})):
        async with losing(settings, NEXT, **gate) as (service, backend):
            (sentence,) = lost(service)
            assert "'lashctl discard' gives it up" in sentence
            assert ("the settings say" in sentence) is (number < 2)
            assert json.loads(service.describe())["owed"]["digest"] == NEXT.digest
            await until(lambda backend=backend, number=number: number < 2 or backend.restaged)  # type: ignore[misc]
            with pytest.raises(LashdError) as caught:
                service.discard({"expected-digest": "sha256:" + "2" * 64}, ROOT)
            assert caught.value.name is ErrorName.DIGEST_MISMATCH
            assert NEXT.digest in caught.value.message
            job = await discard(service, **({"expected-digest": NEXT.digest} if number else {}))
            assert (job.result, job.error_message) == ("success", "")
            assert job.details == {"changed": True, "deployment": NEXT.deployment, "given-up": True}
            assert not (settings.paths.state / "owed.json").exists()
            assert (lost(service), backend.dropped) == ([], [])
            with pytest.raises(LashdError) as caught:
                service.discard({}, ROOT)
            assert caught.value.name is ErrorName.NOTHING_STAGED
            await asyncio.sleep(0.2)
            assert len(backend.restaged) == (1 if number == 2 else 0)


@pytest.mark.parametrize("same", [True, False])
async def test_what_was_staged_meanwhile(settings: Settings, monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    """If it has just come back it is dropped; something else stays, with what is known of it."""
    async with losing(settings, NEXT, restage=False) as (service, backend):
        job, _ = service.discard({}, ROOT)
        (booted,) = backend.deployments()
        checksum = NEXT.checksum if same else "f" * 64
        staged = replace(booted, checksum=checksum, serial=3, roles=frozenset({Role.STAGED}), root=Path("/nowhere"))
        monkeypatch.setattr(backend, "deployments", lambda: (staged, booted))
        await job.wait(20)
        if same:
            assert (job.result, backend.dropped) == ("success", [staged.key])
            assert "given-up" not in job.details
        else:
            assert (job.error_name, backend.dropped) == ("DigestMismatch", [])
            assert staged.key in job.error_message


async def test_staged_over_itself_with_other_arguments(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same commit with other kernel arguments is another system until it runs with them."""
    (booted,) = LosingBackend(settings).deployments()
    how = LosingBackend(settings).staging(booted)
    assert how.kargs is not None
    assert "container-image-reference=" in how.origin
    again = replace(
        NEXT,
        deployment=f"{booted.checksum}.1",
        checksum=booted.checksum,
        base=booted.checksum,
        kargs=(*how.kargs, "debug"),
        origin=how.origin,
    )
    async with losing(settings, again) as (service, backend):
        await until(lambda: backend.restaged)
        assert backend.restaged[0].kargs == (*how.kargs, "debug")
        assert len(lost(service)) == 1
    # Somebody has given them to the running system by other means.
    monkeypatch.setattr(LosingBackend, "staging", lambda self, one: Staging(how.origin, (*(how.kargs or ()), "debug")))
    async with losing(settings, again) as (service, backend):
        assert lost(service) == []
        await until(lambda: not (settings.paths.state / "owed.json").exists())
        assert backend.restaged == []


async def test_with_initrds_of_its_own_it_is_not_staged_again(settings: Settings) -> None:
    async with losing(settings, replace(NEXT, initrds=("f" * 64,))) as (service, backend):
        await asyncio.sleep(0.3)
        (sentence,) = lost(service)
        assert "initramfs-etc" in sentence
        assert "it will be staged again" not in sentence
        assert backend.restaged == []
        assert (await discard(service)).result == "success"


async def test_cleaning_up_does_not_wait_for_it(settings: Settings) -> None:
    """Nobody has seen what it binds; all the same what was there long before it can go, and so can the rest later."""
    async with losing(settings, NEXT, restage=False) as (service, _):
        job, _ = service.collect({"dry-run": True}, ROOT)
        await job.wait(20)
        assert (job.result, job.error_message) == ("unchanged", "")
        # Nor does anything go when it is unknown what is recorded.
        shutil.rmtree(settings.paths.state / "records")
        (settings.paths.state / "records").write_text("")
        job, _ = service.collect({}, ROOT)
        await job.wait(20)
        assert job.error_name == "StoreDamaged"
        assert "records" in job.error_message


@pytest.mark.parametrize("number", [2**56, 2**63, 10**30, -(10**30)])
async def test_numbers_that_are_no_times(settings: Settings, number: int) -> None:
    """A damaged file tells nonsense; the daemon comes up and every reader answers."""
    settings.paths.state.joinpath("last-shutdown.json").write_text(
        json.dumps({"result": "held", "boot": "before", "decided": number, "deployment": NEXT.deployment})
    )
    settings.paths.run.mkdir(exist_ok=True)
    request = {"when": "ready", "name": "", "uid": abs(number), "asked": number}
    note = settings.paths.run / "reboot.json"
    note.write_text(json.dumps({"boot": boot_id(), "request": request}))
    async with losing(settings, replace(NEXT, since=number, wasted=abs(number)), restage=False) as (service, _):
        (sentence,) = lost(service)
        assert "since an unknown time" in sentence
        assert "lost" in [code for code, _ in service.properties()["BlockedBy"]]
        assert json.loads(service.describe())["reboot"]["when"] == "ready"


async def test_a_request_that_nobody_could_have_made(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """It is forgotten, and said once; all readers answer."""
    settings.paths.run.mkdir(exist_ok=True)
    request = {"when": "foo", "name": "", "uid": 0, "asked": 1}
    (settings.paths.run / "reboot.json").write_text(json.dumps({"boot": boot_id(), "request": request}))
    async with losing(settings, NEXT, restage=False) as (service, _):
        assert json.loads(service.describe())["reboot"]["when"] == "never"
        assert len(lost(service)) == 1
    assert caplog.text.count("reboot.json cannot be understood") == 1


async def test_the_records_are_no_directory(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    async with losing(settings, NEXT, restage=False) as (service, _):
        shutil.rmtree(settings.paths.state / "records")
        (settings.paths.state / "records").write_text("")
        for start in (service.bind, service.verify, service.plan, service.collect):
            job, _ = start({} if start == service.collect else {"deployment": "booted"}, ROOT)
            await job.wait(20)
            assert job.error_name == "StoreDamaged", (job.kind, job.error_message)
            assert f"{settings.paths.state}/records" in job.error_message
    assert "Traceback" not in caplog.text


async def test_what_was_interrupted_is_carried_on_with_by_name(settings: Settings) -> None:
    """The power went in the middle of an upgrade: that is told, and what stages again names the job of which it is
    the rest."""
    file = HistoryFile(settings.paths.state / "history.db", settings.paths.run / "history.lock")
    file.write([JobEntry(7, "u-7", "upgrade", True, "before", 1000, 1000, stage="pull")])
    file.close()
    async with losing(settings, NEXT, retry_seconds=0.1) as (service, backend):
        await until(lambda: backend.restaged)
        rows = {row["id"]: row for row in service.list_jobs({})}
        assert rows[7]["error-message"] == (
            "Job 7 (upgrade) was interrupted, in its step 'pull': the host went down, or lost its power. What was "
            "fetched is kept. What was staged is lost; lashd stages it again by itself, in a new job."
        )
        assert service.properties()["LastError"] == ("Cancelled", rows[7]["error-message"])
        (rest,) = [service.jobs.get(number) for number, row in rows.items() if row["kind"] == "restage"]
        assert rest is not None
        assert (rest.details["continues"], rest.id > 7) == (7, True)
        (row,) = await service.get_history({"job": 7})
        assert (row["result"], row["uid"], row["boot"]) == ("failed", 1000, "before")
        with pytest.raises(LashdError, match="'job' does not go with"):
            await service.get_history({"kind": "sets", "job": 7})
        backend.go.set()
        await rest.wait(20)
        # It is the rest of that only once.
        await until(lambda: len(backend.restaged) > 1)
        later = [job for job in service.jobs.list() if job.kind == "restage" and job is not rest]
        assert all("continues" not in job.details for job in later)
