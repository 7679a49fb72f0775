# SPDX-License-Identifier: Apache-2.0
"""A client of the FleetLock protocol: a server hands out the right to reboot, to a few hosts of a group at a time.

Two requests: `pre-reboot` takes a slot (again: no change), `steady-state` gives it back (again: no change). Nothing is
tried again here, no redirect is followed (a POST would become a GET), and no proxy is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lashd.words.config import RebootSettings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.text import one_line

if TYPE_CHECKING:
    from http.client import HTTPConnection

MACHINE_ID = Path("/etc/machine-id")
# Ours alone, made once at random: what is derived with it says nothing about the machine id itself.
_APPLICATION = bytes.fromhex("9b439ff2eaab5ac3d78f5faf52edc950")
_SECONDS = 15.0
_ANSWER_LIMIT = 16 * 1024


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks, and whom. `url` is the base address, `id` what this host is called there."""

    url: str
    group: str
    id: str


def client(settings: RebootSettings, machine_id: Path = MACHINE_ID) -> Client | None:
    """The client that `settings` describe, None when no server is set. Raises InvalidArgument without a machine id."""
    if not settings.fleetlock_url:
        return None
    name = settings.fleetlock_id or derived_id(machine_id)
    return Client(settings.fleetlock_url.rstrip("/"), settings.fleetlock_group, name)


def derived_id(machine_id: Path = MACHINE_ID) -> str:
    """What this host is called, 32 hex digits, the same at every boot; as sd_id128_get_machine_app_specific()."""
    import hmac

    try:
        key = bytes.fromhex(machine_id.read_text(encoding="ascii").strip())
        if len(key) != 16 or not any(key):
            raise ValueError
    except (OSError, ValueError):
        raise LashdError(
            ErrorName.INVALID_ARGUMENT,
            f"{machine_id} has no machine id, so the FleetLock server cannot be told who asks; set 'fleetlock_id'.",
        ) from None
    digest = bytearray(hmac.digest(key, _APPLICATION, "sha256")[:16])
    digest[6] = digest[6] & 0x0F | 0x40
    digest[8] = digest[8] & 0x3F | 0x80
    return digest.hex()


async def pre_reboot(who: Client, seconds: float = _SECONDS) -> None:
    """Take a slot, or keep the one that is held. `seconds` are for all of it.

    Raises Inhibited when the server refuses: no slot was taken. Raises NetworkUnavailable or Timeout when it does not
    give a clear answer: then a slot may have been taken.
    """
    await _ask(who, "pre-reboot", seconds)


async def steady_state(who: Client, seconds: float = _SECONDS) -> None:
    """Give the slot back, if one is held. Raises as `pre_reboot`; after any error it may still be held."""
    await _ask(who, "steady-state", seconds)


async def _ask(who: Client, verb: str, seconds: float) -> None:
    exchange = _Exchange(who, verb, seconds)
    try:
        async with asyncio.timeout(seconds):
            status, body = await _in_thread(exchange.run)
    except TimeoutError as error:
        raise LashdError(
            ErrorName.TIMEOUT, f"The FleetLock server at {who.url} did not answer within {seconds:.0f} seconds."
        ) from error
    except _unclear() as error:
        raise LashdError(
            ErrorName.NETWORK_UNAVAILABLE,
            f"The FleetLock server at {who.url} cannot be reached: {one_line(str(error))}.",
        ) from error
    finally:
        exchange.abort()
    _judge(who, status, body)


def _judge(who: Client, status: int, body: bytes) -> None:
    if 200 <= status < 300:
        return
    kind, value = _error(body)
    said = (f": {value}" if value else "") + (f" ({kind})" if kind else "")
    if 400 <= status < 500:
        raise LashdError(
            ErrorName.INHIBITED,
            f"The FleetLock server at {who.url} refuses the right to reboot, with status {status}{said}.",
        )
    hint = ", which is no answer of that protocol; check 'fleetlock_url'" if status < 400 else ""
    raise LashdError(
        ErrorName.NETWORK_UNAVAILABLE, f"The FleetLock server at {who.url} answered with status {status}{said}{hint}."
    )


def _error(body: bytes) -> tuple[str, str]:
    """(kind, value) of a refusal, both empty when the body is something else."""
    try:
        document = json.loads(body)
        kind, value = document.get("kind", ""), document.get("value", "")
    except (ValueError, AttributeError, RecursionError):
        return "", ""
    return (one_line(kind), one_line(value)) if isinstance(kind, str) and isinstance(value, str) else ("", "")


class _Exchange:
    """One request in a thread. The standard library bounds each read only; `abort` ends it in any state."""

    def __init__(self, who: Client, verb: str, seconds: float) -> None:
        self._who = who
        self._verb = verb
        self._seconds = seconds
        self._connection: HTTPConnection | None = None
        self._aborted = False

    def run(self) -> tuple[int, bytes]:
        from http.client import HTTPConnection, HTTPSConnection
        from urllib.parse import urlsplit

        parts = urlsplit(self._who.url)
        assert parts.hostname is not None
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = connection = kind(parts.hostname, parts.port, timeout=self._seconds)
        question = json.dumps({"client_params": {"id": self._who.id, "group": self._who.group}})
        headers = {"fleet-lock-protocol": "true", "Content-Type": "application/json", "Connection": "close"}
        try:
            connection.connect()
            if self._aborted:
                raise OSError("aborted")
            connection.request("POST", f"{parts.path.rstrip('/')}/v1/{self._verb}", question, headers)
            response = connection.getresponse()
            body = b""
            # What a success says is of no interest, so it is not waited for.
            if not 200 <= response.status < 300:
                # The status alone is an answer; the rest of it may be missing.
                with contextlib.suppress(*_unclear()):
                    body = response.read(_ANSWER_LIMIT)
            return response.status, body
        finally:
            connection.close()

    def abort(self) -> None:
        self._aborted = True
        if self._connection is not None and isinstance(self._connection.sock, socket.socket):
            # The thread may be closing it just now.
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)


async def _in_thread(function: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
    """As asyncio.to_thread, but nobody waits for the thread: a name server that is silent cannot be interrupted."""
    import threading

    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[int, bytes]] = loop.create_future()

    def settle(result: tuple[int, bytes] | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def work() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="fleetlock", daemon=True).start()
    return await future


def _unclear() -> tuple[type[Exception], ...]:
    from http.client import HTTPException

    # ValueError: rubbish where the standard library expects a number or a name.
    return (OSError, HTTPException, ValueError)
