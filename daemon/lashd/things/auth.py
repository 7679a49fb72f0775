# SPDX-License-Identifier: Apache-2.0
"""Which file holds the credentials for a pull.

In bootc's order, and the first one that exists: run/ostree/auth.json, etc/ostree/auth.json, usr/lib/ostree/auth.json.
The unit's own AuthFile is used where that file says nothing about the registry. With no file at all a pull is
anonymous, and says so: skopeo would look into root's home (/root/.docker), older versions of it even behind an empty
credentials file.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lashd.words import files
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import PullOptions
from lashd.words.reference import Reference

HOST_FILES = ("run/ostree/auth.json", "etc/ostree/auth.json", "usr/lib/ostree/auth.json")

_LIMIT = 16 * 1024 * 1024  # bytes

# All the names of one registry.
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class _AuthFile(BaseModel):
    model_config = ConfigDict(extra="ignore")

    auths: dict[str, object] = {}
    credHelpers: dict[str, str] = {}


def auth_file(reference: Reference, options: PullOptions, settings: Settings) -> Path | None:
    """The credentials file for a pull of `reference`, None for an anonymous pull.

    Raises AuthenticationFailed when the host's own file cannot be read.
    """
    host = host_file(settings)
    if host is not None and _covers(host, reference):
        return host
    if options.auth_file:
        own = on_running_system(settings, options.auth_file)
        # A public image needs no credentials, so a missing file is only told when the registry refuses.
        if own.exists():
            return own
    return host


def host_file(settings: Settings) -> Path | None:
    """The host's own credentials file, which host images are fetched with; None when it has none."""
    return next((path for name in HOST_FILES if (path := settings.paths.root / name).exists()), None)


def missing_auth_file(options: PullOptions, settings: Settings) -> Path | None:
    """The unit's AuthFile when it is named and not there."""
    if not options.auth_file:
        return None
    path = on_running_system(settings, options.auth_file)
    return None if path.exists() else path


def on_running_system(settings: Settings, path: str) -> Path:
    """An absolute path of the running system as we see it, below `settings.paths.root`."""
    root = settings.paths.root
    given = Path(path)
    return given if given.is_relative_to(root) else root / path.lstrip("/")


def _covers(path: Path, reference: Reference) -> bool:
    """Whether the credentials file has an entry for the repository, a namespace above it, or its registry."""
    try:
        content = _AuthFile.model_validate_json(files.read_regular(path, _LIMIT)[0])
    except (OSError, ValueError) as error:
        raise LashdError(
            ErrorName.AUTHENTICATION_FAILED,
            f"The credentials file {path} cannot be read; mend or remove it (it is JSON, as 'podman login' writes it).",
        ) from error
    keys = {_plain(key) for key in content.auths}
    domain = _plain(reference.domain)
    scopes, path_parts = {domain}, reference.path.split("/")
    scopes |= {"/".join((domain, *path_parts[:count])) for count in range(1, len(path_parts) + 1)}
    return not scopes.isdisjoint(keys) or domain in {_plain(key) for key in content.credHelpers}


def _plain(key: str) -> str:
    """A key of an auth file without what old docker versions wrote around it (https://index.docker.io/v1/)."""
    for scheme in ("https://", "http://"):
        if key.startswith(scheme):
            key = key.removeprefix(scheme).partition("/")[0]
    domain, slash, rest = key.partition("/")
    return ("docker.io" if domain in _DOCKER_HUB else domain) + slash + rest
