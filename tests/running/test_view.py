# SPDX-License-Identifier: Apache-2.0
"""What is read again when, and what the running system lacks."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.running import view as module
from lashd.running.blocked import Situation, reasons
from lashd.running.view import View
from lashd.steps.record import Records
from lashd.things.primary import PrimaryStore
from lashd.words.model import Deployment, Discovery, Role
from tests.steps.test_discover import IMAGE, STORE
from tests.steps.test_discover import Deployment as Tree
from tests.support.images import build, files
from tests.support.stores import make_store, put


class NoBackend:
    """For what is asked with a deployment in hand."""

    def deployments(self) -> tuple[Deployment, ...]:
        return ()


@pytest.fixture
def view(tmp_path: Path) -> View:
    store = make_store(tmp_path / "store")
    put(store, build([files({"bin/tool": b"tool"})]), "quay.io/edge/there:v1")
    return View(NoBackend(), store, Records(tmp_path / "records"), PrimaryStore(tmp_path))  # type: ignore[arg-type]


def deployment(root: Path, name: str, role: Role) -> tuple[Deployment, Tree]:
    tree = Tree(root / name)
    return Deployment("os", name[0] * 64, 0, root / name, frozenset({role})), tree


def tags(found: Discovery) -> list[str]:
    return [str(image.reference.tag) for image in found.images]


def test_a_staged_deployment_with_local_changes_is_read_anew(
    tmp_path: Path, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged, tree = deployment(tmp_path, "staged", Role.STAGED)
    running = tmp_path / "running"
    for name in ("etc/containers/systemd/agent.container.d", "usr/etc"):
        (running / name).mkdir(parents=True)
    tree.bind("agent.container")
    alone, staged = staged, replace(staged, merges=running)
    first = view.discovery(staged)
    assert tags(first) == ["v1"]
    edit = running / "etc/containers/systemd/agent.container.d/10.conf"
    edit.write_text(IMAGE)
    assert view.discovery(staged) is first
    view.edited()
    assert tags(view.discovery(staged)) == ["local"]
    # By the clock as well; and what is the same content is the same object.
    edit.unlink()
    monkeypatch.setattr(module, "BOOTED_SECONDS", -1.0)
    again = view.discovery(staged)
    assert tags(again) == ["v1"]
    assert view.discovery(staged) is again
    # Staged again without local changes it is another thing; and then nothing can change it.
    edit.write_text(IMAGE)
    only = view.discovery(alone)
    assert tags(only) == ["v1"]
    tree.write("usr/share/containers/systemd/agent.container", IMAGE)
    assert view.discovery(alone) is only


async def test_learning_does_not_keep_what_was_edited_meanwhile(
    tmp_path: Path, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted, tree = deployment(tmp_path, "booted", Role.BOOTED)
    tree.bind("agent.container")
    original = module.discover

    def slow(root: Path, merges: Path | None = None) -> Discovery:
        found = original(root, merges)
        tree.write("usr/share/containers/systemd/agent.container", IMAGE)
        view.edited()
        return found

    monkeypatch.setattr(module, "discover", slow)
    await view.learn(booted)
    assert tags(view.discovery(booted)) == ["local"]


def test_what_the_running_system_lacks_is_said(tmp_path: Path, view: View) -> None:
    booted, tree = deployment(tmp_path, "booted", Role.BOOTED)
    tree.bind("there.container", f"[Container]\nImage=quay.io/edge/there:v1\n{STORE}")
    assert view.lacking(booted) == []
    tree.bind("gone.container", f"[Container]\nImage=quay.io/edge/gone:v1\n{STORE}")
    view.edited()
    (reason,) = view.lacking(booted)
    assert reason[0] == "missing"
    assert not view.is_broken(booted)  # nobody knows its digest, so nothing is fetched unasked
    ((code, sentence),) = reasons(Situation(booted=booted, lacking=(reason,)))
    assert code == "running-lacks"
    assert "quay.io/edge/gone:v1" in sentence
    assert "lashctl bind booted" in sentence


def test_what_is_no_deployment_any_more_is_forgotten(
    tmp_path: Path, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is up for a year sees many come and go."""
    there: list[Deployment] = []
    monkeypatch.setattr(view._backend, "deployments", lambda: tuple(there))
    booted, tree = deployment(tmp_path, "booted", Role.BOOTED)
    tree.bind("agent.container")
    for number in range(5):
        staged, tree = deployment(tmp_path, f"{number}staged", Role.STAGED)
        tree.bind("agent.container")
        there[:] = [staged, booted]
        assert len(view.bound(there, {})) == 2
    assert set(view._discoveries) == set(view._rows) == {staged.root, booted.root}


async def test_what_takes_long_to_read_is_valid_from_its_end(
    tmp_path: Path, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted, tree = deployment(tmp_path, "booted", Role.BOOTED)
    tree.bind("agent.container")
    reads, original = [], module.discover

    def slow(root: Path, merges: Path | None = None) -> Discovery:
        reads.append(root)
        time.sleep(0.3)
        return original(root, merges)

    monkeypatch.setattr(module, "discover", slow)
    monkeypatch.setattr(module, "BOOTED_SECONDS", 0.25)
    await view.learn(booted)
    first = view.discovery(booted)
    assert len(reads) == 1
    time.sleep(0.3)
    assert view.discovery(booted) is first
    assert view.discovery(booted) is first
    assert len(reads) == 2
