# SPDX-License-Identifier: Apache-2.0
"""dbus-broker without its launcher, which needs systemd: the broker alone, and the few words that it needs to hear.

A controller gives it a listening socket and a policy over a socket of their own (org.bus1.DBus.Broker, as
dbus-broker-launch does); the policy is made of the same files that dbus-daemon reads.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dbus_fast import Message, MessageType, Variant

NAMES = ("dbus-daemon", "dbus-broker")

# As dbus-broker-launch has them for a system bus: bytes, descriptors and match rules of one user.
_LIMITS = ("--max-bytes", str(512 << 20), "--max-fds", "4096", "--max-matches", "16384")
_TYPES = {None: 0, "method_call": 1, "method_return": 2, "error": 3, "signal": 4}
_ANY_USER = 0xFFFFFFFF
_MOST = 0xFFFFFFFFFFFFFFFF
_BATCH = "(bta(btbs)a(btssssuutt)a(btssssuutt))"
_POLICY = f"(a(u{_BATCH})a(buu{_BATCH})a(ss)bs)"


def program() -> str | None:
    """Where dbus-broker is: where packaging/setup unpacks it, or installed; None when it is nowhere."""
    unpacked = Path(sys.prefix) / "dbus-broker/usr/bin/dbus-broker"
    return str(unpacked) if unpacked.exists() else shutil.which("dbus-broker")


@contextlib.contextmanager
def dbus_broker(path: Path, policies: Iterable[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The broker, listening on the socket `path`, which is made. `policies`: the texts of bus configuration files."""
    argv = program()
    if argv is None:
        raise FileNotFoundError("dbus-broker is not here; packaging/setup brings it")
    ours, its = socket.socketpair()
    with ours, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen(4096)
        # It reads until it would have to wait, which on a blocking socket it does.
        listener.setblocking(False)
        its.setblocking(False)
        broker = subprocess.Popen(
            [argv, "--controller", str(its.fileno()), "--machine-id", "0" * 31 + "1", *_LIMITS],
            pass_fds=[its.fileno()],
            stderr=subprocess.DEVNULL,
        )
        its.close()
        try:
            ours.settimeout(10)
            _begin(ours)
            _add_listener(ours, listener, policy(policies))
            yield broker
        finally:
            broker.terminate()
            broker.wait()
            path.unlink()


def _begin(controller: socket.socket) -> None:
    """Authenticate: whoever has the socket is let in."""
    controller.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")
    said = b""
    while said.count(b"\r\n") < 3:
        said += controller.recv(256) or b"\r\n\r\n\r\n"
    if not said.endswith(b"AGREE_UNIX_FD\r\n"):
        raise ValueError(f"dbus-broker does not talk to its controller: {said!r}")


def _add_listener(controller: socket.socket, listener: socket.socket, rules: Variant) -> None:
    call = Message(
        path="/org/bus1/DBus/Broker",
        interface="org.bus1.DBus.Broker",
        member="AddListener",
        signature="ohv",
        body=["/org/bus1/DBus/Listener/0", 0, rules],
        unix_fds=[listener.fileno()],
        serial=1,
    )
    socket.send_fds(controller, [bytes(call._marshall(True))], [listener.fileno()])
    answer = controller.recv(4096)
    if answer[1:2] != bytes([MessageType.METHOD_RETURN.value]):
        raise ValueError(f"dbus-broker does not take its listener: {answer!r}")


def policy(texts: Iterable[str]) -> Variant:
    """The rules of some bus configuration files, as dbus-broker's launcher hands them over.

    Of rules for users only those for root are known. Rules on replies are left out, as there: it lets an expected one
    through and no other.
    """
    own: dict[str, list[Any]] = {"default": [], "root": []}
    send: list[Any] = []
    receive: list[Any] = []
    # Later rules win over earlier ones, and those for a user over those for everyone.
    numbers = itertools.count(2)
    for text in texts:
        for context in ElementTree.fromstring(text).iterfind("policy"):
            whose = context.get("user", "default")
            for rule in context:
                priority = next(numbers) + (1 << 20 if whose != "default" else 0)
                verdict = [rule.tag == "allow", priority]
                if (name := rule.get("own")) is not None:
                    own[whose].append([*verdict, name == "*", "" if name == "*" else name])
                elif any(key.startswith("send_") for key in rule.attrib):
                    send += _transmit(rule, "send_", "destination", verdict)
                elif any(key.startswith("receive_") for key in rule.attrib):
                    receive += _transmit(rule, "receive_", "sender", verdict)
    everyone = [True, 1, own["default"], send, receive]
    root = [True, 1, own["default"] + own["root"], send, receive]
    return Variant(_POLICY, [[[_ANY_USER, everyone], [0, root]], [], [], False, "system"])


def _transmit(rule: ElementTree.Element, prefix: str, peer: str, verdict: list[Any]) -> list[Any]:
    what = rule.get(f"{prefix}type")
    if what in ("method_return", "error"):
        return []
    texts = [rule.get(prefix + key, "") for key in (peer, "path", "interface", "member")]
    return [[*verdict, *texts, _TYPES[what], 0, 0, _MOST]]
