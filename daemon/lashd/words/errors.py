# SPDX-License-Identifier: Apache-2.0
"""The closed list of errors: one table for the bus, the CLI, JSON, history, metrics and the journal.

An error is for a person who sees nothing else (`busctl` prints only the message): a whole sentence that says what
happened, what it means and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

DBUS_PREFIX = "io.github.lashd1.Error."


class ErrorName(StrEnum):
    INVALID_ARGUMENT = "InvalidArgument"
    NOT_AUTHORIZED = "NotAuthorized"
    BUSY = "Busy"
    UNSUPPORTED_HOST = "UnsupportedHost"
    NOTHING_STAGED = "NothingStaged"
    DIGEST_MISMATCH = "DigestMismatch"
    BOUND_IMAGE_INVALID = "BoundImageInvalid"
    BOUND_IMAGE_MISSING = "BoundImageMissing"
    PULL_FAILED = "PullFailed"
    AUTHENTICATION_FAILED = "AuthenticationFailed"
    NOT_FOUND = "NotFound"
    NETWORK_UNAVAILABLE = "NetworkUnavailable"
    TIMEOUT = "Timeout"
    NO_SPACE = "NoSpace"
    SIGNATURE_REJECTED = "SignatureRejected"
    STORE_DAMAGED = "StoreDamaged"
    INHIBITED = "Inhibited"
    OUTSIDE_WINDOW = "OutsideWindow"
    HELD = "Held"
    ROLLBACK_UNAVAILABLE = "RollbackUnavailable"
    ROLLBACK_IMAGES_MISSING = "RollbackImagesMissing"
    WOULD_DROP_STAGED = "WouldDropStaged"
    NOT_CANCELLABLE = "NotCancellable"
    CANCELLED = "Cancelled"
    SYSROOT_LOCKED = "SysrootLocked"
    HOST_COMMAND_FAILED = "HostCommandFailed"
    INTERNAL = "Internal"


@dataclass(frozen=True, slots=True)
class ErrorFacts:
    """What every door needs to know of an error.

    `sentence` is used where no better one is at hand, `retryable` says whether the same request may succeed later
    without a person doing anything, `exit_status` is what lashctl ends with (1 to 69; 0 and 77 are not errors).
    """

    sentence: str
    retryable: bool
    exit_status: int


ERRORS: dict[ErrorName, ErrorFacts] = {
    ErrorName.INVALID_ARGUMENT: ErrorFacts("The request is not valid; nothing was changed.", False, 2),
    ErrorName.NOT_AUTHORIZED: ErrorFacts("You are not allowed to do this; ask an administrator.", False, 4),
    ErrorName.BUSY: ErrorFacts("Another operation is running; wait for it or cancel it.", True, 5),
    ErrorName.UNSUPPORTED_HOST: ErrorFacts("This host is not one that lashd can manage.", False, 6),
    ErrorName.NOTHING_STAGED: ErrorFacts("No deployment is staged; stage one with an upgrade first.", False, 7),
    ErrorName.DIGEST_MISMATCH: ErrorFacts("The content is not what was expected; it was not used.", False, 8),
    ErrorName.BOUND_IMAGE_INVALID: ErrorFacts(
        "A bound image of this deployment is not described correctly; mend its unit file in the host image.", False, 9
    ),
    ErrorName.BOUND_IMAGE_MISSING: ErrorFacts(
        "A bound image is not complete in the store; run 'lashctl bind' to fetch it.", True, 10
    ),
    ErrorName.PULL_FAILED: ErrorFacts("A bound image could not be fetched.", True, 11),
    ErrorName.AUTHENTICATION_FAILED: ErrorFacts(
        "The registry refused the credentials; mend the auth file and try again.", False, 12
    ),
    ErrorName.NOT_FOUND: ErrorFacts(
        "The registry does not have this image; check its name, tag and digest.", False, 13
    ),
    ErrorName.NETWORK_UNAVAILABLE: ErrorFacts("The registry cannot be reached; check the network.", True, 14),
    ErrorName.TIMEOUT: ErrorFacts("No progress was made in the time allowed.", True, 15),
    ErrorName.NO_SPACE: ErrorFacts(
        "There is not enough free space for the images; free some and try again.", False, 16
    ),
    ErrorName.SIGNATURE_REJECTED: ErrorFacts("The signature policy of this host rejects the image.", False, 17),
    ErrorName.STORE_DAMAGED: ErrorFacts(
        "The bound image store is damaged; 'lashctl bind' repairs what it can.", False, 18
    ),
    ErrorName.INHIBITED: ErrorFacts("Something inhibits the reboot; try again when it has ended.", True, 19),
    ErrorName.OUTSIDE_WINDOW: ErrorFacts("The reboot window is closed; the reboot waits for the next one.", True, 20),
    ErrorName.HELD: ErrorFacts("The staged deployment is held: not all of its bound images are present.", True, 21),
    ErrorName.ROLLBACK_UNAVAILABLE: ErrorFacts("There is no other deployment to roll back to.", False, 22),
    ErrorName.ROLLBACK_IMAGES_MISSING: ErrorFacts(
        "The rollback deployment's images are not complete and could not be repaired; nothing was changed.", True, 23
    ),
    ErrorName.WOULD_DROP_STAGED: ErrorFacts(
        "A rollback would drop the staged deployment; ask again with 'drop-staged' if that is wanted.", False, 24
    ),
    ErrorName.NOT_CANCELLABLE: ErrorFacts("This operation can no longer be cancelled.", False, 25),
    ErrorName.CANCELLED: ErrorFacts("The operation was cancelled; what was fetched is kept.", False, 26),
    ErrorName.SYSROOT_LOCKED: ErrorFacts(
        "Another program is changing the system; try again when it has ended.", True, 27
    ),
    ErrorName.HOST_COMMAND_FAILED: ErrorFacts("A command that changes the host failed; nothing was changed.", True, 28),
    ErrorName.INTERNAL: ErrorFacts("lashd made a mistake; the journal of lashd.service says more.", False, 70),
}

EXIT_NOTHING_TO_DO = 77


class LashdError(Exception):
    """An expected failure: a name from the closed list and a sentence that stands alone.

    `retryable` is the table's word unless the place that knows better says otherwise; `retry_after` is the number of
    seconds that the other side asked us to wait, or None.
    """

    def __init__(
        self, name: ErrorName, message: str = "", *, retryable: bool | None = None, retry_after: float | None = None
    ) -> None:
        self.name = name
        self.message = message or ERRORS[name].sentence
        self.retryable = ERRORS[name].retryable if retryable is None else retryable
        self.retry_after = retry_after
        super().__init__(self.message)

    @property
    def dbus_name(self) -> str:
        return DBUS_PREFIX + self.name.value

    @property
    def exit_status(self) -> int:
        return ERRORS[self.name].exit_status


# So many failures are told in one message.
TOLD = 8


def all_in_one(errors: Sequence[LashdError], sentence: str) -> LashdError:
    """One error for several: `sentence` and their messages, the name of the first permanent one, else the first's.

    It is retryable if all of them are, and waits as long as the one that asks for most.
    """
    if len(errors) == 1:
        return errors[0]
    first = next((error for error in errors if not error.retryable), errors[0])
    messages = list(dict.fromkeys(error.message for error in errors))
    more = [f"And {len(messages) - TOLD} more."] if len(messages) > TOLD else []
    return LashdError(
        first.name,
        " ".join([sentence, *messages[:TOLD], *more]),
        retryable=first.retryable,
        retry_after=max((error.retry_after for error in errors if error.retry_after is not None), default=None),
    )
