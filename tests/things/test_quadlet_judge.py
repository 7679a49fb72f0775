# SPDX-License-Identifier: Apache-2.0
"""Ours against the judge: podman's own Quadlet generator must see the same image in every unit file."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import demo.rootfs
from lashd.steps.discover import discover
from lashd.things.quadlet import Quadlets, Unusable, image_unit_of
from lashd.things.rootfs import Root
from lashd.things.specifiers import Meanings, Unresolvable, expand
from lashd.words.errors import LashdError
from lashd.words.reference import parse_reference

SHARE = "usr/share/containers/systemd"
ETC = "etc/containers/systemd"
GENERATE = (
    'mount --bind "$1" "$0/mnt" && exec chroot "$0" '
    f"/usr/bin/env QUADLET_UNIT_DIRS=/mnt/{ETC}:/mnt/{SHARE} /usr/libexec/podman/quadlet -dryrun"
)
# Behind the image stands what the container runs; this word marks where that begins.
MARK = "SENTINEL"


@dataclass(frozen=True)
class Rendered:
    """One service of the generator: its name without `.service`, and the image on its command line."""

    service: str
    image: str


class Judge:
    def __init__(self, root: Path) -> None:
        self.root = root

    def render(self, case: Path) -> dict[str, Rendered]:
        """File name of each unit below `case` that the generator renders."""
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", GENERATE, str(self.root), str(case)]
        done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
        assert done.returncode in (0, 1), done.stderr.decode()
        assert b"quadlet-generator" in done.stderr or not done.stderr, done.stderr.decode()
        rendered = {}
        for part in re.split(r"(?m)^---(?=[^\n]*---$)", done.stdout.decode(errors="surrogateescape"))[1:]:
            service, _, text = part.partition("---\n")
            source = re.findall(r"(?m)^SourcePath=(.*)$", text)[-1].rpartition("/")[2]
            command = words_of(re.findall(r"(?m)^ExecStart=(.*)$", text)[-1])
            image = command[command.index(MARK) - 1] if MARK in command else command[-1]
            # A container whose .image unit failed gets an empty argument: nothing that could run.
            if image and "--rootfs" not in command:
                rendered[source] = Rendered(service.removesuffix(".service"), image)
        return rendered


QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def words_of(line: str) -> list[str]:
    """The words of a rendered command line: the generator writes plain words, and quoted ones with C escapes."""
    words = []
    at = -1
    while at < len(line):
        at += 1
        if quoted := QUOTED.match(line, at):
            words.append(re.sub(r"\\(x..|.)", unescape, quoted[1]))
            at = quoted.end()
        else:
            end = line.find(" ", at)
            end = len(line) if end < 0 else end
            words.append(line[at:end])
            at = end
    return words


def unescape(found: re.Match[str]) -> str:
    return chr(int(found[1][1:], 16)) if len(found[1]) == 3 else ESCAPES.get(found[1], found[1])


@pytest.fixture(scope="session")
def judge() -> Judge:
    return Judge(demo.rootfs.ensure())


def lay_out(case: Path, files: dict[str, str]) -> None:
    for directory in (SHARE, ETC):
        (case / directory).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = case / (name if name.startswith(("etc/", "usr/")) else f"{SHARE}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_bytes(text.encode())


def ours(case: Path) -> dict[str, str]:
    """The image argument of each unit below `case`, as this project reads it."""
    found = {}
    with Root(case) as root:
        quadlets = Quadlets(root)
        for path in case.rglob("*"):
            if path.suffix not in (".container", ".image") or path.parent.suffix == ".d":
                continue
            try:
                unit = quadlets.unit(path.name)
                image_unit = image_unit_of(unit, quadlets)
            except Unusable:
                continue
            if quadlets.damage(unit) or (image_unit and quadlets.damage(image_unit)):
                continue
            found[path.name] = (image_unit.value("ImageTag") if image_unit else "") or (image_unit or unit).value(
                "Image"
            )
    return found


C = "[Container]\n"
I = "[Image]\n"  # noqa: E741
Q = "quay.io/a/b:v1"
OK = f"{C}Image={Q}\n"

# What each case is about, its files, and the image of each unit that is rendered.
CASES: list[tuple[str, dict[str, str], dict[str, str]]] = [
    ("plain", {"a.container": OK}, {"a.container": Q}),
    ("plain image unit", {"a.image": f"{I}Image={Q}\n"}, {"a.image": Q}),
    ("continuation joins without a blank", {"a.container": f"{C}Image=quay.io/a/b\\\n   :v1\n"}, {"a.container": Q}),
    ("comments inside", {"a.container": f"{C}Image=\\\n# c\n ; d\n\n{Q}\n"}, {"a.container": Q}),
    (
        "blank after the backslash",
        {"a.container": f"{C}Image={Q}\\ \nPodmanArgs=x\n"},
        {"a.container": f"{Q}PodmanArgs=x"},
    ),
    ("backslash at the end of the file", {"a.container": f"{C}Image={Q}\\"}, {"a.container": Q}),
    ("backslash, newline, end", {"a.container": f"{C}Image={Q}\\\n"}, {"a.container": Q}),
    ("backslash, then only a blank line", {"a.container": f"{C}Image={Q}\\\n\n"}, {}),
    ("backslash, then only a comment", {"a.container": f"{C}Image={Q}\\\n# no\n"}, {}),
    ("a comment does not continue", {"a.container": f"{C}# c \\\nImage={Q}\n"}, {"a.container": Q}),
    (
        "an image inside Exec is none",
        {"a.container": f"{C}Image={Q}\nExec={MARK} -c \\\n Image=no\n"},
        {"a.container": Q},
    ),
    ("two backslashes", {"a.container": f"{C}Image=quay.io/a/b\\\\\n:v1\n"}, {"a.container": "quay.io/a/b\\:v1"}),
    ("continued key", {"a.container": f"{C}Ima\\\nge={Q}\n"}, {"a.container": Q}),
    ("continued section", {"a.container": f"[Cont\\\nainer]\nImage={Q}\n"}, {"a.container": Q}),
    ("a line of only a backslash", {"a.container": f"{C}\\\nImage={Q}\n"}, {"a.container": Q}),
    (
        "long continuation",
        {"a.container": f"{C}Image=quay.io/a/b:\\\n" + "v\\\n" * 100 + "1\n"},
        {"a.container": "quay.io/a/b:" + "v" * 100 + "1"},
    ),
    ("no comment at the end of a line", {"a.container": f"{C}Image={Q} # c\n"}, {"a.container": f"{Q} # c"}),
    ("semicolon in the value", {"a.container": f"{C}Image={Q};x\n"}, {"a.container": f"{Q};x"}),
    ("semicolon comment", {"a.container": f"; c\n{C};Image=no\nImage={Q}\n"}, {"a.container": Q}),
    ("double quotes", {"a.container": f'{C}Image="{Q}"\n'}, {"a.container": Q}),
    ("several double quotes", {"a.container": f'{C}Image=""{Q}"""\n'}, {"a.container": Q}),
    ("single quotes stay", {"a.container": f"{C}Image='{Q}'\n"}, {"a.container": f"'{Q}'"}),
    ("quote in the middle stays", {"a.container": f'{C}Image="a/b":v1\n'}, {"a.container": 'a/b":v1'}),
    ("only the end quoted", {"a.container": f'{C}Image={Q}"\n'}, {"a.container": Q}),
    ("nothing but quotes", {"a.container": f'{C}Image=""\n'}, {}),
    ("a blank in quotes", {"a.container": f'{C}Image="{Q} "\n'}, {"a.container": f"{Q} "}),
    ("repeated key", {"a.container": f"{C}Image=quay.io/no\nImage={Q}\n"}, {"a.container": Q}),
    ("repeated section", {"a.container": f"{C}Image=quay.io/no\n[Unit]\nA=b\n{C}Image={Q}\n"}, {"a.container": Q}),
    ("empty alone", {"a.container": f"{C}Image=\n"}, {}),
    ("empty, then a value", {"a.container": f"{C}Image=\nImage={Q}\n"}, {"a.container": Q}),
    ("a value, then empty", {"a.container": f"{C}Image={Q}\nImage=\n"}, {}),
    ("image in another section", {"a.container": f"[Unit]\nImage={Q}\n"}, {}),
    ("sections differ by case", {"a.container": f"[container]\nImage={Q}\n"}, {}),
    ("container section in an image unit", {"a.image": OK}, {}),
    ("image section in a container", {"a.container": f"{I}Image={Q}\n"}, {}),
    ("empty file", {"a.container": ""}, {}),
    ("only comments", {"a.container": "# c\n"}, {}),
    ("rootfs alone names no image", {"a.container": f"{C}Image=\nContainerName=x\n"}, {}),
    ("rootfs and image", {"a.container": f"{OK}Rootfs=/x\n"}, {}),
    ("unknown section", {"a.container": f"[X-Mine]\nA=b\n{OK}"}, {"a.container": Q}),
    ("a line without an equals sign", {"a.container": f"{OK}no equals\n"}, {}),
    ("a section without an end", {"a.container": f"[Container\nImage={Q}\n"}, {}),
    ("a section that is an assignment", {"a.container": f"{OK}[Unit]\n[a=b\n"}, {"a.container": Q}),
    ("text behind a section", {"a.container": f"[Container] x\nImage={Q}\n"}, {}),
    ("comment behind a section", {"a.container": f"[Container] # c\nImage={Q}\n"}, {}),
    ("blanks around a section", {"a.container": f"  [Container] \t\nImage={Q}\n"}, {"a.container": Q}),
    ("section without a name", {"a.container": f"{OK}[]\n"}, {}),
    ("bracket in a section's name", {"a.container": f"{OK}[[x]\n"}, {}),
    ("control character in a section's name", {"a.container": f"{OK}[a\x01b]\n"}, {}),
    ("key before the first section", {"a.container": f"A=b\n{OK}"}, {}),
    ("assignment without a key", {"a.container": f"{OK}=x\n"}, {}),
    ("byte order mark", {"a.container": "\ufeff" + OK}, {}),
    ("CRLF", {"a.container": OK.replace("\n", "\r\n")}, {"a.container": Q}),
    ("CRLF and continuation", {"a.container": f"{C}Image=quay.io/a/b\\\r\n:v1\r\n"}, {"a.container": Q}),
    ("carriage returns alone", {"a.container": OK.replace("\n", "\r")}, {}),
    ("blanks around the equals sign", {"a.container": f"{C}  Image \t = \t {Q}  \n"}, {"a.container": Q}),
    ("Unicode blanks at the ends", {"a.container": f"{C}\u00a0Image={Q}\u2003\n"}, {"a.container": Q}),
    ("a separator Go does not know as a blank", {"a.container": f"{C}Image={Q}\x1c\n"}, {"a.container": f"{Q}\x1c"}),
    ("Unicode blank before the value", {"a.container": f"{C}Image=\u00a0{Q}\n"}, {"a.container": f"\u00a0{Q}"}),
    ("no newline at the end", {"a.container": f"{C}Image={Q}"}, {"a.container": Q}),
    ("form feed within", {"a.container": f"{C}Image=a\fb\n"}, {"a.container": "a\fb"}),
    ("equals signs in the value", {"a.container": f"{C}Image=a=b=c\n"}, {"a.container": "a=b=c"}),
    ("key looks like an option", {"a.container": f"{C}Image=--root=/\n"}, {"a.container": "--root=/"}),
    ("drop-in", {"a.container": OK, "a.container.d/1.conf": f"{C}Image=q.io/d\n"}, {"a.container": "q.io/d"}),
    ("drop-in gives the image", {"a.container": C, "a.container.d/1.conf": OK}, {"a.container": Q}),
    (
        "drop-in empties the image",
        {"a.container": OK, "a.container.d/1.conf": f"{C}Image=\n"},
        {},
    ),
    (
        "drop-ins of all kinds, sorted by name",
        {
            "foo-bar.container": OK,
            "container.d/05.conf": f"{C}Image=q.io/five\n",
            "foo-bar.container.d/10.conf": f"{C}Image=q.io/ten\n",
            "foo-.container.d/30.conf": f"{C}Image=q.io/thirty\n",
            "container.d/20.conf": f"{C}Image=q.io/twenty\n",
        },
        {"foo-bar.container": "q.io/thirty"},
    ),
    (
        "the more specific drop-in hides its namesake",
        {"a.container": OK, "container.d/1.conf": f"{C}Image=q.io/no\n", "a.container.d/1.conf": f"{C}Image=q.io/d\n"},
        {"a.container": "q.io/d"},
    ),
    (
        "a shortened name hides the kind's namesake",
        {
            "a-b-c.container": OK,
            "container.d/1.conf": f"{C}Image=q.io/no\n",
            "a-.container.d/1.conf": f"{C}Image=q.io/no\n",
            "a-b-.container.d/1.conf": f"{C}Image=q.io/d\n",
        },
        {"a-b-c.container": "q.io/d"},
    ),
    (
        "a drop-in in /etc hides its namesake in /usr, however specific",
        {
            "a.container": OK,
            "a.container.d/1.conf": f"{C}Image=q.io/no\n",
            f"{ETC}/container.d/1.conf": f"{C}Image=q.io/d\n",
        },
        {"a.container": "q.io/d"},
    ),
    (
        "a drop-in in another directory than the unit",
        {"sub/a.container": OK, f"{ETC}/other/a.container.d/1.conf": f"{C}Image=q.io/d\n"},
        {"a.container": "q.io/d"},
    ),
    ("drop-in without .conf", {"a.container": OK, "a.container.d/1.txt": f"{C}Image=q.io/no\n"}, {"a.container": Q}),
    ("drop-in without a section", {"a.container": OK, "a.container.d/1.conf": "Image=q.io/no\n"}, {"a.container": Q}),
    (
        "a damaged drop-in leaves the others",
        {"a.container": OK, "a.container.d/1.conf": "no\n", "a.container.d/2.conf": f"{C}Image=q.io/d\n"},
        {"a.container": "q.io/d"},
    ),
    ("dangling drop-in", {"a.container": OK, "a.container.d/1.conf": "-> /mnt/nowhere"}, {"a.container": Q}),
    (
        "directory of drop-ins is a link",
        {"a.container": OK, "drops/1.conf": f"{C}Image=q.io/d\n", "a.container.d": "-> drops"},
        {"a.container": "q.io/d"},
    ),
    (
        "drop-ins of a template",
        {
            "x-a@i.container": OK,
            "x-a@.container.d/1.conf": f"{C}Image=q.io/one\n",
            "x-@.container.d/2.conf": f"{C}Image=q.io/two\n",
            "x-.container.d/1.conf": f"{C}Image=q.io/no\n",
        },
        {"x-a@i.container": "q.io/two"},
    ),
    (
        "continuation at the end of a file does not reach into a drop-in",
        {"a.container": f"{C}Image={Q}\\", "a.container.d/1.conf": "[Unit]\nA=b\n"},
        {"a.container": Q},
    ),
    (
        "through an image unit",
        {"a.container": f"{C}Image=x.image\n", "x.image": f"{I}Image={Q}\n"},
        {"a.container": Q, "x.image": Q},
    ),
    (
        "through an image unit, quoted",
        {"a.container": f'{C}Image="x.image"\n', "x.image": f"{I}Image={Q}\n"},
        {"a.container": Q, "x.image": Q},
    ),
    (
        "the image unit's tag",
        {"a.container": f"{C}Image=x.image\n", "x.image": f"{I}Image={Q}\nImageTag=localhost/t\n"},
        {"a.container": "localhost/t", "x.image": Q},
    ),
    (
        "the image unit's empty tag",
        {"a.container": f"{C}Image=x.image\n", "x.image": f"{I}Image={Q}\nImageTag=\n"},
        {"a.container": Q, "x.image": Q},
    ),
    (
        "drop-ins of the image unit",
        {
            "a.container": f"{C}Image=x.image\n",
            "x.image": f"{I}Image={Q}\n",
            "x.image.d/1.conf": f"{I}ImageTag=localhost/t\n",
            "image.d/1.conf": f"{I}ImageTag=localhost/no\n",
            "image.d/2.conf": f"{I}Image=q.io/d\n",
        },
        {"a.container": "localhost/t", "x.image": "q.io/d"},
    ),
    (
        "image unit in another directory",
        {"a.container": f"{C}Image=x.image\n", f"{ETC}/s/x.image": f"{I}Image={Q}\n"},
        {"a.container": Q, "x.image": Q},
    ),
    ("image unit that is missing", {"a.container": f"{C}Image=nothere.image\n"}, {}),
    ("image unit without an image", {"a.container": f"{C}Image=x.image\n", "x.image": I}, {}),
    ("image unit that is damaged", {"a.container": f"{C}Image=x.image\n", "x.image": "no\n"}, {}),
    ("image unit by path", {"a.container": f"{C}Image=./x.image\n", "x.image": f"{I}Image={Q}\n"}, {"x.image": Q}),
    (
        "no second step",
        {"x.image": f"{I}Image=y.image\n", "y.image": f"{I}Image={Q}\n"},
        {"x.image": "y.image", "y.image": Q},
    ),
    ("the image of a service with another name", {"a.container": f"{OK}ServiceName=z\n"}, {"a.container": Q}),
    ("percent signs", {"a.container": f"{C}Image=q.io/%%/%a/%p/%W:%%\n"}, {"a.container": "q.io/%%/%a/%p/%W:%%"}),
    (
        "a service's name as the image's",
        {"my-app.container": f"{C}Image=q.io/%p:%N\n"},
        {"my-app.container": "q.io/%p:%N"},
    ),
    (
        "the image unit's own specifiers",
        {"a.container": f"{C}Image=x.image\n", "x.image": f"{I}Image=q.io/%N\n"},
        {"a.container": "q.io/%N", "x.image": "q.io/%N"},
    ),
    ("dollar", {"a.container": f"{C}Image=q.io/b:$TAG\n"}, {"a.container": "q.io/b:$TAG"}),
    ("transport", {"a.container": f"{C}Image=docker://{Q}\n"}, {"a.container": f"docker://{Q}"}),
    ("blank within", {"a.container": f"{C}Image={Q} extra\n"}, {"a.container": f"{Q} extra"}),
    ("escape", {"a.container": f"{C}Image=b\\x2dq\n"}, {"a.container": "b\\x2dq"}),
    ("short name", {"a.container": f"{C}Image=busybox\n"}, {"a.container": "busybox"}),
    ("/etc before /usr", {"a.container": f"{C}Image=q.io/no\n", f"{ETC}/a.container": OK}, {"a.container": Q}),
    ("a damaged one in /etc gives way", {"a.container": OK, f"{ETC}/a.container": "no\n"}, {"a.container": Q}),
    ("a dangling one in /etc gives way", {"a.container": OK, f"{ETC}/a.container": "-> nowhere"}, {"a.container": Q}),
    ("a directory in /etc gives way", {"a.container": OK, f"{ETC}/a.container/x": ""}, {"a.container": Q}),
    ("a damaged one takes those beside it along", {"a.container": OK, "b.volume": "no\n"}, {}),
    ("a dangling one takes those beside it along", {"a.container": OK, "b.pod": "-> nowhere"}, {}),
    ("a directory takes those beside it along", {"a.container": OK, "b.image/x": ""}, {}),
    ("a damaged file of another kind harms nobody", {"a.container": OK, "b.txt": "no\n"}, {"a.container": Q}),
    ("a damaged one harms no other directory", {"s/a.container": OK, "b.kube": "no\n"}, {"a.container": Q}),
    (
        "units beside a damaged one hide namesakes",
        {f"{ETC}/a.container": OK, f"{ETC}/b.image": "no\n", "a.container": OK},
        {},
    ),
    (
        "a damaged one that is hidden harms nobody",
        {f"{ETC}/a.image": f"{I}Image={Q}\n", "a.image": "no\n", "b.container": OK},
        {"a.image": Q, "b.container": Q},
    ),
    (
        "the damaged image unit's neighbour",
        {"a.container": f"{C}Image=x.image\n", "s/x.image": f"{I}Image={Q}\n", "s/y.network": "no\n"},
        {},
    ),
    ("masked", {"a.container": OK, f"{ETC}/a.container": "-> /dev/null", f"{ETC}/b.container": OK}, {"b.container": Q}),
    ("subdirectory", {"sub/deep/a.container": OK}, {"a.container": Q}),
    (
        "the directory itself, then those below in their order",
        {"b/a.container": f"{C}Image=q.io/no\n", "a/c/a.container": OK, "a.b/a.container": f"{C}Image=q.io/no\n"},
        {"a.container": Q},
    ),
    ("link to a file", {"real": OK, "a.container": "-> real"}, {"a.container": Q}),
    ("link to a directory", {"usr/share/elsewhere/a.container": OK, "d": "-> ../../elsewhere"}, {"a.container": Q}),
    ("circle of directories", {"d/a.container": OK, "d/e": "-> ../../systemd"}, {"a.container": Q}),
    ("template", {"a@.container": f"{C}Image=q.io/b:%i\n"}, {"a@.container": "q.io/b:%i"}),
    ("dots in the name", {"a.b.container": OK}, {"a.b.container": Q}),
]


