# SPDX-License-Identifier: Apache-2.0
"""Registries, by way of skopeo: what a reference means now, and the command line that fetches it.

Mirrors, blocked registries and signature policy are those of the running system, as for podman. Nothing here tries
again: the caller knows how often and how long.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lashd.things import auth, manifests
from lashd.things.failures import explain
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Manifest, PullOptions
from lashd.words.reference import Reference
from lashd.words.run import run


async def resolve(reference: Reference, options: PullOptions, settings: Settings) -> Manifest:
    """The manifest that `reference` means now, on this platform or the one in `options`.

    From an index the image of the platform is taken, and `index_digest` tells which index. What the registry serves
    under a digest must have that digest, else DigestMismatch. Each of at most two requests may take
    `settings.pull.stall_seconds`. Raises what the failure table says, and PullFailed or NotFound for what was served.
    """
    raw = await _inspect(reference, options, settings)
    digest = _checked(raw, reference)
    found = manifests.parse(raw, digest, str(reference))
    if isinstance(found, Manifest):
        return found
    chosen = reference.at(manifests.choose(found, manifests.wanted(options), str(reference)))
    raw = await _inspect(chosen, options, settings)
    member = manifests.parse(raw, _checked(raw, chosen), str(chosen))
    if not isinstance(member, Manifest):
        raise LashdError(
            ErrorName.PULL_FAILED,
            f"The index {reference} lists another index ({chosen.digest}), which no container tool can use.",
            retryable=False,
        )
    return replace(member, index_digest=digest)


def inspect_argv(reference: Reference, options: PullOptions, settings: Settings) -> list[str]:
    """The command line that prints the raw manifest or index of `reference`."""
    return [
        *_skopeo(settings, PullOptions()),
        *("inspect", "--raw", "--retry-times=0"),
        *_source_options("", reference, options, settings),
        f"docker://{reference}",
    ]


def copy_argv(
    reference: Reference, destination: str, options: PullOptions, settings: Settings, *, tmpdir: Path
) -> list[str]:
    """The command line that copies `reference` to `destination` (with transport), silent unless it fails.

    `tmpdir` must exist by the time it runs: everything that arrives is put there first.
    """
    return [
        *_skopeo(settings, options),
        *(f"--tmpdir={tmpdir}", "copy", "--quiet", "--retry-times=0"),
        *_source_options("src-", reference, options, settings),
        f"docker://{reference}",
        destination,
    ]


def proxy_argv(options: PullOptions, settings: Settings, *, sockfd: int) -> list[str]:
    """The command line of skopeo's image proxy, for host images: with the host's credentials."""
    return [
        *_skopeo(settings, options),
        *("experimental-image-proxy", f"--sockfd={sockfd}"),
        _credentials("", auth.host_file(settings)),
        *_tls_options("", options, settings),
    ]


def policy_file(settings: Settings) -> Path:
    """The signature policy that applies."""
    below_root = settings.paths.root / "etc/containers/policy.json"
    return below_root if below_root.exists() else Path("/etc/containers/policy.json")


def _skopeo(settings: Settings, options: PullOptions) -> list[str]:
    argv = [settings.tools.skopeo]
    root = settings.paths.root
    if root != Path("/"):
        for option, name in (
            ("--policy", "etc/containers/policy.json"),
            ("--registries-conf", "etc/containers/registries.conf"),
            ("--registries.d", "etc/containers/registries.d"),
        ):
            if (root / name).exists():
                argv.append(f"{option}={root / name}")
    for option, value in (
        ("--override-arch", options.arch),
        ("--override-os", options.os),
        ("--override-variant", options.variant),
    ):
        if value:
            argv.append(f"{option}={value}")
    return argv


def _source_options(prefix: str, reference: Reference, options: PullOptions, settings: Settings) -> list[str]:
    return [
        _credentials(prefix, auth.auth_file(reference, options, settings)),
        *_tls_options(prefix, options, settings),
    ]


def _credentials(prefix: str, path: Path | None) -> str:
    return f"--{prefix}no-creds" if path is None else f"--{prefix}authfile={path}"


def _tls_options(prefix: str, options: PullOptions, settings: Settings) -> list[str]:
    argv = []
    if options.cert_dir:
        argv.append(f"--{prefix}cert-dir={auth.on_running_system(settings, options.cert_dir)}")
    # Unless the unit says so, registries.conf decides whether a registry is reached without TLS.
    if options.tls_verify is not None:
        argv.append(f"--{prefix}tls-verify={'true' if options.tls_verify else 'false'}")
    return argv


async def _inspect(reference: Reference, options: PullOptions, settings: Settings) -> bytes:
    limit = settings.pull.stall_seconds
    try:
        done = await run(inspect_argv(reference, options, settings), timeout=limit)
    except LashdError as error:
        if error.name is not ErrorName.TIMEOUT:
            raise
        raise LashdError(
            ErrorName.TIMEOUT,
            f"The registry did not say within {limit:.0f} seconds what {reference} is; check the network to "
            f"{reference.domain}.",
        ) from error
    if done.status == 0:
        return done.stdout
    failure = explain("skopeo", done.status, done.stderr, str(reference))
    missing = auth.missing_auth_file(options, settings)
    if failure.name is ErrorName.AUTHENTICATION_FAILED and missing is not None:
        failure = LashdError(failure.name, f"{failure.message} The unit's AuthFile {missing} does not exist.")
    raise failure


def _checked(raw: bytes, reference: Reference) -> str:
    """The digest of `raw`. skopeo does not compare what it was served with the digest that it asked for."""
    digest = manifests.digest_of(raw, reference.digest)
    if reference.pinned and digest != reference.digest:
        # A damaged copy in a cache on the way may be replaced: worth the few attempts that the caller has.
        raise LashdError(
            ErrorName.DIGEST_MISMATCH,
            f"The registry served {digest} when {reference} was asked for, so it was not used; the registry or a "
            "proxy in front of it is damaged or not to be trusted.",
            retryable=True,
        )
    return digest
