# SPDX-License-Identifier: Apache-2.0
"""Image manifests and indexes, OCI and docker schema 2, as a registry serves them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lashd.things import platform
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Layer, Manifest, PullOptions
from lashd.words.reference import is_digest

# From the most to the least demanding; a machine runs what stands at or behind its own variant.
_COMPATIBLE = {"arm": ("v8", "v7", "v6", "v5"), "arm64": ("v8",)}


@dataclass(frozen=True, slots=True)
class Platform:
    """GOOS, GOARCH and variant, the last one often empty."""

    os: str
    arch: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.arch, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Index:
    """An image index (docker: manifest list): which manifest is for which platform, in its own order."""

    digest: str
    entries: tuple[tuple[Platform, str], ...]


class _Foreign(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Descriptor(_Foreign):
    digest: str
    size: int = Field(ge=0)
    mediaType: str = ""


class _Platform(_Foreign):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class _Entry(_Descriptor):
    platform: _Platform = _Platform()


class _Document(_Foreign):
    schemaVersion: int
    mediaType: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Entry] | None = None


def digest_of(raw: bytes, like: str = "") -> str:
    """The digest of `raw`, with the algorithm of the digest `like` (sha256 when empty)."""
    algorithm = like.partition(":")[0] or "sha256"
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


def parse(raw: bytes, digest: str, subject: str) -> Manifest | Index:
    """What the registry served as `subject`, with `digest` already checked against `raw`.

    Raises PullFailed: for good when it is a manifest that cannot be used, to be tried again when it is none at all (a
    login page of the network, a proxy's error page).
    """
    try:
        document = _Document.model_validate_json(raw)
    except ValidationError as error:
        raise LashdError(
            ErrorName.PULL_FAILED,
            f"What the registry sent for {subject} is no image manifest; check that nothing between this host and the "
            "registry answers in its place.",
        ) from error
    if document.schemaVersion != 2:
        raise _unusable(subject, "it is in docker's old schema 1; push it again with a current tool")
    if document.manifests is not None:
        return Index(
            digest,
            tuple(
                (Platform(each.platform.os, each.platform.architecture, each.platform.variant), each.digest)
                for each in document.manifests
            ),
        )
    if document.config is None or document.layers is None:
        raise _unusable(subject, "it has no configuration or no layers, so it is no container image")
    for each in (document.config, *document.layers):
        if not is_digest(each.digest):
            raise _unusable(subject, f"it names a blob by {each.digest[:80]!r}, which is no digest")
    return Manifest(
        digest=digest,
        config_digest=document.config.digest,
        config_size=document.config.size,
        layers=tuple(Layer(each.digest, each.size, each.mediaType) for each in document.layers),
        raw=raw,
    )


def wanted(options: PullOptions) -> tuple[Platform, ...]:
    """The platforms that would do, best first: containers/image's rules, so that skopeo would choose the same."""
    # This machine's variant says nothing about an architecture that the unit names.
    variant = options.variant or ("" if options.arch else platform.variant())
    arch = options.arch or platform.architecture()
    ladder = _COMPATIBLE.get(arch, ())
    if not variant:
        variants: tuple[str, ...] = ("", *ladder)
    elif variant in ladder:
        variants = (*ladder[ladder.index(variant) :], "")
    else:
        variants = (variant, "")
    return tuple(Platform(options.os or "linux", arch, each) for each in variants)


def choose(index: Index, platforms: Sequence[Platform], subject: str) -> str:
    """The digest of the first manifest for the best of `platforms`. Raises NotFound that names what there is."""
    for platform_ in platforms:
        for offered, digest in index.entries:
            if offered == platform_:
                if not is_digest(digest):
                    raise _unusable(subject, f"its index names an image by {digest[:80]!r}, which is no digest")
                return digest
    offers = sorted({str(offered) for offered, _ in index.entries if offered.os not in ("", "unknown")})
    raise LashdError(
        ErrorName.NOT_FOUND,
        f"There is no image for {platforms[0]} in {subject}, only for {', '.join(offers) or 'no platform at all'}; "
        "push one for this platform, or set Arch= in the unit file.",
    )


def _unusable(subject: str, why: str) -> LashdError:
    return LashdError(ErrorName.PULL_FAILED, f"The manifest of {subject} cannot be used: {why}.", retryable=False)
