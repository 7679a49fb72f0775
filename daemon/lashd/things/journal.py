# SPDX-License-Identifier: Apache-2.0
"""Entries with fields for the journal, from programs that have no time to load more: its native protocol.

The daemon itself uses systemd-python (bus/journal.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

SOCKET = Path("/run/systemd/journal/socket")


def goes_to_journal(stream: TextIO) -> bool:
    """Whether systemd has connected `stream` with the journal."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def send(fields: Mapping[str, str], *, journal: Path = SOCKET) -> bool:
    """Put one entry into the journal, whose socket is `journal`. False when it could not be; never waits or raises."""
    import socket  # not at an ordinary boot

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # Whoever shuts down or boots must not hang on a journal that does.
            sender.setblocking(False)
            sender.sendto(b"".join(_field(name, value) for name, value in fields.items()), os.fspath(journal))
    except OSError:
        return False
    return True


def tell(stream: TextIO, sentence: str, fields: Mapping[str, str], *, priority: int, identifier: str) -> bool:
    """Put `sentence` into the journal with `fields`, instead of printing it on `stream`. Answers whether it is there.

    Not where `stream` goes elsewhere: then somebody reads it there.
    """
    if not goes_to_journal(stream):
        return False
    entry = {"MESSAGE": sentence, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": identifier, **fields}
    # The journal finds out for itself to which unit a sender belongs, unless that has ended by then.
    unit = own_unit()
    return send(entry | {"OBJECT_SYSTEMD_UNIT": unit} if unit else entry)


def own_unit(cgroups: Path = Path("/proc/self/cgroup")) -> str:
    """The service that this process belongs to, empty for none."""
    try:
        name = cgroups.read_text(errors="replace").rpartition("/")[2].strip()
    except OSError:
        return ""
    return name if name.endswith(".service") else ""


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    # Else what comes after a line feed would be a field of its own.
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
