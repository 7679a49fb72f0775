# SPDX-License-Identifier: Apache-2.0
"""The linters, as ordinary tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--no-cache", "--check", "daemon", "tests", "demo"],
        ["ruff", "check", "--no-cache", "daemon", "tests", "demo"],
        ["mypy"],
        ["lint-imports"],
    ],
    ids=" ".join,
)
def test_linter(command: list[str]) -> None:
    ended = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_source_file_names_its_licence() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.sh", "packaging/setup", ".ci/run"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    paths = [REPOSITORY / name for name in listed]
    assert len(paths) > 20
    missing = [
        path for path in paths if path.exists() and "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]
    ]
    assert not missing
