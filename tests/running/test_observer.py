# SPDX-License-Identifier: Apache-2.0
"""The observer beside the running service, on a real sysroot (not booted) with a real store and registry."""

from __future__ import annotations

import asyncio
import errno
import http.client
import logging
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from lashd.bus.journal import fields
from lashd.running import metrics_socket, observer
from lashd.running.jobs import Initiator, Job, Outcome
from lashd.running.metrics import GATE, POLICIES, STATES, WANTED, JobFigures
from lashd.running.observer import Observer
from lashd.running.service import Service
from lashd.things.host import find_host
from lashd.words.config import MetricsSettings, Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId
from lashd.words.metrics import OPENMETRICS, PLAIN
from lashd.words.progress import ItemProgress, Stage, StageStarted
from tests.bench.service import furnish, settings_below
from tests.conftest import REPOSITORY
from tests.support.registry import Registry

ROOT = Initiator(0)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, str]]:
    base = tmp_path_factory.mktemp("observed")
    made = settings_below(base)
    with Registry() as registry:
        yield made, asyncio.run(furnish(registry, made, 3))
    subprocess.run(["chattr", "-R", "-f", "-i", str(base)], check=False)


@pytest.fixture
def settings(template: tuple[Settings, str]) -> Iterator[Settings]:
    """With a short path to the socket, and a state of its own."""
    run = Path(tempfile.mkdtemp(prefix="lashd-run-", dir="/tmp"))
    paths = replace(template[0].paths, run=run, state=run / "state")
    yield replace(template[0], paths=paths, metrics=MetricsSettings(textfile=True))
    shutil.rmtree(run)


@pytest.fixture
async def service(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(observer, "PAUSE_SECONDS", 0.05)
    running = Service(settings, find_host(settings))
    async with Observer(running):
        await running.start()
        yield running
        await running.stop()


async def ended(started: tuple[Job, bool]) -> Job:
    await started[0].wait(60)
    return started[0]


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    text: str


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self.host)


