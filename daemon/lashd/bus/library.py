# SPDX-License-Identifier: Apache-2.0
"""The one module that imports a D-Bus library: dbus-next, or dbus-fast, its maintained fork with the same API.

Everything else sees only what is defined here: a connection, messages and `Variant`. Nothing of the library's own
service or proxy layer is used, because it puts tracebacks on the bus and hides the sender from the callee.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lashd.bus.message import BUS, BUS_PATH, BusError, Match, Message, Settled, lost
from lashd.bus.repairs import PatientSocket, keep_marshalled, repaired
from lashd.bus.watch import Watch

__all__ = [
    "BUS",
    "BUS_PATH",
    "BusError",
    "Connection",
    "Match",
    "Message",
    "Settled",
    "Variant",
    "Watch",
    "connect",
    "plain",
]

log = logging.getLogger(__name__)

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
# Most clients give up after 25 seconds; so do we where the caller says nothing.
DEFAULT_TIMEOUT = 25.0
# The largest message that a client takes from a service that it asked (bytes).
CLIENT_LIMIT = 64 * 1024 * 1024
# The largest message that the service takes from anyone on the bus: our calls are a few hundred bytes, and parsing
# a message keeps the loop busy, dbus-next for up to a microsecond for each byte.
SERVICE_LIMIT = 16 * 1024


def _library_name() -> str:
    chosen = os.environ.get("LASHD_DBUS", "")
    if chosen:
        if chosen not in ("dbus_next", "dbus_fast"):
            raise ImportError(f"LASHD_DBUS is '{chosen}'; it must be dbus_next or dbus_fast.")
        return chosen
    # dbus-next does not import on Python 3.15 and later.
    order = ("dbus_fast",) if sys.version_info >= (3, 15) else ("dbus_next", "dbus_fast")
    for name in order:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
            return name
    raise ImportError("Neither dbus-next nor dbus-fast is installed; lashd needs one of them.")


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Nothing finds `module` in here, unless it was imported before."""
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


# Both libraries bring GLib in with them where it is installed, which nobody here uses: 3 MiB of memory, 20 ms.
with _without("gi"):
    LIBRARY = _library_name()
    _library: Any = importlib.import_module(LIBRARY)
_MessageBus: Any = importlib.import_module(f"{LIBRARY}.aio").MessageBus
if LIBRARY == "dbus_next":
    _MessageBus = repaired(_MessageBus)
    keep_marshalled(_library.message)
_RawMessage: Any = _library.Message
_MessageType: Any = _library.MessageType
_MessageFlag: Any = _library.MessageFlag
Variant: Any = _library.Variant  # Variant(signature, value), with those two attributes


CallHandler = Callable[[Message], None]
SignalHandler = Callable[[Message], None]


