# SPDX-License-Identifier: Apache-2.0
"""bootc's failures, as our errors: its exit status and the last line of its standard error, a row for each.

bootc ends with 0, with 1 for any failure (`error: …`) and with 2 when it does not know its arguments; there is no other
word of its own. What it does not say itself but passes on from skopeo and podman is in the common table.
"""

from __future__ import annotations

from lashd.things import failures
from lashd.things.failures import Row, row
from lashd.words.errors import ErrorName, LashdError

# The first that fits decides. Its own words, from its source.
TABLE: tuple[Row, ...] = (
    row(
        r"insufficient free space for",
        ErrorName.NO_SPACE,
        "there is not enough free space for the host image; free some and try again",
    ),
    row(
        r"local rpm-ostree modifications|deployment is incompatible",
        ErrorName.UNSUPPORTED_HOST,
        "packages were layered with rpm-ostree, which bootc refuses; 'rpm-ostree reset' takes them out",
    ),
    row(
        r"system not booted via bootc",
        ErrorName.UNSUPPORTED_HOST,
        "this system was not booted by bootc",
    ),
    row(
        r"no image source specified|not container image based",
        ErrorName.UNSUPPORTED_HOST,
        "the running system does not follow a container image; switch it to one with 'bootc switch'",
    ),
    row(
        r"read-only block device",
        ErrorName.HOST_COMMAND_FAILED,
        "/sysroot lies on a read-only device; make it writable, or install the host on a disk that is",
        False,
    ),
    row(
        r"executed as the root user|detected container|full root privileges|unshar\w+.*not permitted",
        ErrorName.NOT_AUTHORIZED,
        "bootc may not change this host; lashd has to run as root, outside of a container",
    ),
    row(r"no rollback available", ErrorName.ROLLBACK_UNAVAILABLE, "there is no other deployment to roll back to"),
    row(r"no staged deployment found", ErrorName.NOTHING_STAGED, "nothing is staged any more"),
    row(
        r"merge conflicts found in etc",
        ErrorName.HOST_COMMAND_FAILED,
        "local changes of /etc conflict with the new image; 'bootc' names the files, bring them into line",
        False,
    ),
    row(
        r"querying bound images|bound-images\.d",
        ErrorName.BOUND_IMAGE_INVALID,
        "bootc does not understand an entry of /usr/lib/bootc/bound-images.d in the new image",
    ),
    row(
        r"pulling bound images|bound image",
        ErrorName.BOUND_IMAGE_MISSING,
        "bootc could not fetch the images that the new deployment binds; lashd fetches them itself",
        True,
    ),
)
_USAGE = 2


def explain(status: int, said: str, subject: str) -> LashdError:
    """The error for a bootc that ended with `status` (negative: a signal) and wrote `said`; `subject` begins it."""
    # What it starts complains on the same standard error, and in its own way.
    own = [line for line in said.splitlines() if line.startswith("error: ")]
    line = failures.last_line(own[-1] if own else said)
    if status == _USAGE:
        return LashdError(
            ErrorName.UNSUPPORTED_HOST,
            f"{subject} failed: this host's bootc does not know what it was asked ({line}); it is too old for lashd, "
            "or too new.",
        )
    found = next((one for one in TABLE if one.pattern.search(line)), None)
    if found is None:
        return failures.explain("bootc", status, own[-1] if own else said, subject)
    return LashdError(found.name, f"{subject} failed: {found.meaning} (bootc: {line}).", retryable=found.retryable)
