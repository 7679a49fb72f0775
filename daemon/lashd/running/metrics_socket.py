# SPDX-License-Identifier: Apache-2.0
"""The metrics for whoever asks on a unix socket: `curl --unix-socket /run/lashd/metrics.sock http://lashd/metrics`.

As much HTTP as such clients need: one GET, one answer, and the end of the connection. There is no TCP port.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from lashd.words.metrics import OPENMETRICS, PLAIN, Values, openmetrics, plain

log = logging.getLogger(__name__)

# Bounds on clients: so many at once, so long each (seconds), and requests of so many bytes.
CLIENTS = 8
SECONDS = 5.0
REQUEST_LIMIT = 8192


class MetricsSocket:
    """Answers with what `values` says at that moment. Only root may connect."""

    def __init__(self, path: Path, values: Callable[[], Values]) -> None:
        self._path = path
        self._values = values
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises OSError when it cannot be made; a socket that a killed daemon left is replaced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and stat.S_ISSOCK(self._path.lstat().st_mode):
            self._path.unlink()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            made.bind(str(self._path))
            # Nobody can connect before it listens.
            self._path.chmod(0o600)
            self._server = await asyncio.start_unix_server(
                self._accepted, sock=made, backlog=2 * CLIENTS, limit=REQUEST_LIMIT
            )
        except OSError:
            made.close()
            raise

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        for client in self._clients:
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients)
        self._server = None

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLIENTS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="metrics client")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                try:
                    request = await reader.readuntil(b"\r\n\r\n")
                except asyncio.LimitOverrunError:
                    request = b""
                writer.write(self._answer(request))
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            # Of one that does not take its answer nothing is kept.
            writer.transport.abort()

    def _answer(self, request: bytes) -> bytes:
        first, *headers = request.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response("400 Bad Request", "Ask with GET /metrics HTTP/1.1.\n")
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "Metrics can only be read.\n", more="Allow: GET, HEAD\r\n")
        if target.partition("?")[0].removeprefix("http://lashd") not in ("", "/", "/metrics"):
            return _response("404 Not Found", "There is only /metrics.\n")
        try:
            values = self._values()
        except Exception:
            log.exception("The metrics could not be told")
            return _response("500 Internal Server Error", "lashd made a mistake; its journal says more.\n")
        if _wants_plain(headers):
            return _response("200 OK", plain(values), PLAIN, head=method == "HEAD")
        return _response("200 OK", openmetrics(values), OPENMETRICS, head=method == "HEAD")


def _wants_plain(headers: list[str]) -> bool:
    """Whether the client takes the older format, and has not heard of OpenMetrics."""
    pairs = (header.partition(":") for header in headers)
    accepts = ",".join(value.lower() for name, _, value in pairs if name.lower() == "accept")
    return "text/plain" in accepts and "openmetrics" not in accepts


def _response(status: str, text: str, kind: str = PLAIN, *, more: str = "", head: bool = False) -> bytes:
    body = text.encode()
    begin = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return begin.encode("ascii") + (b"" if head else body)
