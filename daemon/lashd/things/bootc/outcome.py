# SPDX-License-Identifier: Apache-2.0
"""What a `bootc upgrade` that ended well has come to; bootc itself says nothing that a program could read."""

from __future__ import annotations

from collections.abc import Sequence

from lashd.things.host import Fetched
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage, Role


def outcome(deployments: Sequence[Deployment], image: HostImage, expected_digest: str | None) -> Fetched:
    """What boots next once bootc has upgraded to the newest `image`, as `deployments` tell it.

    Raises DigestMismatch when that is not `expected_digest`, and HostCommandFailed when it cannot be told.
    """
    following = next(iter(deployments), None)
    booted = next((one for one in deployments if Role.BOOTED in one.roles), None)
    if expected_digest and booted is not None and booted.digest == expected_digest:
        # The name means again what runs: bootc leaves what it has staged before, and that would boot.
        return Fetched(booted.checksum, expected_digest, following is not booted)
    if following is None or following.digest is None:
        raise LashdError(
            ErrorName.HOST_COMMAND_FAILED,
            "bootc ended well, but no deployment with an image can be found; look at 'bootc status'.",
        )
    if expected_digest and following.digest != expected_digest:
        found = (
            f"bootc has staged {following.digest}, which stays held"
            if Role.STAGED in following.roles
            else "bootc has found nothing newer than what runs, so nothing was staged"
        )
        raise LashdError(
            ErrorName.DIGEST_MISMATCH,
            f"The newest image of {image.reference} was {expected_digest} a moment ago, and {found}. Look at the "
            "new image and ask again with its digest.",
            retryable=True,
        )
    return Fetched(following.checksum, following.digest, Role.STAGED in following.roles)