async def ask(settings: Settings, target: str = "/metrics", *, method: str = "GET", **headers: str) -> Answer:
    """What an ordinary client gets on the socket."""

    def get() -> Answer:
        connection = _Connection(str(settings.paths.run / "metrics.sock"))
        try:
            connection.request(method, target, headers={"Host": "lashd", **headers})
            response = connection.getresponse()
            return Answer(response.status, response.headers["Content-Type"], response.read().decode())
        finally:
            connection.close()

    return await asyncio.to_thread(get)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, values of its labels …) → value, as the parser for OpenMetrics reads it."""
    return {(sample.name, *sample.labels.values()): sample.value for family in parse(text) for sample in family.samples}


async def test_what_is_read_on_the_socket_is_so(service: Service, settings: Settings, template) -> None:
    before = samples((await ask(settings)).text)
    key = template[1]
    references = [row["normalised"] for row in service.list_bound({"deployment": key})]
    assert len(references) == 3
    job = await ended(service.bind({"deployment": key}, ROOT))
    assert job.result in ("success", "unchanged"), job.error_message
    now = samples((await ask(settings)).text)
    assert before.get(("lashd_jobs_total", "bind", job.result)) is None
    assert now["lashd_jobs_total", "bind", job.result] == 1
    assert now["lashd_job_duration_seconds_count", "bind"] == 1
    assert 0 < now["lashd_job_duration_seconds_sum", "bind"] < 60
    assert abs(now["lashd_job_last_success_timestamp_seconds", "bind"] - time.time()) < 60
    assert now[("lashd_fetched_bytes_total",)] == job.bytes_done
    assert now[("lashd_store_images",)] == 3
    assert now[("lashd_store_bytes",)] > 0
    assert now["lashd_state", "idle"] == now["lashd_gate", "none"] == now["lashd_gate_policy", "hold"] == 1
    assert sum(value for (name, *_), value in now.items() if name == "lashd_gate") == 1
    # Nothing is booted here, and a deployment without a role has no series of its own.
    assert not [each for each in now if each[0] == "lashd_bound_image_present"]
    assert before[("lashd_jobs_active",)] == now[("lashd_jobs_active",)] == 0


@pytest.mark.parametrize("textfile", [False, True])
async def test_monitoring_keeps_the_daemon(settings: Settings, textfile: bool) -> None:
    """Whoever asks is asked after; and a file that gets old would say that lashd is not well."""
    chosen = replace(settings, metrics=MetricsSettings(textfile=textfile))
    service = Service(chosen, find_host(chosen))
    async with Observer(service):
        await service.start()
        before = time.monotonic()
        await ask(chosen)
        assert before <= service.last_asked <= time.monotonic()
        if textfile:
            await asyncio.sleep(1)
            assert not service.at_rest()
        else:
            await until(service.at_rest)
        await service.stop()


async def test_the_file_is_whole_readable_and_follows(service: Service, settings: Settings, template) -> None:
    path = settings.paths.run / "metrics/lashd.prom"
    await until(path.exists)
    failing = service.jobs.start("upgrade", fail, ROOT, {})
    await ended(failing)
    await until(lambda: 'lashd_jobs_total{kind="upgrade",result="failed"} 1' in path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [each.name for each in path.parent.iterdir()] == ["lashd.prom"], "a collector reads each file in there"
    found = {family.name: family for family in parse_plain(path.read_text())}
    error = {sample.labels["lashd_last_error"]: sample.value for sample in found["lashd_last_error"].samples}
    assert error == {name.value: float(name is ErrorName.PULL_FAILED) for name in ErrorName}
    written = path.stat().st_mtime_ns
    await asyncio.sleep(0.3)
    assert path.stat().st_mtime_ns == written, "nothing is written for nothing"


async def test_the_file_is_written_now_and_then(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(observer, "WRITE_SECONDS", 0.1)
    path = settings.paths.run / "metrics/lashd.prom"
    async with Observer(Service(settings, find_host(settings))):
        await until(path.exists)
        written = path.stat().st_mtime_ns
        await until(lambda: path.stat().st_mtime_ns > written)


async def test_a_file_that_cannot_be_written(
    service: Service, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = settings.paths.run / "metrics/lashd.prom"
    await until(path.exists)
    with path.open() as reading:
        before = path.read_text()

        def full(descriptor: int, mode: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(observer.os, "fchmod", full)
            for _ in range(3):
                await ended(service.jobs.start("upgrade", fail, ROOT, {}))
                await asyncio.sleep(0.1)
        assert caplog.text.count("No space left") == 1, "it is said once"
        assert path.read_text() == before
        # What a collector would read as well, half as it is.
        assert [each.name for each in path.parent.iterdir() if each.name.endswith(".prom")] == ["lashd.prom"]
        await ended(service.jobs.start("upgrade", fail, ROOT, {}))
        await until(lambda: path.read_text() != before)
        # Whoever was reading has the old one to its end.
        assert reading.read() == before


async def fail(job: Job) -> Outcome:
    raise LashdError(ErrorName.PULL_FAILED, "No.")


async def until(true, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_successes_outlive_the_daemon_and_retries_count(settings: Settings) -> None:
    async def work(job: Job) -> Outcome:
        job.report(StageStarted(Stage.PULL, 100, 1))
        for attempt, state in ((1, "fetching"), (1, "retrying"), (1, "retrying"), (2, "retrying"), (3, "done")):
            job.report(ItemProgress("quay.io/a:1", state, 40, 100, attempt))
        job.report(StageStarted(Stage.VERIFY, items_total=1))
        return Outcome(True)

    note = settings.paths.state / "last-success.json"
    service = Service(settings, find_host(settings))
    figures = JobFigures(service.jobs, note)
    service.jobs.subscribe(figures)
    await ended(service.jobs.start("check", work, ROOT, {}))
    assert figures.retries == 2
    figures.keep(figures.unwritten())
    assert figures.unwritten() is None
    again = JobFigures(service.jobs, note)
    assert again.successes == figures.successes == {"check": pytest.approx(time.time(), abs=60)}
    assert again.retries == 0
    note.write_text("{")
    assert JobFigures(service.jobs, note).successes == {}


async def test_the_older_format_and_what_else_is_asked(service: Service, settings: Settings) -> None:
    answer = await ask(settings)
    assert (answer.status, answer.kind) == (200, OPENMETRICS)
    assert answer.text.endswith("# EOF\n")
    assert (await ask(settings, Accept="application/openmetrics-text;q=0.8,text/plain;q=0.5")).kind == OPENMETRICS
    older = await ask(settings, Accept="text/plain;version=0.0.4")
    assert older.kind == PLAIN
    assert list(parse_plain(older.text))
    assert await ask(settings, method="HEAD") == replace(answer, text="")
    assert (await ask(settings, "/")).status == 200
    assert (await ask(settings, "/etc/passwd")).status == 404
    assert (await ask(settings, method="POST")).status == 405


async def test_only_root_may_connect_and_nothing_is_left(settings: Settings) -> None:
    path = settings.paths.run / "metrics.sock"
    async with Observer(Service(settings, find_host(settings))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    # What a killed daemon has left is in nobody's way; what is no socket stays.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with Observer(Service(settings, find_host(settings))):
        assert (await ask(settings)).status == 200
    path.write_text("mine")
    async with Observer(Service(settings, find_host(settings))):
        pass
    assert path.read_text() == "mine"


async def test_without_the_settings_there_is_nothing(settings: Settings) -> None:
    settings = replace(settings, metrics=MetricsSettings(socket=False))
    async with Observer(Service(settings, find_host(settings))):
        await asyncio.sleep(0.1)
    assert not list(settings.paths.run.glob("metrics*"))


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\n", b"x" * 100_000, b"\0\xff\r\n\r\n"])
async def test_a_client_that_hangs_or_babbles_is_ended(
    said: bytes, service: Service, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_socket, "SECONDS", 0.3)
    path = str(settings.paths.run / "metrics.sock")
    before = len(list(Path("/proc/self/fd").iterdir()))
    clients = [await asyncio.open_unix_connection(path) for _ in range(metrics_socket.CLIENTS)]
    await asyncio.sleep(0.05)
    if said == b"":
        # All places are taken: one more is turned away at once.
        reader, writer = await asyncio.open_unix_connection(path)
        assert await asyncio.wait_for(reader.read(), 0.2) == b""
        writer.close()
    for reader, writer in clients:
        writer.write(said)
        began = time.monotonic()
        try:
            answer = await asyncio.wait_for(reader.read(), 5)
        except ConnectionError:
            answer = b""
        assert time.monotonic() - began < 2
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        writer.close()
    # The next one is served.
    assert (await ask(settings)).status == 200
    await until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


async def test_a_client_that_does_not_read_is_ended(
    service: Service, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_socket, "SECONDS", 0.3)
    monkeypatch.setattr(metrics_socket, "openmetrics", lambda values: "x" * 10_000_000)
    path = str(settings.paths.run / "metrics.sock")
    clients = [socket.socket(socket.AF_UNIX) for _ in range(metrics_socket.CLIENTS)]
    for client in clients:
        client.connect(path)
        client.send(b"GET / HTTP/1.0\r\n\r\n")
    await asyncio.sleep(0.8)
    assert len((await ask(settings)).text) == 10_000_000
    for client in clients:
        client.close()


async def test_a_mistake_of_ours_is_no_answer_and_no_end(
    service: Service, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service, "properties", broken)
    assert (await ask(settings)).status == 500
    for _ in range(3):
        service._tell()
        await asyncio.sleep(0.1)
    assert caplog.text.count("What is the case cannot be told") == 1
    assert caplog.text.count("The metrics cannot be told") == 1
    assert (await ended(service.jobs.start("upgrade", fail, ROOT, {}))).result == "failed"


async def test_every_word_that_the_bus_has_is_a_state(service: Service) -> None:
    text = (REPOSITORY / "dbus/io.github.lashd1.Manager.xml").read_text()
    for word in (*STATES, *GATE):
        assert word in text, word
    assert POLICIES == ("hold", "warn", "off")
    assert set(WANTED) == {"never", "ready", "window"}


async def test_what_a_job_says_carries_its_name(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lashd.running.job")
    seen: list[dict[str, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(fields(record))  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("lashd.test", "lashd.running.job")]

    async def work(job: Job) -> Outcome:
        await asyncio.to_thread(loggers[0].warning, "in a thread")
        raise LashdError(ErrorName.NO_SPACE, "Full.")

    for logger in loggers:
        logger.addHandler(handler)
    try:
        job = await ended(service.jobs.start("collect", work, ROOT, {}))
        loggers[0].warning("outside")
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    inside, done, outside = seen
    assert (inside["LASHD_JOB"], inside["LASHD_KIND"]) == (job.uuid, "collect")
    assert (done["MESSAGE_ID"], done["LASHD_JOB"]) == (MessageId.JOB_ENDED, job.uuid)
    assert (done["LASHD_RESULT"], done["LASHD_ERROR"], done["LASHD_RETRYABLE"]) == ("failed", "NoSpace", "no")
    assert "LASHD_JOB" not in outside
