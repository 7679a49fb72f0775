# SPDX-License-Identifier: Apache-2.0
"""A FleetLock server on a free port of 127.0.0.1: a counting semaphore for each group, over HTTP or HTTPS.

    with FleetLock(slots=1) as server:
        server.url, server.holders["default"], server.requests

`answer` replaces the protocol: it gets the handler and writes whatever it likes.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    """One request that was understood."""

    verb: str
    group: str
    id: str


class FleetLock:
    """`slots` hosts of one group may hold the lock at once. `certificate` is a PEM file with key and certificate."""

    def __init__(
        self,
        slots: int = 1,
        *,
        answer: Callable[[BaseHTTPRequestHandler], None] | None = None,
        certificate: Path | None = None,
        base: str = "",
    ) -> None:
        self.slots = slots
        self.answer = answer
        self.base = base
        self.holders: defaultdict[str, set[str]] = defaultdict(set)
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}{base}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def decide(self, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str]]:
        """Status and error of one request."""
        if headers.get("fleet-lock-protocol") != "true":
            return 400, {"kind": "no_header", "value": "The header fleet-lock-protocol is missing."}
        try:
            asked = json.loads(body)["client_params"]
            request = Request(path.removeprefix(f"{self.base}/v1/"), asked["group"], asked["id"])
        except (ValueError, KeyError, TypeError):
            return 400, {"kind": "bad_body", "value": "The body cannot be understood."}
        with self._lock:
            self.requests.append(request)
            holders = self.holders[request.group]
            if request.verb == "steady-state":
                holders.discard(request.id)
                return 200, {}
            if request.verb != "pre-reboot":
                return 404, {"kind": "no_such_verb", "value": path}
            if request.id not in holders and len(holders) >= self.slots:
                return 409, {"kind": "failed_lock", "value": f"All {self.slots} slots are taken"}
            holders.add(request.id)
            return 200, {}

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if server.answer is not None:
                    server.answer(self)
                    return
                status, error = server.decide(self.path, self.headers, body)
                content = json.dumps(error).encode() if error else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                # Where a redirected POST would arrive.
                server.requests.append(Request(f"GET {self.path}", "", ""))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *words: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the client went away, as some tests want it to
                    super().handle()

        return Handler
