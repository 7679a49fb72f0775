# SPDX-License-Identifier: Apache-2.0
"""What is the case, and somebody should know: said in the journal once when it begins, not at every look."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lashd.running.rows import Row
from lashd.words import events
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId
from lashd.words.notes import read_note, write_note

log = logging.getLogger(__name__)

# Codes of BlockedBy that are worth an alert, whatever is staged.
_CODES = {
    "running-lacks": (MessageId.RUNNING_LACKS, ErrorName.BOUND_IMAGE_MISSING),
    "wrong-name": (MessageId.RUNNING_LACKS, ErrorName.DIGEST_MISMATCH),
    "store-damaged": (MessageId.STORE_DAMAGED, ErrorName.STORE_DAMAGED),
    "reboot-without-effect": (MessageId.REBOOT_BLOCKED, ErrorName.HOST_COMMAND_FAILED),
    "reboot-failed": (MessageId.REBOOT_BLOCKED, ErrorName.HOST_COMMAND_FAILED),
    "inhibited": (MessageId.REBOOT_BLOCKED, ErrorName.INHIBITED),
    "fleetlock": (MessageId.REBOOT_BLOCKED, ErrorName.INHIBITED),
    "other-updater": (MessageId.OTHER_UPDATER, ""),
}


@dataclass(frozen=True, slots=True)
class _Told:
    """What was said already in this boot and is still so: pairs of message id and what it is about."""

    told: tuple[tuple[str, str], ...] = ()


class Alerts:
    """`note` is a file that goes with the boot: a daemon that is started again does not say everything anew."""

    def __init__(self, note: Path) -> None:
        self._note = note
        self._told = (read_note(note, _Told) or _Told()).told

    def look(self, now: Row) -> None:
        """Say what has begun since the last look. `now`: the properties of the service."""
        cases = {(fields["MESSAGE_ID"], about): (sentence, fields) for about, sentence, fields in _cases(now)}
        for case, (sentence, fields) in cases.items():
            if case not in self._told:
                log.warning("%s", sentence, extra=fields)
        if tuple(cases) != self._told:
            self._told = tuple(cases)
            try:
                write_note(self._note, _Told(self._told))
            except LashdError as error:
                log.debug("%s", error.message)  # it is said once more by the next daemon


def _cases(now: Row) -> Iterable[tuple[str, str, dict[str, str]]]:
    """(what it is about, sentence, fields of the entry)."""
    if now["State"] == "held":
        why = " ".join(sentence for _, sentence in now["BlockedBy"][:3])
        fields = events.fields(MessageId.HELD, error=ErrorName.HELD, deployment=now["Staged"])
        yield now["Staged"], f"{now['Staged']} stays held. {why}", fields
    for code, sentence in now["BlockedBy"]:
        if code in _CODES:
            message, error = _CODES[code]
            about = now["Booted"] if message is MessageId.RUNNING_LACKS else ""
            yield sentence, sentence, events.fields(message, error=error, deployment=about)
