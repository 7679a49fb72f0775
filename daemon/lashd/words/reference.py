# SPDX-License-Identifier: Apache-2.0
"""Image references, normalised as containers/image does it, so that two spellings of one image are one image.

Grammar: the distribution reference grammar in the form that podman and skopeo use (they know no registry written as a
bracketed IPv6 address); defaults as podman applies them (no tag and no digest means `latest`; a tag beside a digest is
ignored, because the digest decides).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from lashd.words.errors import ErrorName, LashdError

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*(?::[0-9]+)?")
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_NAME_LIMIT = 255
# What stands behind the last `@` of a name with a digest, however wrong it is. Anything else in which there may be a
# registry has a user, and perhaps a password, before the `@`.
_LIKE_A_DIGEST = re.compile(r"(?:sha|md)[0-9]+:[^/]*")

# What podman takes for a transport where a colon follows it; it would read a file or a daemon, not ask a registry.
_OTHER_TRANSPORTS = frozenset(
    ["containers-storage", "dir", "docker-archive", "docker-daemon", "oci", "oci-archive", "ostree", "sif", "tarball"]
)

# Given the path of a short name (`busybox`, `ubi9/podman`), the full name it stands for, or None.
Aliases = Callable[[str], str | None]


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A normalised reference: `domain/path`, and either a digest (pinned) or a tag (floating), never both."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Without tag and digest: quay.io/edge/agent."""
        return f"{self.domain}/{self.path}"

    @property
    def pinned(self) -> bool:
        return bool(self.digest)

    def at(self, digest: str) -> Reference:
        """The same repository, pinned to `digest`."""
        return Reference(self.domain, self.path, "", digest)

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str, aliases: Aliases = lambda name: None) -> Reference:
    """The normalised reference that `text` names; short names are looked up in `aliases`.

    Raises BoundImageInvalid with a sentence that says what is wrong with `text`, and never holds a password in it.
    """
    if without_user(text) != text:
        raise _invalid(text, "it holds a user name or a password; those belong in the auth file ('podman login')")
    rest = text.removeprefix("docker://")
    if _IMAGE_ID.fullmatch(rest) or _IMAGE_ID.fullmatch(text.removeprefix("sha256:")):
        raise _invalid(text, "it is an image id, not a name")
    transport, colon, _ = text.partition(":")
    if colon and transport in _OTHER_TRANSPORTS:
        raise _invalid(text, f"'{transport}:' does not name a registry, and only a registry's images can be bound")
    rest, at, digest = rest.partition("@")
    if at and not is_digest(digest):
        raise _invalid(text, f"{_quoted(digest)} is not a digest (sha256: and 64 hexadecimal digits)")
    name, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        raise _invalid(text, f"{_quoted(tag)} is not a tag")
    domain, path = _split_domain(name)
    if not domain:
        if not _PATH.fullmatch(path):
            raise _invalid(text, _why_not_a_path(path))
        # With the transport written out nothing is short: docker://busybox is Docker Hub's, whatever the aliases say.
        full = aliases(path) if not text.startswith("docker://") else f"docker.io/{path}"
        if full is None:
            raise _invalid(
                text,
                f"'{path}' is a short name without an alias in registries.conf; write it with its registry, "
                f"such as docker.io/{path if '/' in path else f'library/{path}'}",
            )
        domain, path = _split_domain(full)
    if not _DOMAIN.fullmatch(domain):
        raise _invalid(text, f"{_quoted(domain)} is not a registry name")
    if domain in ("docker.io", "index.docker.io"):
        domain = "docker.io"
        path = path if "/" in path else f"library/{path}"
    if not _PATH.fullmatch(path):
        raise _invalid(text, _why_not_a_path(path))
    if len(domain) + 1 + len(path) > _NAME_LIMIT:
        raise _invalid(text, f"its name has more than {_NAME_LIMIT} characters")
    return Reference(domain, path, "" if digest else tag or "latest", digest)


def _split_tag(text: str) -> tuple[str, str | None]:
    name, colon, tag = text.rpartition(":")
    # A colon before the last slash belongs to the registry's port.
    if not colon or "/" in tag:
        return text, None
    return name, tag


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return "", name


def _why_not_a_path(path: str) -> str:
    if not path:
        return "it names no repository"
    if path.lower() != path:
        return "a repository name has no upper-case letters"
    return f"{_quoted(path)} is not a repository name"


def without_user(text: str) -> str:
    """`text` without the `user:password` that a registry may be written with: everybody may read what is said of it."""
    user, at, rest = text.rpartition("@")
    if _LIKE_A_DIGEST.fullmatch(rest):
        return f"{without_user(user)}{at}{rest}"
    registry = "/" in rest or "." in rest or (":" in user and "/" not in user)
    return f"…@{rest}" if at and registry else text


def _invalid(text: str, why: str) -> LashdError:
    return LashdError(
        ErrorName.BOUND_IMAGE_INVALID,
        f"The image reference {_quoted(without_user(text))} cannot be used: {_shortened(why, 400)}.",
    )


def _quoted(text: str) -> str:
    """`text` in quotes and on one line; what cannot be printed takes several characters for each of its own."""
    quoted = repr(_shortened(text))
    return quoted if len(quoted) <= 210 else f"{quoted[:209]}…{quoted[0]}"


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
