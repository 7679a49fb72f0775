# SPDX-License-Identifier: Apache-2.0
"""What a host image's manifest and configuration say, as far as an ostree commit needs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lashd.words import files
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import HostImage, Layer
from lashd.words.reference import is_digest

_POLICY_LIMIT = 16 * 1024 * 1024  # bytes
_VERSION_LABELS = ("org.opencontainers.image.version", "version")
_CREATED = "org.opencontainers.image.created"


class _Descriptor(BaseModel):
    digest: str
    size: int = Field(ge=0)
    media_type: str = Field("", alias="mediaType")


class _Manifest(BaseModel):
    layers: list[_Descriptor]
    annotations: dict[str, str] | None = None


class _Settings(BaseModel):
    model_config = ConfigDict(extra="ignore")
    labels: dict[str, str] | None = Field(None, alias="Labels")


class _Config(BaseModel):
    created: str | None = None
    config: _Settings | None = None


@dataclass(frozen=True, slots=True)
class HostManifest:
    """One host image. `layers` from the lowest up; `timestamp` in seconds, 0 when the image does not say."""

    digest: str
    manifest: str
    config: str
    layers: tuple[Layer, ...]
    version: str
    timestamp: int


def read_host_manifest(digest: str, manifest: bytes, config: bytes) -> HostManifest:
    """Raises HostCommandFailed when these are not a manifest and a configuration of an image."""
    try:
        texts = manifest.decode("utf-8"), config.decode("utf-8")
        said = _Manifest.model_validate_json(manifest)
        image = _Config.model_validate_json(config)
    except (ValidationError, UnicodeDecodeError) as error:
        raise LashdError(
            ErrorName.HOST_COMMAND_FAILED, f"The manifest of the host image {digest} cannot be read: {error}."
        ) from error
    if "\0" in texts[0] + texts[1] or not said.layers or not all(is_digest(layer.digest) for layer in said.layers):
        raise LashdError(
            ErrorName.HOST_COMMAND_FAILED, f"The manifest of the host image {digest} does not name layers.",
            retryable=False,
        )  # fmt: skip
    labels = (image.config.labels if image.config else None) or {}
    version = next((labels[key] for key in _VERSION_LABELS if labels.get(key)), "").replace("\0", "")
    created = (said.annotations or {}).get(_CREATED) or image.created or ""
    layers = tuple(Layer(layer.digest, layer.size, layer.media_type) for layer in said.layers)
    return HostManifest(digest, *texts, layers, version, _seconds(created))


def _seconds(text: str) -> int:
    try:
        return max(0, int(datetime.fromisoformat(text).timestamp()))
    except (ValueError, OverflowError):
        return 0


def check_signature_rule(image: HostImage, root: Path) -> None:
    """Refuse an image whose origin asks for a signature that would not be checked. `root` has etc/containers.

    With `ostree-image-signed` skopeo applies the host's policy; a policy that accepts anything is no check.
    """
    if image.signature.startswith("ostree-remote-"):
        raise LashdError(
            ErrorName.UNSUPPORTED_HOST,
            f"{image.reference} is to be verified with the key of an ostree remote, which lashd cannot do; follow it "
            "with ostree-image-signed and a container policy.",
        )
    if image.signature != "ostree-image-signed":
        return
    policy = next((path for path in _policies(root) if path.exists()), None)
    try:
        default = json.loads(files.read_regular(policy, _POLICY_LIMIT)[0])["default"] if policy else []
        signed = bool(default) and all(rule["type"] != "insecureAcceptAnything" for rule in default)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        signed = False
    if not signed:
        raise LashdError(
            ErrorName.SIGNATURE_REJECTED,
            f"{image.reference} is to be signed, but the default of this host's policy.json accepts anything; "
            "set it to 'reject' and allow what is signed.",
        )


def _policies(root: Path) -> tuple[Path, ...]:
    return (root / "etc/containers/policy.json", root / "usr/share/containers/policy.json")