@pytest.mark.parametrize(("files", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_same_image(judge: Judge, tmp_path: Path, files: dict[str, str], expected: dict[str, str]) -> None:
    lay_out(tmp_path, files)
    judged = {name: rendered.image for name, rendered in judge.render(tmp_path).items()}
    assert judged == expected
    assert ours(tmp_path) == expected


@pytest.mark.parametrize("files", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_discover_yields_what_the_generator_renders(judge: Judge, tmp_path: Path, files: dict[str, str]) -> None:
    lay_out(tmp_path, files)
    (tmp_path / "usr/lib").mkdir()
    (tmp_path / "usr/lib/os-release").write_text("VARIANT_ID=edge\n")
    bound = tmp_path / "usr/lib/bootc/bound-images.d"
    bound.mkdir(parents=True)
    for path in sorted(tmp_path.rglob("*.container")) + sorted(tmp_path.rglob("*.image")):
        link = bound / path.name
        if path.parent != bound and path.exists() and not link.is_symlink():
            link.symlink_to(f"/{path.relative_to(tmp_path)}")
    expected = {}
    for name, rendered in judge.render(tmp_path).items():
        try:
            expected[name] = parse_reference(expand(rendered.image, Meanings(rendered.service, {"VARIANT_ID": "edge"})))
        except (Unresolvable, LashdError):
            continue
    found = discover(tmp_path)
    images = {image.unit: image for image in found.images}
    for name, reference in expected.items():
        assert reference in (images[name].reference, *images[name].names)
    # What the generator leaves out because of a damaged neighbour is bound all the same, and the neighbour is named.
    if set(images) > set(expected):
        assert found.bad
    assert {path.name for path in bound.iterdir()} == set(images) | {
        entry.unit for entry in found.bad if "would not run" not in entry.problem
    }


def test_what_this_podman_refuses_for_other_reasons_is_still_read(judge: Judge, tmp_path: Path) -> None:
    """Keys come and go with podman's version, and bootc binds the image all the same."""
    lay_out(tmp_path, {"a.container": f"{OK}Bogus=1\n", "x.image": f"{I}Image={Q}\nPolicy=missing\n"})
    assert judge.render(tmp_path) == {}
    assert ours(tmp_path) == {"a.container": Q, "x.image": Q}


# Pieces that unit files are made of: mostly right, often odd, sometimes wrong.
BLANK = st.sampled_from(["", "", "", " ", "\t", "  ", "\u00a0", "\x0b"])
VALUE = st.one_of(
    st.sampled_from([Q, "quay.io/x/y@sha256:" + "a" * 64, "busybox", "x.image", "y.image", '"x.image"', "", '"', "%%"]),
    st.text(st.sampled_from("ab/:.@-_\"'\\ %$#;=[]\t\x0b\u00e9\u2028"), max_size=12),
)
KEY = st.sampled_from(["Image", "Image", "Image", "Image ", "Rootfs", "ImageTag", "HostName"])
LINE = st.one_of(
    st.builds("{0}{1}{2}={2}{3}{0}".format, BLANK, KEY, BLANK, VALUE),
    st.builds("{}{}\\{}".format, BLANK, st.one_of(VALUE, st.just(f"Image={Q}")), st.sampled_from(["", " "])),
    st.sampled_from(
        ["# c", "; c \\", "", "[Unit]", "[Image]", "[Container]", " [Container] ", "[X] x", "[", "a", "\\"]
    ),
)
TEXT = st.builds(
    lambda head, lines, newline, end: newline.join([*head, *lines]) + end,
    st.sampled_from([[], ["[Container]"], ["[Image]"], ["[Container]", f"Image={Q}"], ["[Image]", f"Image={Q}"]]),
    st.lists(LINE, max_size=5),
    st.sampled_from(["\n", "\n", "\n", "\r\n"]),
    st.sampled_from(["", "\n", "\n\n"]),
)
NAME = st.sampled_from(
    [
        *("a.container", "b.container", "a-b.container", "a-b-c.container", "t@i.container", "x.image", "y.image"),
        *(f"{ETC}/a.container", f"{ETC}/x.image", "s/b.container", f"{ETC}/s/b.container", f"{ETC}/t-u@i.container"),
        *("container.d/1.conf", "a-.container.d/1.conf", "a-b-.container.d/2.conf", "a-b.container.d/3.conf"),
        *(f"{ETC}/container.d/2.conf", "t@.container.d/1.conf", "t-@.container.d/1.conf", f"{ETC}/x.image.d/1.conf"),
        *("image.d/1.conf", "s/a.container.d/0.conf"),
    ]
)


@pytest.fixture(scope="module")
def deadline() -> float:
    return time.monotonic() + 30


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(files=st.dictionaries(NAME, TEXT, min_size=4, max_size=16))
def test_any_files(judge: Judge, deadline: float, files: dict[str, str]) -> None:
    if time.monotonic() > deadline:
        return
    with tempfile.TemporaryDirectory() as directory:
        case = Path(directory)
        lay_out(case, files)
        judged = judge.render(case)
        refused = units_with_keys_of_another_podman(case)
        mine = ours(case)
        assert {n: r.image for n, r in judged.items() if n not in refused} == {
            n: image for n, image in mine.items() if n not in refused
        }


def units_with_keys_of_another_podman(case: Path) -> set[str]:
    """Units that this podman refuses for a key it does not know (or that stand on one such), whatever their image."""
    known = {
        "Container": {"Image", "Rootfs", "HostName"},
        "Image": {"Image", "ImageTag"},
    }
    refused = set()
    with Root(case) as root:
        quadlets = Quadlets(root)
        for path in case.rglob("*"):
            if path.suffix not in (".container", ".image") or path.parent.suffix == ".d":
                continue
            try:
                unit = quadlets.unit(path.name)
            except Unusable:
                continue
            if not set(unit.file.sections.get(unit.section, ())) <= known[unit.section]:
                refused.add(unit.name)
    with Root(case) as root:
        quadlets = Quadlets(root)
        for path in case.rglob("*.container"):
            try:
                if quadlets.unit(path.name).value("Image") in refused:
                    refused.add(path.name)
            except Unusable:
                continue
    return refused
