# SPDX-License-Identifier: Apache-2.0
"""What bootc makes of bound-images.d, as its own tests have it, and what lashd makes of the very same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lashd.steps.discover import discover
from tests.support.bootc import Failed, bound_images

UNITS = "usr/share/containers/systemd"
LINKS = "usr/lib/bootc/bound-images.d"
NAME = "quay.io/edge/app:1"


def write(root: Path, name: str, text: str) -> None:
    """A unit and the absolute link that binds it."""
    for directory in (UNITS, LINKS):
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / UNITS / name).write_text(text)
    (root / LINKS / name).symlink_to(f"/{UNITS}/{name}")


def by_lashd(root: Path) -> tuple[list[str], list[str]]:
    """(references that are bound, entries that cannot be used)"""
    found = discover(root)
    return sorted(str(image.reference) for image in found.images), [entry.unit for entry in found.bad]


def test_nothing(tmp_path: Path) -> None:
    for make in (lambda: None, lambda: (tmp_path / LINKS).mkdir(parents=True)):
        make()
        assert (bound_images(tmp_path), by_lashd(tmp_path)) == ([], ([], []))


def test_two_of_each_kind(tmp_path: Path) -> None:
    for name, section in (("a.image", "Image"), ("b.image", "Image"), ("c.container", "Container")):
        write(tmp_path, name, f"[{section}]\nImage=quay.io/edge/{name[0]}:1\n")
    names = [f"quay.io/edge/{letter}:1" for letter in "abc"]
    assert sorted(bound_images(tmp_path)) == names
    assert by_lashd(tmp_path) == (names, [])


# (unit, its text, what bootc says, whether lashd can use it)
REFUSED = [
    ("a.image", "[Image]\n", "Missing Image field", False),
    ("a.container", "[Container]\nExec=x\n", "Missing Image field", False),
    ("a.image", f"[Image]\nImage={NAME}\nAuthFile=/etc/a.json\n", "AuthFile is not supported", True),
    ("a.container", f"[Container]\nImage={NAME}\nExec=a \\\n  b\n", r"Parse to ini: IncorrectSyntax\(3\)", True),
    ("a.container", f"[Container]\nImage={NAME}\nExec=a \\\n[b]=c\n", "Parse to ini: IncorrectSection", True),
    ("a.image", "[Image]\nImage=quay.io/%b/app:1\n", "Systemd specifiers are not supported", False),
    ("a.image", "[Image]\nImage=quay.io/edge/app:1%\n", "Systemd specifiers are not supported", False),
    ("a.image", "[Image]\nImage=quay.io/edge/app:%%%v\n", "Systemd specifiers are not supported", False),
    ("a.kube", "[Kube]\nYaml=/a.yaml\n", "Invalid file extension: a.kube", False),
]


@pytest.mark.parametrize(("name", "text", "said", "usable"), REFUSED)
def test_refused_by_bootc(tmp_path: Path, name: str, text: str, said: str, usable: bool) -> None:
    write(tmp_path, name, text)
    with pytest.raises(Failed, match=said):
        bound_images(tmp_path)
    assert by_lashd(tmp_path) == (([NAME], []) if usable else ([], [name]))


@pytest.mark.parametrize("kind", ["file", "directory", "dangling"])
def test_one_bad_entry(tmp_path: Path, kind: str) -> None:
    """bootc gives up on all of them, lashd on this one."""
    write(tmp_path, "good.image", f"[Image]\nImage={NAME}\n")
    bad = tmp_path / LINKS / "bad.image"
    if kind == "dangling":
        bad.symlink_to(f"/{UNITS}/bad.image")
    else:
        bad.mkdir() if kind == "directory" else bad.write_text("x")
    with pytest.raises(Failed, match="No such file" if kind == "dangling" else r"Not a symlink: bad\.image"):
        bound_images(tmp_path)
    assert by_lashd(tmp_path) == ([NAME], ["bad.image"])


@pytest.mark.parametrize(
    ("value", "as_bootc", "as_systemd"),
    [
        ("%%x/app:1", "%x/app:1", None),
        ("x/app:1%%", "x/app:1%", None),
        ("quay.io/a/b:1;x", "quay.io/a/b:1", None),
        ('"quay.io/a/b:1"', '"quay.io/a/b:1"', "quay.io/a/b:1"),
        ("quay.io/a/b", "quay.io/a/b", "quay.io/a/b:latest"),
        (f"quay.io/a/b:1@sha256:{'a' * 64}", f"quay.io/a/b:1@sha256:{'a' * 64}", f"quay.io/a/b@sha256:{'a' * 64}"),
        ("docker://quay.io/a/b:1", "docker://quay.io/a/b:1", "quay.io/a/b:1"),
    ],
)
def test_how_a_name_is_read(tmp_path: Path, value: str, as_bootc: str, as_systemd: str | None) -> None:
    """bootc keeps the string; lashd has podman's name for it, or a bad entry where podman would have none."""
    write(tmp_path, "a.image", f"[Image]\nImage={value}\n")
    assert bound_images(tmp_path) == [as_bootc]
    assert by_lashd(tmp_path) == (([as_systemd], []) if as_systemd else ([], ["a.image"]))
