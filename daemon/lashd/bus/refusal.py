# SPDX-License-Identifier: Apache-2.0
"""How a call fails: D-Bus's own errors, and the one place where an exception becomes an error on the bus."""

from __future__ import annotations

import logging

from lashd.bus.library import Message
from lashd.bus.rows import to_text
from lashd.words.errors import ErrorName, LashdError

log = logging.getLogger(__name__)

STANDARD = "org.freedesktop.DBus.Error."
# Longest sentence that goes out (characters); some quote what a command printed.
LONGEST = 4000


class Refusal(Exception):
    """One of D-Bus's own errors: the last part of its name (`UnknownMethod`) and a sentence."""

    def __init__(self, name: str, sentence: str) -> None:
        self.name = STANDARD + name
        self.sentence = sentence
        super().__init__(sentence)


def explain(error: Exception, message: Message) -> tuple[str, str]:
    """Error name and sentence for the caller of `message`. What is a mistake of ours is logged, and only there."""
    if isinstance(error, Refusal):
        return error.name, error.sentence[:LONGEST]
    if isinstance(error, LashdError):
        return error.dbus_name, to_text(error.message)[:LONGEST]
    log.error("%s.%s failed by a mistake", message.interface, message.member, exc_info=error)
    internal = LashdError(ErrorName.INTERNAL)
    return internal.dbus_name, internal.message
