# SPDX-License-Identifier: Apache-2.0
"""bootc's own words, and those that it passes on, as our errors: a line for each row, and for what it quotes."""

from __future__ import annotations

import pytest

from lashd.things.bootc.failures import TABLE, explain
from lashd.words.errors import ErrorName

SUBJECT = "The upgrade by bootc"
# (what it wrote, name, worth another try)
SAID = [
    (
        "error: Upgrading: Pulling: Insufficient free space for registry.example.com/os:1 (available: 1.2 GB required: "
        "999 TB)",
        ErrorName.NO_SPACE,
        False,
    ),
    (
        "error: Upgrading: Deployment contains local rpm-ostree modifications; cannot upgrade via bootc. You can run "
        "`rpm-ostree reset` to undo the modifications.",
        ErrorName.UNSUPPORTED_HOST,
        False,
    ),
    ("error: System not booted via bootc", ErrorName.UNSUPPORTED_HOST, False),
    ("error: Upgrading: No image source specified", ErrorName.UNSUPPORTED_HOST, False),
    ("error: Rolling back: Rollback is not container image based", ErrorName.UNSUPPORTED_HOST, False),
    (
        "error: Cannot perform this operation: /sysroot is on a read-only block device. This may be due to a failed "
        "disk.",
        ErrorName.HOST_COMMAND_FAILED,
        False,
    ),
    ("error: This command must be executed as the root user", ErrorName.NOT_AUTHORIZED, False),
    (
        "error: Detected container; this command requires a booted host system.",
        ErrorName.NOT_AUTHORIZED,
        False,
    ),
    ("error: Rolling back: No rollback available", ErrorName.ROLLBACK_UNAVAILABLE, False),
    ("error: Upgrading: No staged deployment found", ErrorName.NOTHING_STAGED, False),
    ("error: Upgrading: Merge conflicts found in etc", ErrorName.HOST_COMMAND_FAILED, False),
    (
        "error: Upgrading: Staging: Pulling bound images: Pulling bound images: Failed to pull image: Subprocess "
        "failed: ExitStatus(unix_wait_status(32000))",
        ErrorName.BOUND_IMAGE_MISSING,
        True,
    ),
    (
        "error: Upgrading: Staging: Querying bound images: Parse to ini: IncorrectSyntax(7)",
        ErrorName.BOUND_IMAGE_INVALID,
        False,
    ),
    ("error: This command requires full root privileges (CAP_SYS_ADMIN)", ErrorName.NOT_AUTHORIZED, False),
    # What comes from skopeo, and from libostree.
    (
        "error: Upgrading: Pulling: Creating importer: failed to invoke method OpenImage: pinging container registry "
        'quay.example.com: Get "https://quay.example.com/v2/": dial tcp: lookup quay.example.com: no such host',
        ErrorName.NETWORK_UNAVAILABLE,
        True,
    ),
    (
        "error: Upgrading: Pulling: Creating importer: failed to invoke method OpenImage: reading manifest v1 in "
        "quay.example.com/os: unauthorized: access to the requested resource is not authorized",
        ErrorName.AUTHENTICATION_FAILED,
        False,
    ),
    (
        "error: Upgrading: Pulling: Creating importer: failed to invoke method OpenImage: reading manifest v1 in "
        "quay.example.com/os: manifest unknown",
        ErrorName.NOT_FOUND,
        False,
    ),
    (
        "error: Upgrading: Pulling: Creating importer: failed to invoke method OpenImage: Source image rejected: None "
        "of the signatures were accepted",
        ErrorName.SIGNATURE_REJECTED,
        False,
    ),
    (
        "error: Upgrading: Pulling: Importing: Unencapsulating base: writing: No space left on device (os error 28)",
        ErrorName.NO_SPACE,
        False,
    ),
    ("error: Upgrading: something that nobody knows", ErrorName.HOST_COMMAND_FAILED, True),
]


@pytest.mark.parametrize(("said", "name", "retryable"), SAID)
def test_what_it_says(said: str, name: ErrorName, retryable: bool) -> None:
    error = explain(1, f"Fetching layers\n{said}\n", SUBJECT)
    assert (error.name, error.retryable) == (name, retryable)
    assert error.message.startswith(f"{SUBJECT} failed: ")
    assert error.message.endswith(".")
    assert said.removeprefix("error: ")[:20] in error.message or "…" in error.message


def test_every_row_is_needed() -> None:
    for row in TABLE:
        assert any(row.pattern.search(said) for said, _, _ in SAID), row.pattern.pattern


def test_an_argument_that_this_version_does_not_know() -> None:
    error = explain(2, "error: unexpected argument '--from-downloaded' found\n\nUsage: bootc upgrade", SUBJECT)
    assert error.name is ErrorName.UNSUPPORTED_HOST
    assert "too old" in error.message
    assert "--from-downloaded" in error.message


def test_ended_by_a_signal_and_without_a_word() -> None:
    error = explain(-15, "", SUBJECT)
    assert (error.name, error.retryable) == (ErrorName.HOST_COMMAND_FAILED, True)
    assert "signal 15" in error.message
    assert "status 1" in explain(1, "", SUBJECT).message


def test_what_its_tools_complain_of_is_not_its_error() -> None:
    """podman writes to the same place, before or after."""
    chatter = 'time="2026-01-01T00:00:00Z" level=error msg="User-selected graph driver \\"overlay\\" overwritten"'
    own = "error: Upgrading: Insufficient free space for x (available: 1 GB required: 2 GB)"
    for said in (f"{chatter}\n{own}\n", f"{own}\n{chatter}\n"):
        assert explain(1, said, SUBJECT).name is ErrorName.NO_SPACE
