# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from lashd.things.ostree.checkouts import unlisted
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment

ONE, TWO = "1" * 64, "2" * 64


def test_what_no_boot_entry_names(tmp_path: Path) -> None:
    assert unlisted(tmp_path, ()) == ()
    for stateroot, name in (("a", f"{ONE}.0"), ("a", f"{ONE}.1"), ("b", f"{TWO}.0"), ("b", "else"), ("c", "")):
        (tmp_path / "ostree/deploy" / stateroot / "deploy" / name).mkdir(parents=True)
    (tmp_path / f"ostree/deploy/a/deploy/{ONE}.0.origin").touch()
    (tmp_path / f"ostree/deploy/a/deploy/{TWO}.3").symlink_to(f"{ONE}.0")
    (tmp_path / "ostree/deploy/d").mkdir()
    listed = Deployment("a", ONE, 0, tmp_path)
    found = unlisted(tmp_path, (listed,))
    assert [(each.stateroot, each.key, each.roles) for each in found] == [
        ("a", f"{ONE}.1", frozenset()),
        ("b", f"{TWO}.0", frozenset()),
    ]
    assert found[0].root == tmp_path / f"ostree/deploy/a/deploy/{ONE}.1"


def test_what_cannot_be_listed_is_not_overlooked(tmp_path: Path) -> None:
    (tmp_path / "ostree/deploy/a").mkdir(parents=True)
    (tmp_path / "ostree/deploy/a/deploy").touch()
    with pytest.raises(LashdError, match="unknown which deployments") as caught:
        unlisted(tmp_path, ())
    assert caught.value.name is ErrorName.STORE_DAMAGED
