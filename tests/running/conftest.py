# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import pytest

from lashd.words.config import Settings
from tests.bench.service import furnish, settings_below
from tests.support.registry import Registry


@pytest.fixture(scope="module")
def nothing_bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A host image that binds nothing, on a host where nothing was ever bound: there is no store."""
    base = tmp_path_factory.mktemp("host")
    made = settings_below(base)
    with Registry() as registry:
        asyncio.run(furnish(registry, made, 0))
    yield made
    # ostree makes deployments immutable, and pytest could not remove them.
    subprocess.run(["chattr", "-R", "-f", "-i", str(base)], check=False)
