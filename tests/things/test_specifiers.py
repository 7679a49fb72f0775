# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from lashd.things.specifiers import Meanings, Unresolvable, expand, parse_os_release

OS_RELEASE = """
# comment
ID=fedora
VERSION_ID="41"
VARIANT_ID='edge iot'
IMAGE_ID=a"b"c
IMAGE_VERSION="1\\$2"
bad line
lower=x
"""


def test_as_systemd(tmp_path: Path) -> None:
    """systemd-tmpfiles writes down what systemd makes of the specifiers that mean the same there as in services."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(OS_RELEASE)
    (tmp_path / "etc/machine-id").write_text("a" * 32 + "\n")
    meanings = Meanings("x", parse_os_release(OS_RELEASE))
    letters = [*"aBowWTVhguUG%"]
    lines = [f"f /{ord(letter)} 0644 - - - <%{letter}>\n" for letter in letters]
    (tmp_path / "judge.conf").write_text("".join(lines))
    argv = ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(tmp_path / "judge.conf")]
    done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
    for letter in letters:
        assert expand(f"<%{letter}>", meanings) == (tmp_path / str(ord(letter))).read_text(), done.stderr.decode()


@pytest.mark.parametrize(
    ("service", "text", "meaning"),
    [
        ("my-app", "%n %N %p %i %j %P %J", "my-app.service my-app my-app  app my/app app"),
        ("my-app@a-b", "%n %N %p %i %I %j", "my-app@a-b.service my-app@a-b my-app a-b a/b app"),
        ("a\\x2db", "%P", "a-b"),
        ("my-app@", "%p %j", "my-app app"),
        ("x", "100%% %%a", "100% %a"),
        ("x", "%- % %", "%- % %"),
        ("x", "%\n", "%\n"),
        ("x", "plain", "plain"),
        ("x", "%h%E", "/root/etc"),
    ],
)
def test_expand(service: str, text: str, meaning: str) -> None:
    assert expand(text, Meanings(service)) == meaning


def test_image_names() -> None:
    meanings = Meanings("x", parse_os_release(OS_RELEASE))
    assert expand("%M %A", meanings) == "abc 1$2"
    assert expand("<%M%A>", Meanings("x")) == "<>"


@pytest.mark.parametrize(
    ("machine", "name"), [("x86_64", "x86-64"), ("aarch64", "arm64"), ("ppc64le", "ppc64-le"), ("i686", "x86")]
)
def test_architecture(machine: str, name: str) -> None:
    assert expand("%a", Meanings("x", machine=machine)) == name


@pytest.mark.parametrize(
    ("service", "letter"), [*(("x", c) for c in "HbmvlqdfyYcrsRzZ0"), *(("x@", c) for c in "nNiI")]
)
def test_what_only_the_running_host_knows(service: str, letter: str) -> None:
    with pytest.raises(Unresolvable, match=f"uses the specifier %{letter}"):
        expand(f"quay.io/a:%{letter}", Meanings(service))


def test_unknown_machine() -> None:
    with pytest.raises(Unresolvable):
        expand("%a", Meanings("x", machine="pdp11"))


def test_many_percent_signs() -> None:
    begun = time.process_time()
    assert len(expand("%" * 1_000_000, Meanings("x"))) == 500_000
    assert time.process_time() - begun < 5


def test_a_long_meaning_is_not_repeated_without_end() -> None:
    meanings = Meanings("x", {"IMAGE_VERSION": "a" * 60_000})
    assert len(expand("%A", meanings)) == 60_000
    with pytest.raises(Unresolvable, match="becomes too long"):
        expand("%A" * 2000, meanings)
