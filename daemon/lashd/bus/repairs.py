# SPDX-License-Identifier: Apache-2.0
"""What a service on the system bus needs and the D-Bus libraries do not do.

Most of it is about dbus-next 0.2.3, which has no newer release. The class to repair is given from outside, because only
`library` imports it. Each method below replaces one of the library's; the comments say what happens without.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

from lashd.bus import header

log = logging.getLogger(__name__)

# So many messages are handled before the rest of the loop (our answers, for one) gets its turn.
BATCH = 32
# So many parsed signatures are remembered.
SIGNATURES = 500


class _TooLarge(Exception):
    def __init__(self, rest: int) -> None:
        self.rest = rest
        super().__init__(f"{rest} bytes")


class PatientSocket:
    """The socket that a library writes to. Both take a full socket for a broken one, and end the connection.

    Nothing sent is what they understand: they then wait until the socket takes more.
    """

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner

    def send(self, data: bytes) -> int:
        try:
            return self._inner.send(data)
        except BlockingIOError:
            return 0


def keep_marshalled(module: Any) -> None:
    """Let `module`, dbus-next's for messages, marshal a `Settled` body once only.

    Without: it takes 2 µs for each value, in pure Python, so a list of a hundred images costs 3 ms each time.
    """
    if hasattr(module.Marshaller, "keeps"):
        return
    library: Any = module.Marshaller

    class Marshaller(library):  # type: ignore[misc]
        keeps = "marshalled"

        def __init__(self, signature: str, body: Any) -> None:
            self._kept = getattr(body, self.keeps, None)
            if self._kept is None:
                super().__init__(signature, body)
            else:
                self.buffer = self._kept

        def marshall(self) -> Any:
            if self._kept is not None:
                return self._kept
            buffer = super().marshall()
            if hasattr(self.body, self.keeps):
                setattr(self.body, self.keeps, bytes(buffer))
            return buffer

    module.Marshaller = Marshaller


def repaired(base: Any) -> Any:
    """dbus-next's MessageBus with the repairs; `largest` is the size in bytes above which a message is dropped."""
    module: Any = sys.modules[base.__module__]
    signatures: dict[str, Any] = sys.modules[f"{base.__module__.split('.')[0]}.signature"].SignatureTree._cache

    class Unmarshaller(module.Unmarshaller):  # type: ignore[misc]
        largest = sys.maxsize

        def read(self, n: int, prefetch: bool = False) -> Any:
            # The library takes whatever length the header names, and builds objects of many times that size.
            if prefetch and n > self.largest:
                raise _TooLarge(n)
            return super().read(n, prefetch)

    class MessageBus(base):  # type: ignore[misc]
        largest = sys.maxsize
        # Called with who waits for an answer to a message that was dropped, its serial, and whether it was too large.
        dropped: Callable[[str, int, bool], None] = staticmethod(lambda sender, serial, large: None)
        _skip = 0
        _head = b""  # of the large message that is being skipped
        _unmarshaller: Any

        def _create_unmarshaller(self) -> Any:
            unmarshaller = Unmarshaller(self._stream)
            unmarshaller.largest = self.largest
            return unmarshaller

        async def _auth_readline(self) -> str:
            # Without: a bus that closes the connection here makes the library spin for ever.
            line = b""
            while not line.endswith(b"\r\n"):
                piece = await self._loop.sock_recv(self._sock, 1)
                if not piece:
                    raise EOFError("the bus closed the connection")
                line += piece
            return line[:-2].decode()

        def _message_reader(self) -> None:
            # Without: a peer that sends faster than we read keeps the loop here, our answers pile up in memory, and a
            # message that the library cannot parse ends the connection, and so the daemon.
            if self._disconnected:
                return
            try:
                for _ in range(BATCH):
                    if not self._read_one():
                        return
            except Exception as error:
                self._finalize(error)
            else:
                # The stream may have the rest buffered, so the socket alone would not wake us.
                self._loop.call_soon(self._message_reader)

        def _read_one(self) -> bool:
            """Handle one message; false when no whole message is there."""
            if self._skip:
                return self._skip_some()
            unmarshaller = self._unmarshaller
            try:
                message = unmarshaller.unmarshall()
            except _TooLarge as error:
                log.warning("A message of %s was dropped", error)
                self._skip = error.rest
                self._head = bytes(unmarshaller.buf)
                self._unmarshaller = self._create_unmarshaller()
                return True
            except (EOFError, OSError):
                raise
            except Exception as error:
                # Nothing before the lengths can be wrong but the byte order, and then the stream cannot be followed.
                self._skip = header.length(unmarshaller.buf) - len(unmarshaller.buf)
                log.warning("A message that cannot be parsed was dropped: %s", type(error).__name__)
                self._unmarshaller = self._create_unmarshaller()
                self._tell_dropped(bytes(unmarshaller.buf), large=False)
                return True
            if message is None:
                return False
            self._unmarshaller = self._create_unmarshaller()
            self._on_message(message)
            # Without: every signature that anyone ever sends stays in memory.
            if len(signatures) > SIGNATURES:
                signatures.clear()
            return True

        def _skip_some(self) -> bool:
            data = self._stream.read(min(self._skip, 65536))
            if data is None:
                return False
            if not data:
                raise EOFError
            self._skip -= len(data)
            if self._head:
                self._head += data
                if len(self._head) >= min(header.header_length(self._head), header.LONGEST):
                    head, self._head = self._head, b""
                    self._tell_dropped(head, large=True)
            return True

        def _tell_dropped(self, head: bytes, *, large: bool) -> None:
            # Without: whoever asked waits for as long as it has patience.
            if (asked := header.asked_by(head)) is not None:
                self.dropped(*asked, large)

        def _finalize(self, err: Exception | None = None) -> None:
            super()._finalize(err)
            # Without: the socket stays open until the garbage collector comes.
            with contextlib.suppress(Exception):
                self._stream.close()
            self._sock.close()

    return MessageBus
