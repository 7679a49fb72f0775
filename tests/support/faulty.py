# SPDX-License-Identifier: Apache-2.0
"""A registry's bad days: an HTTP proxy in front of it that breaks what it is told to break, and counts.

    with Faulty(registry.address) as proxy:
        proxy.on(r"/blobs/", Cut(after=1000), times=2)        # the first two blobs end too early, the third is whole
        proxy.on(r"/manifests/", Status(429, retry_after=7))  # for ever
        … use proxy.address instead of registry.address …
        assert proxy.requests(r"/blobs/sha256:abc") == 1

The proxy runs in a thread with its own event loop, so blocking and asyncio tests can both use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.netns import enter

_CHUNK = 32 * 1024
_HEAD_LIMIT = 64 * 1024


@dataclass(frozen=True)
class Status:
    """Answer with this status and never ask the registry; 429 and 503 can carry Retry-After (seconds)."""

    status: int
    retry_after: int | None = None
    body: str = ""
    content_type: str = "application/json"


@dataclass(frozen=True)
class Reset:
    """Reset the connection instead of an answer."""


@dataclass(frozen=True)
class Cut:
    """Close the connection after so many bytes of the body, less than were announced."""

    after: int = 1


@dataclass(frozen=True)
class Stall:
    """Send so many bytes of the body, then nothing for ever, with the connection open."""

    after: int = 1


@dataclass(frozen=True)
class Length:
    """Announce a body so much longer (or shorter) than it is."""

    by: int = 1


@dataclass(frozen=True)
class Garble:
    """Change every byte of the body, same length."""


@dataclass(frozen=True)
class Delay:
    """Wait so many seconds before the answer: a slow registry, or one round trip of a long line."""

    seconds: float


Fault = Status | Reset | Cut | Stall | Length | Garble | Delay


@dataclass
class _Rule:
    pattern: re.Pattern[str]
    fault: Fault
    left: int | None
    method: str


@dataclass
class Request:
    """One request that went through: `sent` counts the bytes of the body that went back to the client."""

    method: str
    path: str
    status: int = 0
    sent: int = 0
    fault: Fault | None = None


class Faulty:
    """`upstream` is HOST:PORT of a plain HTTP registry; `rate` limits each connection to so many bytes a second."""

    def __init__(self, upstream: str, *, rate: int = 0, netns: Path | None = None, port: int = 0) -> None:
        host, _, port_text = upstream.rpartition(":")
        self._upstream = (host, int(port_text))
        self.rate = rate
        self.port = port
        self.log: list[Request] = []
        self._netns = netns
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def reference(self, name: str, tag_or_digest: str = "latest") -> str:
        return f"{self.address}/{name}{'@' if ':' in tag_or_digest else ':'}{tag_or_digest}"

    # What it breaks

    def on(self, pattern: str, fault: Fault, *, times: int | None = None, method: str = "GET") -> None:
        """Break requests of `method` (empty: any) whose path contains `pattern`, the next `times` times or for ever.

        Rules are tried in the order they were given; a used-up rule is passed over.
        """
        with self._lock:
            self._rules.append(_Rule(re.compile(pattern), fault, times, method))

    def heal(self) -> None:
        """Break nothing any more. Stalled answers stay stalled."""
        with self._lock:
            self._rules.clear()

    # What it counts

    def requests(self, pattern: str, *, method: str = "GET") -> int:
        return len(self.matching(pattern, method=method))

    def bytes_sent(self, pattern: str) -> int:
        return sum(request.sent for request in self.matching(pattern))

    def matching(self, pattern: str, *, method: str = "GET") -> list[Request]:
        with self._lock:
            return [each for each in self.log if each.method == method and re.search(pattern, each.path)]

    def bytes_per_path(self) -> Mapping[str, int]:
        """{path: bytes sent back}, of all GET requests."""
        sums: dict[str, int] = {}
        for each in self.matching(""):
            sums[each.path] = sums.get(each.path, 0) + each.sent
        return sums

    def forget(self) -> None:
        """Count from zero again."""
        with self._lock:
            self.log.clear()

    # Its life

    def __enter__(self) -> Self:
        self._ready.clear()
        self._thread = threading.Thread(target=self._run, name="faulty-registry", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            enter(self._netns)
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        clients: set[asyncio.Task[None]] = set()

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            clients.add(task)
            try:
                await self._client(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                pass
            finally:
                clients.discard(task)
                writer.close()

        server = await asyncio.start_server(client, "127.0.0.1", self.port, limit=_HEAD_LIMIT)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(clients):
            task.cancel()
        if clients:
            await asyncio.wait(clients)

    # One connection

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            first = await reader.readexactly(1)
            if first == b"\x16":  # a TLS hello: clients try https first, and a plain server tells them so
                writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                return
            head = first + await reader.readuntil(b"\r\n\r\n")
            method, path, headers = _parse_request(head)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Request(method, path)
            with self._lock:
                self.log.append(request)
                rule = next(
                    (
                        rule
                        for rule in self._rules
                        if rule.left != 0 and rule.method in ("", method) and rule.pattern.search(path)
                    ),
                    None,
                )
                if rule is not None:
                    request.fault = rule.fault
                    if rule.left is not None:
                        rule.left -= 1
            if not await self._answer(request, head, body, writer):
                return

    async def _answer(self, request: Request, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; false when the connection cannot be used again."""
        fault = request.fault
        if isinstance(fault, Reset):
            _reset(writer)
            return False
        if isinstance(fault, Status):
            request.status = fault.status
            await _answer_status(fault, request, writer)
            return True
        if isinstance(fault, Delay):
            await asyncio.sleep(fault.seconds)
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream, limit=_HEAD_LIMIT)
        try:
            upstream_writer.write(_without_keep_alive(head) + body)
            answer = await upstream_reader.readuntil(b"\r\n\r\n")
            status, headers = _parse_answer(answer)
            request.status = status
            length = headers.get("content-length")
            if isinstance(fault, Length) and length is not None:
                answer = re.sub(rb"(?i)(content-length: *)\d+", rb"\g<1>%d" % (int(length) + fault.by), answer)
            keep = length is not None and not isinstance(fault, Length)
            writer.write(re.sub(rb"(?i)connection: close\r\n", b"" if keep else rb"\g<0>", answer))
            await writer.drain()
            if request.method != "HEAD":
                keep = await self._body(request, upstream_reader, writer) and keep
            return keep
        finally:
            upstream_writer.close()

    async def _body(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        fault = request.fault
        while data := await reader.read(_CHUNK):
            if isinstance(fault, Cut | Stall):
                data = data[: fault.after - request.sent]
            if isinstance(fault, Garble):
                data = bytes(255 - byte for byte in data)
            # Counted before it is written: the client may ask for the count as soon as it has the bytes.
            request.sent += len(data)
            writer.write(data)
            await writer.drain()
            if self.rate:
                await asyncio.sleep(len(data) / self.rate)
            if isinstance(fault, Cut) and request.sent >= fault.after:
                return False
            if isinstance(fault, Stall) and request.sent >= fault.after:
                await asyncio.Event().wait()
        return True


def _parse_request(head: bytes) -> tuple[str, str, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    return method, path, _headers(lines[1:])


def _parse_answer(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    return int(lines[0].split(" ")[1]), _headers(lines[1:])


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _without_keep_alive(head: bytes) -> bytes:
    head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)
    return head[:-2] + b"Connection: close\r\n\r\n"


async def _answer_status(fault: Status, request: Request, writer: asyncio.StreamWriter) -> None:
    body = b"" if request.method == "HEAD" else fault.body.encode()
    head = f"HTTP/1.1 {fault.status} Told\r\nContent-Type: {fault.content_type}\r\nContent-Length: {len(body)}\r\n"
    if fault.retry_after is not None:
        head += f"Retry-After: {fault.retry_after}\r\n"
    request.sent = len(body)
    writer.write(head.encode() + b"\r\n" + body)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        # Linger 0: close sends a reset instead of a polite end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()
