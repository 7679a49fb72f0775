# SPDX-License-Identifier: Apache-2.0
"""What went wrong, for a person: one sentence, perhaps what to do, and the exit status."""

from __future__ import annotations

from typing import Any

from lashd.bus.unsupported import word_left
from lashd.words.errors import DBUS_PREFIX, ERRORS, ErrorName

# Beside the statuses of the error table (words/errors.py):
EXIT_UNAVAILABLE = 69  # lashd or the bus cannot be reached
EXIT_OUTPUT = 74  # the output cannot be written
EXIT_PROTOCOL = 76  # lashd answered what this lashctl does not understand
EXIT_INTERRUPTED = 130  # Ctrl-C

_FREEDESKTOP = "org.freedesktop.DBus.Error."
_ABSENT = {"ServiceUnknown", "NameHasNoOwner"}
_SILENT = {"NoReply", "Timeout", "TimedOut"}
_UNKNOWN = {
    *("UnknownMethod", "UnknownInterface", "UnknownObject", "UnknownProperty"),
    *("InvalidArgs", "InvalidSignature", "InconsistentMessage", "NotSupported"),
}

# Only where the command line adds something to the sentence that the daemon gave.
_HINTS = {
    ErrorName.BUSY: "'lashctl jobs' shows what is running; 'lashctl jobs --follow ID' follows it.",
    ErrorName.HELD: "'lashctl status' shows all that stands in the way.",
    ErrorName.BOUND_IMAGE_MISSING: "'lashctl list' shows which.",
    ErrorName.BOUND_IMAGE_INVALID: "'lashctl list' shows which.",
    ErrorName.WOULD_DROP_STAGED: "'lashctl rollback --drop-staged' does it all the same.",
    ErrorName.UNSUPPORTED_HOST: "When that has changed, 'systemctl restart lashd' looks again.",
    ErrorName.NO_SPACE: "'lashctl plan bind' shows what is needed and what is free.",
    ErrorName.INTERNAL: "Look into 'journalctl -u lashd'.",
}


class Failure(Exception):
    """A command that ends without what was asked for. `name` is an error of the closed list, or the bus's own."""

    def __init__(
        self, name: str, message: str, exit_status: int, *, hint: str = "", retryable: bool = False, job: int = 0
    ) -> None:
        self.name = name
        self.message = message
        self.exit_status = exit_status
        self.hint = hint
        self.retryable = retryable
        self.job = job
        self.told = False  # in JSON, on standard output
        super().__init__(message)

    def as_json(self) -> dict[str, Any]:
        return {
            "error": {
                "name": self.name,
                "message": self.message,
                "retryable": self.retryable,
                "exit-status": self.exit_status,
                **({"job": self.job} if self.job else {}),
            }
        }


def from_name(name: str, message: str, *, job: int = 0, retryable: bool | None = None) -> Failure:
    """The failure for an error of the closed list, given by its short or by its full name."""
    short = name.removeprefix(DBUS_PREFIX)
    if short not in ErrorName.__members__.values():
        return Failure(
            name or "Unknown",
            message or f"lashd reported the error '{name}', which this lashctl does not know.",
            EXIT_PROTOCOL,
            hint="lashctl and lashd may be of different versions; restart lashd after an update.",
            job=job,
        )
    known = ErrorName(short)
    facts = ERRORS[known]
    return Failure(
        known.value,
        message or facts.sentence,
        facts.exit_status,
        hint=_HINTS.get(known, ""),
        retryable=facts.retryable if retryable is None else retryable,
        job=job,
    )


def from_bus(name: str, message: str) -> Failure:
    """The failure for an error reply, whoever sent it: lashd, the bus or the bus library."""
    if name.startswith(DBUS_PREFIX):
        return from_name(name, message)
    short = name.removeprefix(_FREEDESKTOP)
    absent = short in _ABSENT or short.startswith("Spawn.") or name.startswith("org.freedesktop.systemd1.")
    # The bus may also wait for lashd in vain.
    if (absent or short in _SILENT) and (refused := word_left()):
        return from_name(ErrorName.UNSUPPORTED_HOST, refused)
    if absent:
        return Failure(
            name,
            "lashd is not running and could not be started.",
            EXIT_UNAVAILABLE,
            hint="Start it with 'systemctl start lashd'; 'systemctl status lashd' says why it is not running.",
            retryable=True,
        )
    if short == "NoServer":
        return Failure(
            name,
            message or "The system bus cannot be reached.",
            EXIT_UNAVAILABLE,
            hint="lashctl speaks to lashd over the system bus; in a container or a chroot there may be none.",
            retryable=True,
        )
    if short == "Disconnected":
        return Failure(
            name,
            "The connection to the system bus was lost. A job that was running goes on.",
            EXIT_UNAVAILABLE,
            hint="'lashctl status' shows how things stand.",
            retryable=True,
        )
    if short in _SILENT:
        return Failure(
            name,
            "lashd did not answer in time. What was asked may still be done.",
            EXIT_UNAVAILABLE,
            hint="'systemctl status lashd' says what it is doing.",
            retryable=True,
        )
    if short == "InteractiveAuthorizationRequired":
        return Failure(
            name,
            "This needs an administrator's password, and there is nobody here to ask for it.",
            ERRORS[ErrorName.NOT_AUTHORIZED].exit_status,
            hint="Try the same command on a terminal, or as root.",
        )
    if short in ("AccessDenied", "AuthFailed"):
        return Failure(
            name,
            "The system bus does not let you speak to lashd.",
            ERRORS[ErrorName.NOT_AUTHORIZED].exit_status,
            hint="Try the same command as root; is lashd's bus policy installed?",
        )
    if short in _UNKNOWN:
        return Failure(
            name,
            f"The lashd that is running does not offer this: {message or short}",
            EXIT_PROTOCOL,
            hint="lashctl and lashd may be of different versions; restart lashd after an update.",
        )
    return Failure(name, f"The bus reported an error: {message or name}", EXIT_UNAVAILABLE)


def odd_answer(what: str) -> Failure:
    return Failure(
        "Protocol",
        f"lashd gave an answer that this lashctl does not understand: {what}.",
        EXIT_PROTOCOL,
        hint="lashctl and lashd may be of different versions; restart lashd after an update.",
    )
