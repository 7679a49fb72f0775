# SPDX-License-Identifier: Apache-2.0
"""What a reboot would bring is another thing than what runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lashd.running.jobs import Jobs
from lashd.running.outlook import look_ahead
from lashd.steps.decide import Decision
from lashd.words.model import Deployment, Role

BOOTED = Deployment("os", "a" * 64, 0, Path("/a"), frozenset({Role.BOOTED}))


def ahead(*deployments: Deployment) -> Any:
    view = SimpleNamespace(deployments=lambda: deployments, decision=lambda _: Decision(True))
    return look_ahead(view, Jobs())  # type: ignore[arg-type]


def test_nothing_new() -> None:
    now = ahead(BOOTED)
    assert (now.target, bool(now.booted)) == ("", True)


def test_the_same_commit_with_other_kernel_arguments_is_another_system() -> None:
    """Else its count of reboots in vain would be forgotten at each good boot of the old one, and go on for ever."""
    again = replace(BOOTED, serial=1, roles=frozenset({Role.STAGED}), declared=True)
    now = ahead(again, BOOTED)
    assert now.ready
    assert now.target not in ("", now.booted)
    # Once it runs it is what was to come.
    booted = replace(again, roles=frozenset({Role.BOOTED}))
    assert ahead(booted, replace(BOOTED, roles=frozenset())).booted == now.target
    assert ahead(replace(again, stateroot="another"), BOOTED).target not in (now.target, now.booted)
