# SPDX-License-Identifier: Apache-2.0
"""The FleetLock client against a server that speaks the protocol, and against all sorts that do not."""

from __future__ import annotations

import asyncio
import hmac
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lashd.things.fleetlock import Client, client, derived_id, pre_reboot, steady_state
from lashd.words.config import RebootSettings
from lashd.words.errors import ErrorName, LashdError
from tests.support.fleetlock import FleetLock, Request


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any(thread.name == "fleetlock" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread of the client lives on"
        time.sleep(0.01)


def asking(server: FleetLock, name: str = "me", group: str = "default") -> Client:
    return Client(server.url, group, name)


async def test_takes_and_gives_back() -> None:
    with FleetLock(slots=1, base="/fleet/lock") as server:
        await pre_reboot(asking(server))
        await pre_reboot(asking(server))
        assert server.holders["default"] == {"me"}
        await steady_state(asking(server))
        await steady_state(asking(server))
        assert server.holders["default"] == set()
        verbs = ["pre-reboot", "pre-reboot", "steady-state", "steady-state"]
        assert server.requests == [Request(verb, "default", "me") for verb in verbs]


async def test_is_refused_while_others_hold_all_slots() -> None:
    with FleetLock(slots=2) as server:
        await pre_reboot(asking(server, "one"))
        await pre_reboot(asking(server, "two"))
        with pytest.raises(LashdError) as caught:
            await pre_reboot(asking(server, "three"))
        assert caught.value.name is ErrorName.INHIBITED
        assert "All 2 slots are taken (failed_lock)" in caught.value.message
        await pre_reboot(asking(server, "three", group="canary"))
        await steady_state(asking(server, "one"))
        await pre_reboot(asking(server, "three"))
        assert server.holders["default"] == {"two", "three"}


async def test_many_at_once() -> None:
    with FleetLock(slots=3) as server:
        answers = await asyncio.gather(
            *(pre_reboot(asking(server, str(number))) for number in range(10)), return_exceptions=True
        )
    assert answers.count(None) == 3
    assert {answer.name for answer in answers if isinstance(answer, LashdError)} == {ErrorName.INHIBITED}


def raw(*parts: bytes, pause: float = 0.0) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        for part in parts:
            handler.wfile.write(part)
            handler.wfile.flush()
            time.sleep(pause)
        handler.close_connection = True

    return answer


def body(status: int, content: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)


@pytest.mark.parametrize(
    ("answer", "name", "words"),
    [
        (
            body(409, b'{"kind": "k", "value": "v."}'),
            ErrorName.INHIBITED,
            "refuses the right to reboot, with status 409: v (k)",
        ),
        (body(404, b"<html>"), ErrorName.INHIBITED, "refuses the right to reboot, with status 404"),
        (body(400, b'{"kind": ["k"], "value": 3}'), ErrorName.INHIBITED, "with status 400"),
        (body(400, b'["kind"]'), ErrorName.INHIBITED, "with status 400"),
        (body(400, b"[" * 15000), ErrorName.INHIBITED, "with status 400"),
        (body(403, b'{"kind": "k", "value": "a\\u001b[2Jb\\nc\\u202ed"}'), ErrorName.INHIBITED, ": a [2Jb c d (k)."),
        (body(409, b'{"kind": "", "value": "%s"}' % (b"x" * 9000)), ErrorName.INHIBITED, ": " + "x" * 200 + "."),
        (body(500, b'{"kind": "db", "value": "gone"}'), ErrorName.NETWORK_UNAVAILABLE, "status 500: gone (db)."),
        (body(503, b""), ErrorName.NETWORK_UNAVAILABLE, "with status 503."),
        (body(304, b""), ErrorName.NETWORK_UNAVAILABLE, "no answer of that protocol"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + body(409, b""), ErrorName.INHIBITED, "409"),
        (b"", ErrorName.NETWORK_UNAVAILABLE, "cannot be reached"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ErrorName.NETWORK_UNAVAILABLE, "cannot be reached"),
        (b"HTTP/1.1 abc\r\n\r\n", ErrorName.NETWORK_UNAVAILABLE, "cannot be reached"),
        (b"HTTP/1.1 409 X\r\nContent-Length: 500\r\n\r\n{", ErrorName.INHIBITED, "with status 409"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: %s\r\n" % (b"y" * 80000), ErrorName.NETWORK_UNAVAILABLE, "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500, ErrorName.NETWORK_UNAVAILABLE, "cannot be reached"),
        (b"HTTP/1.1 409 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ErrorName.INHIBITED, "409"),
    ],
)
async def test_rubbish(answer: bytes, name: ErrorName, words: str) -> None:
    with FleetLock(answer=raw(answer)) as server:
        with pytest.raises(LashdError) as caught:
            await pre_reboot(asking(server))
        assert caught.value.name is name, caught.value.message
        assert caught.value.retryable
        assert words in caught.value.message
        assert caught.value.message.isprintable()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_is_not_sent_elsewhere(status: int) -> None:
    with FleetLock() as other:
        line = b"HTTP/1.1 %d X\r\nLocation: %s/v1/pre-reboot\r\nContent-Length: 0\r\n\r\n" % (
            status,
            other.url.encode(),
        )
        with FleetLock(answer=raw(line)) as server, pytest.raises(LashdError, match=f"status {status}, which is no"):
            await pre_reboot(asking(server))
        assert other.requests == []
        assert not other.holders


@pytest.mark.parametrize(
    "parts",
    [
        (b"", b""),  # says nothing
        (b"HTTP/1.1 200 OK\r\n", *[b"X-A: b\r\n"] * 100),  # a header every now and then, each in time
        (b"HTTP/1.1 409 X\r\nContent-Length: 5000\r\n\r\n", *[b" "] * 100),
        (b"H", b"T", b"T", b"P", *[b"/"] * 100),
    ],
)
async def test_slow_servers_are_left_in_time(parts: tuple[bytes, ...]) -> None:
    with FleetLock(answer=raw(*parts, pause=0.05 if len(parts) > 2 else 0.6)) as server:
        begin = time.monotonic()
        with pytest.raises(LashdError) as caught:
            await pre_reboot(asking(server), seconds=0.3)
        assert caught.value.name is ErrorName.TIMEOUT
        assert time.monotonic() - begin < 0.6


async def test_a_success_is_not_read_to_its_end() -> None:
    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(10_000):
            sent += handler.wfile.write(bytes(64 * 1024))

    with FleetLock(answer=endless) as server:
        await pre_reboot(asking(server))
    assert sent < 64 * 1024 * 1024


async def test_a_huge_refusal_is_not_read_to_its_end() -> None:
    flood = raw(b"HTTP/1.1 409 X\r\n\r\n", *[bytes(1024 * 1024)] * 50)
    with FleetLock(answer=flood) as server, pytest.raises(LashdError, match="with status 409"):
        await pre_reboot(asking(server))


async def test_cancelling_ends_the_connection() -> None:
    ended = threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.settimeout(5)
        assert handler.rfile.read(1) == b""
        ended.set()

    with FleetLock(answer=wait) as server:
        task = asyncio.create_task(pre_reboot(asking(server)))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 5)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://does-not-exist.invalid", "http://127.0.0.1:99999"])
async def test_nobody_there(url: str) -> None:
    with pytest.raises(LashdError) as caught:
        await steady_state(Client(url, "default", "me"))
    assert caught.value.name is ErrorName.NETWORK_UNAVAILABLE


async def test_a_full_backlog_is_a_timeout() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        with pytest.raises(LashdError) as caught:
            await pre_reboot(Client(f"http://127.0.0.1:{port}", "default", "me"), seconds=0.2)
    assert caught.value.name is ErrorName.TIMEOUT


async def test_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = tmp_path / "both.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=fleet", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(pem), "-out", f"{pem}.crt"]
    subprocess.run(argv, check=True, capture_output=True)
    pem.write_bytes(pem.read_bytes() + Path(f"{pem}.crt").read_bytes())
    with FleetLock(certificate=pem) as server:
        with pytest.raises(LashdError) as caught:
            await pre_reboot(asking(server))
        assert caught.value.name is ErrorName.NETWORK_UNAVAILABLE
        assert "certificate" in caught.value.message
        monkeypatch.setenv("SSL_CERT_FILE", f"{pem}.crt")
        await pre_reboot(asking(server))
        assert server.holders["default"] == {"me"}