def plain(value: Any) -> Any:
    """`value` with every variant replaced by what it holds, and tuples by lists."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


async def connect(address: str = "", *, largest: int = CLIENT_LIMIT) -> Connection:
    """Connect to the bus at `address`, or to the system bus. Raises BusError when it cannot be reached.

    Messages of more than `largest` bytes are refused unread (dbus-next only; dbus-fast parses them, but quickly).
    """
    where = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
    try:
        # Never negotiate file descriptors: both libraries leak those that nobody asked for.
        bus = _MessageBus(bus_address=where, negotiate_unix_fd=False)
        if LIBRARY == "dbus_next":
            bus.largest = largest
        await asyncio.wait_for(bus.connect(), DEFAULT_TIMEOUT)
        bus._writer.sock = PatientSocket(bus._writer.sock)
    except Exception as error:
        why = str(error) or type(error).__name__
        raise BusError(f"{BUS}.Error.NoServer", f"The bus at {where} cannot be reached: {why}.") from error
    return Connection(bus)


class Connection:
    """One connection. Without a call handler it is a client: calls to it are refused."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus
        self._call_handler: CallHandler | None = None
        self._signal_handlers: list[SignalHandler] = []
        self._lost = asyncio.create_task(self._wait_lost(), name="bus connection")
        bus.add_message_handler(self._received)
        if LIBRARY == "dbus_next":
            bus.dropped = self._refuse_unread

    @property
    def name(self) -> str:
        """Our unique name."""
        return str(self._bus.unique_name)

    @property
    def connected(self) -> bool:
        return bool(self._bus.connected) and not self._lost.done()

    def serve(self, handler: CallHandler) -> None:
        """Give every method call to `handler`, which answers it with `reply` or `refuse`, then or later."""
        self._call_handler = handler

    def listen(self, handler: SignalHandler) -> None:
        """Give every signal that arrives to `handler`; see `add_match`."""
        self._signal_handlers.append(handler)

    def ignore(self, handler: SignalHandler) -> None:
        self._signal_handlers.remove(handler)

    # -- sending ----------------------------------------------------------------------------------------------------

    def reply(self, call: Message, signature: str, body: Sequence[Any]) -> None:
        """Answer `call`, unless it wants no answer. Raises ValueError when `body` does not fit `signature`."""
        if call.wants_reply:
            self._send(
                message_type=_MessageType.METHOD_RETURN,
                reply_serial=call.serial,
                destination=call.sender,
                signature=signature,
                # dbus-fast takes plain lists only, and is fast.
                body=body if isinstance(body, Settled) and LIBRARY == "dbus_next" else list(body),
            )

    def refuse(self, call: Message, name: str, sentence: str) -> None:
        """Answer `call` with an error, unless it wants no answer."""
        if call.wants_reply:
            self._send(
                message_type=_MessageType.ERROR,
                reply_serial=call.serial,
                destination=call.sender,
                error_name=name,
                signature="s",
                body=[sentence],
            )

    def _refuse_unread(self, sender: str, serial: int, large: bool) -> None:
        name, why = ("LimitsExceeded", "is too large") if large else ("InvalidArgs", "cannot be understood")
        call = Message(True, sender, "", "", "", "", [], serial)
        self.refuse(call, f"{BUS}.Error.{name}", f"This call {why}; nothing of it was done.")

    def emit(self, path: str, interface: str, member: str, signature: str, body: Sequence[Any]) -> None:
        """Send a signal to whoever listens. Raises ValueError when `body` does not fit `signature`."""
        self._send(
            message_type=_MessageType.SIGNAL,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )

    def _send(self, **fields: Any) -> None:
        if not self.connected:
            return
        try:
            sent = self._bus.send(_RawMessage(**fields))
        except OSError:
            return  # the reader sees the lost connection as well, and ends the daemon
        except Exception as error:
            raise ValueError(f"{fields.get('member') or 'The answer'} cannot be sent: {error}") from error
        sent.add_done_callback(_forget)

    # -- calling ----------------------------------------------------------------------------------------------------

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        interactive: bool = False,
        start: bool = True,
    ) -> list[Any]:
        """Call a method and return the reply's body, without variants. `timeout` is in seconds, None waits for ever.

        The bus starts a service that it knows how to start, unless `start` is false.

        Raises BusError with the name and the sentence that came back, or NoReply, or Disconnected.
        """
        if not self.connected:
            raise lost()
        try:
            flags = _MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else _MessageFlag.NONE
            message = _RawMessage(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
                flags=flags if start else flags | _MessageFlag.NO_AUTOSTART,
            )
            async with asyncio.timeout(timeout):
                answer = await self._bus.call(message)
        except TimeoutError:
            raise BusError(
                f"{BUS}.Error.NoReply", f"{destination} did not answer {member} within {timeout:g} seconds."
            ) from None
        except (EOFError, OSError) as error:
            raise lost() from error
        except Exception as error:
            raise BusError(f"{BUS}.Error.InvalidArgs", f"{member} cannot be called like this: {error}") from error
        if answer is None:
            raise lost()
        if answer.message_type == _MessageType.ERROR:
            sentence = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
            raise BusError(answer.error_name or f"{BUS}.Error.Failed", sentence)
        return [plain(item) for item in answer.body]

    async def call_bus(self, member: str, signature: str = "", body: Sequence[Any] = ()) -> list[Any]:
        """Call a method of the bus itself."""
        return await self.call(BUS, BUS_PATH, BUS, member, signature, body)

    def post(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", body: Sequence[Any] = ()
    ) -> None:
        """Call a method without wanting an answer, also where nothing can be waited for. Starts no service."""
        self._send(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            flags=_MessageFlag.NO_REPLY_EXPECTED | _MessageFlag.NO_AUTOSTART,
        )

    async def request_name(self, name: str) -> None:
        """Own `name`, without waiting in a queue for it. Raises BusError."""
        (result,) = await self.call_bus("RequestName", "su", [name, 4])
        if result not in (1, 4):
            raise BusError(
                f"{BUS}.Error.Failed", f"Another process owns the name {name} already; is lashd running twice?"
            )

    async def release_name(self, name: str) -> None:
        """Own `name` no longer; what was sent to it before has arrived when this returns. Raises BusError."""
        await self.call_bus("ReleaseName", "s", [name])

    async def add_match(self, match: Match) -> None:
        await self.call_bus("AddMatch", "s", [match.rule])

    async def remove_match(self, match: Match) -> None:
        await self.call_bus("RemoveMatch", "s", [match.rule])

    async def watch(self, match: Match) -> Watch:
        """The signals that match, from now on: `async with await bus.watch(match) as signals: async for signal …`."""
        watch = Watch(self, match)
        await watch.open()
        return watch

    # -- the end ----------------------------------------------------------------------------------------------------

    async def lost(self) -> None:
        """Returns when the connection has ended, whoever ended it."""
        await asyncio.shield(self._lost)

    async def disconnect(self) -> None:
        """End the connection; what was sent before goes out first."""
        if self.connected:
            with contextlib.suppress(BusError):
                await self.call_bus("GetId")
            self._bus.disconnect()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(asyncio.shield(self._lost), 5)

    async def _wait_lost(self) -> None:
        with contextlib.suppress(Exception):
            await self._bus.wait_for_disconnect()

    # -- receiving --------------------------------------------------------------------------------------------------

    def _received(self, raw: Any) -> Any:
        """The library's message handler: true means that the library need not look at the message. Never raises."""
        if raw.message_type not in (_MessageType.METHOD_CALL, _MessageType.SIGNAL):
            return False
        call = raw.message_type == _MessageType.METHOD_CALL
        flags = int(raw.flags)
        message = Message(
            call=call,
            sender=raw.sender or "",
            path=raw.path or "",
            interface=raw.interface or "",
            member=raw.member or "",
            signature=raw.signature or "",
            body=raw.body,
            serial=raw.serial,
            interactive=bool(flags & 4),
            wants_reply=call and not flags & 1,
        )
        try:
            if not call:
                for handler in tuple(self._signal_handlers):
                    handler(message)
            elif self._call_handler is not None:
                self._call_handler(message)
            else:
                self.refuse(message, f"{BUS}.Error.UnknownMethod", "This is a client; it has no methods.")
        except Exception:
            log.exception("A message from %s was not handled", message.sender)
        return True


def _forget(sent: asyncio.Future[None]) -> None:
    # A connection that ends while something is being sent is told to everyone by `lost`.
    if not sent.cancelled():
        sent.exception()
