# SPDX-License-Identifier: Apache-2.0
"""What was bound is looked at once more before it is declared ready; on a host: tests/host/test_local_changes.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lashd.running.bind import _require_unchanged
from lashd.steps.discover import discover
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment
from tests.steps.test_discover import IMAGE
from tests.steps.test_discover import Deployment as Tree


async def test_edited_while_it_was_being_bound(tmp_path: Path) -> None:
    tree, running = Tree(tmp_path / "staged"), tmp_path / "running"
    for name in ("etc/containers/systemd/agent.container.d", "usr/etc"):
        (running / name).mkdir(parents=True)
    tree.bind("agent.container")
    staged = Deployment("os", "a" * 64, 0, tree.root, merges=running)
    found = discover(staged.root, staged.merges)
    await _require_unchanged(staged, found)
    (running / "etc/containers/systemd/agent.container.d/10.conf").write_text(IMAGE)
    with pytest.raises(LashdError, match="Local changes") as caught:
        await _require_unchanged(staged, found)
    assert (caught.value.name, caught.value.retryable) == (ErrorName.DIGEST_MISMATCH, True)
    await _require_unchanged(replace(staged, merges=None), found)
