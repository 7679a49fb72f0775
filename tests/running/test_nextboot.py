# SPDX-License-Identifier: Apache-2.0
"""What else decides about the next boot, where two stateroots have the same commit: only their names differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lashd.running import nextboot
from lashd.running.judge import Judge, Judged
from lashd.running.nextboot import check_soft_reboot, put_first_now
from lashd.things.ostree import client
from lashd.things.ostree.nextroot import PREPARED
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, Role
from tests.support.staged import backing


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "run").mkdir()
    return replace(Settings(), paths=replace(Settings().paths, ostree_run=tmp_path / "run", state=tmp_path / "state"))


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Deployment, Deployment]:
    """The running one, and the same commit in another stateroot."""
    found = [Deployment(name, "a" * 64, 0, tmp_path / name) for name in ("default", "other")]
    for one in found:
        one.root.mkdir()
    return replace(found[0], roles=frozenset({Role.BOOTED})), found[1]


class Lacking(Judge):
    """The one of the stateroot `other` lacks an image."""

    def _look(self, deployment: Deployment) -> Judged:
        return Judged(deployment.stateroot != "other")


@pytest.mark.parametrize("target", [0, 1])
def test_a_soft_reboot_into_the_other(settings: Settings, twins: tuple[Deployment, ...], target: int) -> None:
    note = settings.paths.ostree_run / PREPARED
    note.write_bytes(backing(twins[target].root))
    said = check_soft_reboot(settings, twins, Lacking(settings, 0), settings.paths.ostree_run / "nextroot")
    assert note.exists() is (target == 0)
    assert [code for code, _ in said] == ([] if target == 0 else ["soft-reboot-cancelled"])
    assert all(twins[1].name in sentence for _, sentence in said)


def test_one_is_not_judged_by_the_other(settings: Settings, twins: tuple[Deployment, ...]) -> None:
    judge = Lacking(settings, 0)
    assert [judge.judge(one).release for one in (*twins, *reversed(twins))] == [True, False, False, True]


@pytest.mark.parametrize("works", [True, False])
def test_it_is_seen_which_of_them_boots(
    settings: Settings, twins: tuple[Deployment, ...], monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """libostree has been seen to say nothing and to do nothing."""
    order = [twins[1], twins[0]]

    class Worker:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        async def change(self, command: str, *, key: str, stateroot: str, **_: Any) -> bool:
            if works:
                order.sort(key=lambda one: (one.key, one.stateroot) != (key, stateroot))
            return True

    class Sysroot:
        def __init__(self, _: Settings) -> None: ...

        def deployments(self) -> tuple[Deployment, ...]:
            return tuple(order)

    monkeypatch.setattr(client, "Worker", Worker)
    monkeypatch.setattr(nextboot, "OstreeSysroot", Sysroot)
    if works:
        put_first_now(settings, twins[0])
    else:
        with pytest.raises(LashdError, match="did not change"):
            put_first_now(settings, twins[0])
