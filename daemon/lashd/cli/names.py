# SPDX-License-Identifier: Apache-2.0
"""Digests and keys as lashctl shows them, which is shortened, made whole again before they go over the bus."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lashd.cli import values
from lashd.cli.client import Client

_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{12,128}")
_KEY = re.compile(r"([0-9a-f]{12,128})(\.[0-9]+)?")
_WHOLE_KEY = re.compile(r"([0-9a-f]{64}|[0-9a-f]{128})\.[0-9]+")


async def whole_digest(client: Client, given: str | None) -> str | None:
    """The staged deployment's digest (or checksum), if `given` begins like it; else `given`, for lashd to judge."""
    if given is None or not _DIGEST.fullmatch(given) or len(given) == len("sha256:") + 64:
        return given
    staged = [row for row in values.rows(await client.deployments()) if "staged" in values.texts(row, "roles")]
    names = {name for row in staged if (name := values.text(row, "digest", "checksum"))}
    return _only((name for name in names if name.startswith((given, f"sha256:{given}"))), given)


async def whole_key(client: Client, given: str | None) -> str | None:
    """The key of the one deployment whose key begins like `given`; else `given`, for lashd to judge."""
    short = _KEY.fullmatch(given or "")
    if given is None or short is None or _WHOLE_KEY.fullmatch(given):
        return given
    keys = {values.text(row, "key") for row in values.rows(await client.deployments())}
    return _only((key for key in keys if key.startswith(short[1]) and key.endswith(short[2] or "")), given)


def _only(found: Iterable[str], given: str) -> str:
    several = list(found)
    return several[0] if len(several) == 1 else given
