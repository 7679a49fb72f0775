# SPDX-License-Identifier: Apache-2.0
"""What bootc runs instead of podman: it is told that bound images are there, and all else goes to podman."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[3] / "packaging/libexec/bootc-tools/podman"
STORE = ["--root", "/run/bootc/storage", "--runroot", "/proc/self/fd/3"]
HOST = "registry.example.com/os:1"

Ask = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Runs the tool with a podman that ends with 7; answers (status, what it wrote or what podman was asked)."""
    podman = tmp_path / "podman"
    podman.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    podman.chmod(0o755)
    tool = tmp_path / "tool"
    text = TOOL.read_text()
    assert text.count("real=/usr/bin/podman\n") == 1
    tool.write_text(text.replace("real=/usr/bin/podman\n", f"real={podman}\n"))
    tool.chmod(0o755)

    def run(*words: str, image: str = HOST) -> tuple[int, list[str]]:
        environment = {"PATH": "/usr/bin:/bin", "LASHD_HOST_IMAGE": image}
        done = subprocess.run([tool, *words], capture_output=True, text=True, env=environment, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    return run


@pytest.mark.parametrize("image", ["example.com/app:1", "app", f"example.com/app@sha256:{'a' * 64}", "a b*", "-x"])
def test_every_bound_image_is_there(ask: Ask, image: str) -> None:
    assert ask(*STORE, "image", "exists", image) == (0, [])


def test_of_the_hosts_own_image_it_is_told_the_truth(ask: Ask) -> None:
    """It is there only where bootc pulls host images through this store."""
    words = [*STORE, "image", "exists", HOST]
    assert ask(*words) == (7, words)


def test_there_is_nothing_to_prune(ask: Ask) -> None:
    assert ask(*STORE, "image", "list", "--format=json") == (0, ["[]"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["system", "info"],
        ["images"],
        [*STORE, "images"],
        [*STORE, "image", "pull", "example.com/app:1"],
        [*STORE, "image", "exists"],
        [*STORE, "image", "rm", "a" * 64],
        ["image", "exists", "example.com/app:1"],
        ["image", "list", "--format=json"],
        ["--root", "/elsewhere", "--runroot", "/run/bootc/storage", "image", "exists", "example.com/app:1"],
        ["--log-level=debug", "image", "exists", "example.com/app:1"],
        ["image", "push", "--remove-signatures", "a b", "containers-storage:[overlay@/run/bootc/storage+x]a"],
        ["run", "image", "exists", "--root", "/run/bootc/storage"],
    ],
)
def test_all_else_goes_to_podman_as_it_is(ask: Ask, words: list[str]) -> None:
    assert ask(*words) == (7, words or [""])


def test_options_with_their_value_in_one_word(ask: Ask) -> None:
    assert ask("--log-level=debug", *STORE, "image", "exists", "example.com/app:1") == (0, [])
