# SPDX-License-Identifier: Apache-2.0
"""Talking to systemd: log records with fields in the journal, and how the daemon is. Works without systemd too."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from typing import Any

from lashd.words.events import of_job

# Attributes of a log record (given as `extra`) that become fields of the journal entry start with this.
FIELD_PREFIX = "LASHD_"


def set_up_logging(level: int = logging.INFO) -> None:
    """Log to the journal with fields when our standard error goes there, else to standard error."""
    handler: logging.Handler = _journal_handler() or _stderr_handler()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def _stderr_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    return handler


def _journal_handler() -> logging.Handler | None:
    # JOURNAL_STREAM names the journal's socket as device:inode; it is inherited by whatever we start, so compare.
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return None
    if os.environ.get("JOURNAL_STREAM") != f"{status.st_dev}:{status.st_ino}":
        return None
    try:
        from systemd import journal
    except ImportError:
        return None

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                journal.send(self.format(record), **fields(record))
            except Exception:
                self.handleError(record)

    return Handler()


_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a journal entry for `record`, besides its message."""
    priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
    return {
        "PRIORITY": str(priority),
        "SYSLOG_IDENTIFIER": "lashd",
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName or "",
        **of_job(),
        **{key: str(value) for key, value in vars(record).items() if key.startswith(FIELD_PREFIX)},
        **({"MESSAGE_ID": str(vars(record)["MESSAGE_ID"])} if "MESSAGE_ID" in vars(record) else {}),
    }


def notify_address() -> str:
    """Where systemd listens, as socket(7) takes it; empty without systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    return "\0" + address[1:] if address.startswith("@") else address


def notify(*assignments: str) -> None:
    """Tell systemd, as sd_notify(3) does: `READY=1`, `STATUS=…`, `STOPPING=1`. Nothing happens without systemd."""
    address = notify_address()
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto("\n".join(assignments).encode(), address)
