# SPDX-License-Identifier: Apache-2.0
"""The manual page and the completions say what the command line really takes."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from lashd.cli import arguments, failures
from lashd.words.errors import ERRORS, EXIT_NOTHING_TO_DO

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MANUAL = (REPOSITORY / "docs/lashctl.md").read_text(encoding="utf-8")
COMPLETIONS = REPOSITORY / "packaging/completions"


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = arguments.parser()._actions
    return next(dict(action.choices) for action in actions if isinstance(action, argparse._SubParsersAction))


def options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def test_the_manual_has_every_command_option_and_status() -> None:
    for name, parser in commands().items():
        assert f"`{name}" in MANUAL
        for option in options(parser):
            assert option in MANUAL or option == "--help"
    for name, facts in ERRORS.items():
        assert f"| {facts.exit_status} | {name.value} | {facts.sentence} |" in MANUAL
    for status in (
        *(0, EXIT_NOTHING_TO_DO, failures.EXIT_UNAVAILABLE, failures.EXIT_OUTPUT, failures.EXIT_PROTOCOL),
        failures.EXIT_INTERRUPTED,
    ):
        assert f"| {status}" in MANUAL


def complete(*words: str) -> set[str]:
    """What bash offers for the last of `words`."""
    script = (
        f"source {COMPLETIONS}/lashctl.bash; lashctl() {{ printf 'ID KIND\\n7 bind\\n8 plan\\n'; }}; "
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lashctl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ran = subprocess.run(
        ["/bin/bash", "-c", script, "bash", "lashctl", *words], capture_output=True, text=True, check=True
    )
    assert ran.stderr == ""
    return set(ran.stdout.split())


def test_bash_completes_every_command_and_option() -> None:
    assert set(commands()) <= complete("")
    for name, parser in commands().items():
        assert {*options(parser)} == complete(name, "--")
        assert {*options(parser)} == complete("--json", name, "--")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("up",), {"upgrade"}),
        (("list", "--deployment", ""), {"booted", "staged", "rollback", "all"}),
        (("plan", ""), {"upgrade", "bind", "--deployment", "--json", "--help"}),
        (("jobs", "--cancel", ""), {"7", "8"}),
        (("jobs", "8"), {"8"}),
        (("upgrade", "--reason", ""), set()),
    ],
)
def test_bash_completes_arguments(words: tuple[str, ...], offered: set[str]) -> None:
    assert complete(*words) == offered


@pytest.mark.parametrize("file", ["lashctl.fish", "_lashctl"])
def test_other_shells_know_every_command_and_option(file: str) -> None:
    text = (COMPLETIONS / file).read_text(encoding="utf-8")
    for name, parser in commands().items():
        assert name in text
        for option in options(parser):
            assert (option if file == "_lashctl" else f"-l {option.removeprefix('--')}") in text
