# SPDX-License-Identifier: Apache-2.0
"""The manual page and the completions say what the command line really takes."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
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


def in_code(path: Path) -> Iterator[str]:
    """The commands that the sentences of a module name; what is filled in is a number, which fits everywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        yield from (found for found in re.findall(r"'(lashctl [^']+)'", text) if found != "lashctl 7")
        yield from re.findall(r"^  (lashctl .+)$", text, re.MULTILINE)


def in_text(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    yield from re.findall(r"`(lashctl [^`|]+)`", text)
    yield from re.findall(r"^(?:    |.*# )(lashctl [a-z].+)$", text, re.MULTILINE)


def in_catalog(path: Path) -> Iterator[str]:
    yield from re.findall(r"'(lashctl [^']+)'", path.read_text(encoding="utf-8"))


def named() -> list[tuple[str, str]]:
    found = [(path, in_code) for path in sorted((REPOSITORY / "daemon/lashd").rglob("*.py"))]
    texts = [*sorted((REPOSITORY / "docs").rglob("*.md")), REPOSITORY / "README.md"]
    found += [(path, in_text) for path in [*texts, *sorted((REPOSITORY / "dbus").glob("*.xml"))]]
    found.append((REPOSITORY / "packaging/lashd.catalog", in_catalog))
    # Parts of an f-string are constants of their own as well, and end where something is filled in.
    return sorted(
        {(path.name, command) for path, read in found for command in read(path) if command.strip() == command}
    )


def test_every_command_that_is_named_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    commands = named()
    assert len({command for _, command in commands}) > 25
    for place, command in commands:
        words = shlex.split(re.split(r" [|&]", command)[0], comments=True)[1:]
        words = ["7" if word == "ID" else word for word in words]
        try:
            arguments.parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{place}: {command}: {capsys.readouterr().err}")
