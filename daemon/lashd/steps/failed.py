# SPDX-License-Identifier: Apache-2.0
"""The word on a bound image that could not be fetched, once nothing more is tried."""

from __future__ import annotations

import logging

from lashd.words import events
from lashd.words.errors import LashdError
from lashd.words.reference import Reference

log = logging.getLogger(__name__)


def log_failed(reference: Reference, error: LashdError, *, digest: str = "", attempts: int = 1) -> None:
    """Say of `reference` (with the `digest` that it was to be, if that is known) what the last attempt came to."""
    tries = f" It was tried {attempts} times." if attempts > 1 else ""
    outlook = "" if error.retryable else " It will fail again until something is changed."
    log.error(
        "%s%s%s",
        *(error.message, tries, outlook),
        extra=events.fields(
            events.MessageId.IMAGE_FAILED,
            error=error.name,
            retryable=error.retryable,
            digest=digest or reference.digest,
            reference=str(reference),
        ),
    )
