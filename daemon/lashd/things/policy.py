# SPDX-License-Identifier: Apache-2.0
"""What policy.json demands of an image, for tools that do not look at it themselves.

Signatures are not checked here: an image either needs none, or it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lashd.words import files
from lashd.words.errors import ErrorName, LashdError

_LIMIT = 16 * 1024 * 1024  # bytes


class _Requirement(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: str


class _Policy(BaseModel):
    model_config = ConfigDict(extra="ignore")

    default: list[_Requirement]
    transports: dict[str, dict[str, list[_Requirement]]] = {}


def require_no_signature(path: Path, image: str) -> None:
    """Return if the policy at `path` accepts `image` (TRANSPORT:NAME) as it is. Raises SignatureRejected."""
    try:
        policy = _Policy.model_validate_json(files.read_regular(path, _LIMIT)[0])
    except (OSError, ValueError) as error:
        raise LashdError(
            ErrorName.SIGNATURE_REJECTED,
            f"{image} is not fetched, because the signature policy {path} cannot be read; mend it.",
        ) from error
    demanded = {requirement.type for requirement in _requirements(policy, image)} or {"reject"}
    if "reject" in demanded:
        raise LashdError(
            ErrorName.SIGNATURE_REJECTED, f"The signature policy {path} rejects {image}; it is not fetched."
        )
    if demanded != {"insecureAcceptAnything"}:
        raise LashdError(
            ErrorName.SIGNATURE_REJECTED,
            f"The signature policy {path} demands a signature of {image}, which this host's skopeo cannot check for a "
            "host image; install skopeo 1.13 or newer.",
        )


def _requirements(policy: _Policy, image: str) -> list[_Requirement]:
    transport, _, name = image.partition(":")
    scopes = policy.transports.get(transport, {})
    if transport == "docker":
        for scope in _docker_scopes(name.removeprefix("//")):
            if scope in scopes:
                return scopes[scope]
        return policy.default
    # How other transports name their scopes is theirs to know: what any of them demands is demanded.
    return [*policy.default, *(requirement for each in scopes.values() for requirement in each)]


def _docker_scopes(reference: str) -> Iterator[str]:
    """From the most to the least exact: the reference, its repository, the namespaces above, *.domain, everything."""
    yield reference
    name = reference.partition("@")[0]
    if ":" in name.rpartition("/")[2]:
        name = name.rpartition(":")[0]
    while True:
        yield name
        if "/" not in name:
            break
        name = name.rpartition("/")[0]
    host = name.partition(":")[0]
    while "." in host:
        host = host.partition(".")[2]
        yield f"*.{host}"
    yield ""