MACHINE = "0123456789abcdef0123456789abcdef"


def test_the_derived_id(tmp_path: Path) -> None:
    path = tmp_path / "machine-id"
    path.write_text(f"{MACHINE}\n")
    derived = derived_id(path)
    assert len(derived) == 32
    assert derived[12] == "4"
    assert derived[16] in "89ab"
    assert derived == derived_id(path)
    # As systemd derives it, which may have been installed.
    application = "9b439ff2eaab5ac3d78f5faf52edc950"
    expected = hmac.digest(bytes.fromhex(MACHINE), bytes.fromhex(application), "sha256").hex()[:32]
    assert derived[:12] + derived[13:16] + derived[17:] == expected[:12] + expected[13:16] + expected[17:]
    path.write_text(MACHINE[::-1])
    assert derived_id(path) != derived


@pytest.mark.parametrize("content", [None, "", "uninitialized\n", "0" * 32, "0123", "ünïcode"])
def test_no_machine_id(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "id").write_text(content)
    with pytest.raises(LashdError, match="set 'fleetlock_id'"):
        derived_id(tmp_path / "id")


def test_the_client_that_settings_describe(tmp_path: Path) -> None:
    (tmp_path / "id").write_text(MACHINE)
    assert client(RebootSettings(), tmp_path / "id") is None
    settings = RebootSettings(fleetlock_url="http://fleet/", fleetlock_group="edge")
    assert client(settings, tmp_path / "id") == Client("http://fleet", "edge", derived_id(tmp_path / "id"))
    named = RebootSettings(fleetlock_url="http://fleet", fleetlock_id="node-7")
    assert client(named, tmp_path / "absent") == Client("http://fleet", "default", "node-7")
    assert MACHINE not in derived_id(tmp_path / "id")
