# SPDX-License-Identifier: Apache-2.0
"""What crosses the bus, without any library: messages, which of them one wants, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"


class BusError(Exception):
    """An error reply, or a failure of the connection itself: the D-Bus error name and its sentence."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        self.message = message
        super().__init__(message or name)


class Settled(list[Any]):
    """A reply's body that does not change any more, so that its bytes on the wire can be kept in `marshalled`."""

    marshalled: bytes | None = None


def lost() -> BusError:
    """The error of whoever waits for something on a connection that has ended."""
    return BusError(f"{BUS}.Error.Disconnected", "The connection to the bus was lost.")


@dataclass(frozen=True, slots=True)
class Message:
    """A method call or a signal that came in. `body` holds plain values, except that variants are `Variant`."""

    call: bool
    sender: str
    path: str
    interface: str
    member: str
    signature: str
    body: Sequence[Any]
    serial: int = 0
    interactive: bool = False  # the caller allows a prompt
    wants_reply: bool = True


@dataclass(frozen=True, slots=True)
class Match:
    """Which signals to receive; empty means any. `sender` may be a well-known name."""

    sender: str = ""
    path: str = ""
    path_namespace: str = ""
    interface: str = ""
    member: str = ""
    arguments: dict[int, str] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        parts = ["type='signal'"]
        for key in ("sender", "path", "path_namespace", "interface", "member"):
            if value := getattr(self, key):
                parts.append(f"{key}='{value}'")
        parts += [f"arg{number}='{value}'" for number, value in self.arguments.items()]
        return ",".join(parts)

    def accepts(self, message: Message) -> bool:
        """Does `message` match? The sender is only compared when it is a unique name or the bus itself."""
        if (self.sender == BUS or self.sender.startswith(":")) and message.sender != self.sender:
            return False
        below = self.path_namespace
        if below and message.path != below and not message.path.startswith(below.rstrip("/") + "/"):
            return False
        if any(getattr(self, key) not in ("", getattr(message, key)) for key in ("path", "interface", "member")):
            return False
        return all(
            number < len(message.body) and message.body[number] == value for number, value in self.arguments.items()
        )
