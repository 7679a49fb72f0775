# SPDX-License-Identifier: Apache-2.0
"""A directory that plays the running system's root: the registry configuration and policy that the tools read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

ACCEPT_ALL: Mapping[str, object] = {"default": [{"type": "insecureAcceptAnything"}]}
REJECT_ALL: Mapping[str, object] = {"default": [{"type": "reject"}]}


def write_root(
    root: Path,
    *,
    insecure: Iterable[str] = (),
    mirrors: Mapping[str, str] | None = None,
    policy: Mapping[str, object] = ACCEPT_ALL,
) -> Path:
    """Write etc/containers/{registries.conf,policy.json} below `root`; returns `root`.

    `insecure` are registries (HOST:PORT) reached without TLS; `mirrors` maps a registry or repository to the place
    that is asked first, also without TLS.
    """
    directory = root / "etc/containers"
    directory.mkdir(parents=True, exist_ok=True)
    tables = [f'[[registry]]\nlocation = "{location}"\ninsecure = true\n' for location in insecure]
    for prefix, mirror in (mirrors or {}).items():
        tables.append(
            f'[[registry]]\nlocation = "{prefix}"\ninsecure = true\n'
            f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = true\n'
        )
    (directory / "registries.conf").write_text("unqualified-search-registries = []\n" + "\n".join(tables))
    (directory / "policy.json").write_text(json.dumps(policy))
    return root
