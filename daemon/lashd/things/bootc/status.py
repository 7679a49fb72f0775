# SPDX-License-Identifier: Apache-2.0
"""What `bootc status --format=json` says, of any version from 1.1 on.

Fields come and go between versions, so none is required: what is not said is empty. Only its own words are taken over;
what a digest or an id looks like is checked where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from lashd.words import shape
from lashd.words.errors import ErrorName, LashdError
from lashd.words.text import one_line

_LIMIT = 4 * 1024 * 1024  # bytes; a deployment takes one or two thousand
_TOLD = 300


@dataclass(frozen=True, slots=True)
class ImageName:
    image: str = ""
    transport: str = "registry"


@dataclass(frozen=True, slots=True)
class Image:
    """`imageDigest` is that of the manifest, with `sha256:` or, from old notes of the composefs backend, without."""

    image: ImageName | None = None
    version: str | None = None
    timestamp: str | None = None
    imageDigest: str | None = None

    @property
    def digest(self) -> str:
        found = self.imageDigest or ""
        return found if ":" in found or not found else f"sha256:{found}"


@dataclass(frozen=True, slots=True)
class Ostree:
    stateroot: str | None = None
    checksum: str = ""
    deploySerial: int = 0


@dataclass(frozen=True, slots=True)
class Composefs:
    verity: str = ""
    bootType: str | None = None
    bootloader: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One deployment. `ostree` or `composefs` says how it is kept; `downloadOnly`: staged, and locked by bootc."""

    image: Image | None = None
    incompatible: bool = False
    pinned: bool = False
    downloadOnly: bool | None = None
    ostree: Ostree | None = None
    composefs: Composefs | None = None


@dataclass(frozen=True, slots=True)
class _Spec:
    bootOrder: str | None = None


@dataclass(frozen=True, slots=True)
class _Deployments:
    staged: Entry | None = None
    booted: Entry | None = None
    rollback: Entry | None = None
    otherDeployments: tuple[Entry, ...] | None = None
    rollbackQueued: bool | None = None


@dataclass(frozen=True, slots=True)
class _Host:
    spec: _Spec | None = None
    status: _Deployments | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """All deployments; `others` are neither staged, booted nor the rollback. `queued`: the rollback boots next."""

    staged: Entry | None = None
    booted: Entry | None = None
    rollback: Entry | None = None
    others: tuple[Entry, ...] = ()
    queued: bool = False

    @property
    def installed(self) -> tuple[Entry, ...]:
        """Those that have a boot entry, in boot order."""
        first = (self.rollback, self.booted) if self.queued else (self.booted, self.rollback)
        return (*(one for one in first if one is not None), *self.others)


def read_status(content: bytes) -> Status:
    """What bootc has printed. Raises HostCommandFailed when that cannot be understood."""
    try:
        if len(content) > _LIMIT:
            raise shape.Misfit(f"it has more than {_LIMIT} bytes")
        host = shape.from_json(_Host, content)
    except shape.Misfit as error:
        raise LashdError(
            ErrorName.HOST_COMMAND_FAILED,
            f"What 'bootc status' said cannot be understood: {one_line(str(error))[:_TOLD]}. This bootc is too old for "
            "lashd, or too new.",
            retryable=False,
        ) from None
    found = host.status or _Deployments()
    order = host.spec.bootOrder if host.spec else None
    queued = order == "rollback" if found.rollbackQueued is None else found.rollbackQueued
    return Status(found.staged, found.booted, found.rollback, found.otherDeployments or (), queued)
