# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: parsers of what others wrote. Each either takes an input or refuses it with the error it documents.

A target raises for what must not happen: an exception that is not documented, or an answer that is not right.
"""

from __future__ import annotations

import base64
import importlib
import logging
import random
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lashd.bus.options import METHODS, decode, decode_image
from lashd.steps.discover import DIRECTORY, discover
from lashd.things.gvariant import parse as parse_gvariant
from lashd.things.ostree import facts
from lashd.things.quadlet import SECTIONS, drop_in_directories, is_unit_name
from lashd.things.unitfile import NotAUnitFile, UnitFile, split_words
from lashd.things.unitfile import parse as parse_unit
from lashd.words.errors import ErrorName, LashdError
from lashd.words.reference import parse_reference
from tests.fuzz import mutate

GLib: Any = importlib.import_module("gi.repository.GLib")

DIGEST = "sha256:" + "0123456789abcdef" * 4
QUADLET = "usr/share/containers/systemd"
STORE = "GlobalArgs=--storage-opt=additionalimagestore=/usr/lib/bootc/storage\n"


class Target(ABC):
    """`share`: how many of a hundred inputs are for it.

    `modules`: an input that reaches a new line of these files joins the corpus; none where the corpus is of pieces.
    """

    name = ""
    share = 0
    modules: tuple[str, ...] = ()

    @property
    def guided(self) -> bool:
        return bool(self.modules)

    def __init__(self) -> None:
        self.accepted = 0

    @abstractmethod
    def corpus(self) -> list[Any]: ...

    @abstractmethod
    def make(self, pick: random.Random, corpus: Sequence[Any]) -> Any: ...

    @abstractmethod
    def take(self, value: Any) -> None:
        """Raises for what must not happen."""

    def close(self) -> None:  # noqa: B027  (most make nothing)
        """Takes away what it made."""


UNITS = (
    f"[Container]\nImage=quay.io/edge/agent:v1\n{STORE}",
    "# comment\n[Unit]\nDescription=x\n\n[Container]\nImage=\\\n  quay.io/a/b:1\\\n; c\nPull=never\n[Install]\n",
    "[Image]\nImage=quay.io/a@" + DIGEST + "\nImageTag=localhost/x\nArch=%a\nTLSVerify=no\nPodmanArgs=--creds a:b\n",
    "[Container]\nImage=x.image\nLabel=a=b \"c d=e\" 'f'\nPodmanArgs=--pull always --label=io.containers.autoupdate\n",
    '[Container]\r\nRootfs=/x\r\nExec=sh -c "a\\x20b" \\u00e9 \\101\r\n',
    '[Container]\nImage="quay.io/%p/%i:%v"\nAutoUpdate=registry\nServiceName=s\nEnvironment=A=$B %% %H\n',
)
UNIT_WORDS = (
    *("[Container]\n", "[Image]\n", "\nImage=", "Image=", "\\\n", "=\n", "PodmanArgs=", "%%", "%i", "%H", "x.image"),
    *("\\x41", "\\u2028", "\\777", "\\U0010ffff", '"', "'", "#", ";", "--storage-opt=", "\\", "[]", "]\n"),
)


class UnitFileTarget(Target):
    """unitfile.parse and everything that reads a parsed file; what it accepts reads the same written out again."""

    name = "unit-file"
    share = 36
    modules = ("things/unitfile.py",)

    def corpus(self) -> list[str]:
        return list(UNITS)

    def make(self, pick: random.Random, corpus: Sequence[str]) -> str:
        return mutate.text(pick, corpus, UNIT_WORDS)

    def take(self, value: str) -> None:
        split_words(value)
        try:
            file = parse_unit(value)
        except NotAUnitFile:
            return
        self.accepted += 1
        written = []
        for section, keys in file.sections.items():
            written.append(f"[{section}]\n")
            for key, values in keys.items():
                for one in values:
                    assert "\n" not in one
                    written.append(f"{key}={one}\n")
                file.last(section, key)
                file.flag(section, key)
                file.words(section, key)
        # In the last line of a file a backslash may leave a blank or another backslash at the end of a value.
        if not any(line.endswith("\\\n") or line != line.rstrip() + "\n" for line in written):
            assert parse_unit("".join(written)).sections == file.sections
        twice = file.with_drop_ins([file, UnitFile()])
        assert twice.size == 2 * file.size


class ReferenceTarget(Target):
    """words.reference: a normal form that stays what it is, or a sentence."""

    name = "reference"
    share = 20
    modules = ("words/reference.py",)

    def corpus(self) -> list[str]:
        return [
            *("quay.io/edge/agent:v1", f"quay.io/edge/agent@{DIGEST}", "localhost:5000/a/b-c__d.e:V_1.2", "busybox"),
            *("docker://docker.io/library/x", "index.docker.io/x", f"a/b:v@{DIGEST}", "oci:/x", "a" * 64, "--root=/"),
            f"registry.example:443/x@sha512:{'0' * 128}",
        ]

    def make(self, pick: random.Random, corpus: Sequence[str]) -> str:
        words = (
            "docker://",
            "docker.io/",
            "@sha256:",
            DIGEST,
            ":latest",
            "localhost/",
            "oci:",
            "[::1]:5000/",
            "--",
            "..",
        )
        return mutate.text(pick, corpus, words)

    def take(self, value: str) -> None:
        try:
            reference = parse_reference(value, lambda name: f"quay.io/{name}")
        except LashdError as error:
            _is_refusal(error, ErrorName.BOUND_IMAGE_INVALID)
            return
        self.accepted += 1
        text = str(reference)
        assert text.isascii()
        assert text.isprintable()
        assert text[:1].isalnum()
        assert not set(text) & set(" \"'\\$")
        assert parse_reference(text) == reference
        assert reference.pinned != bool(reference.tag)


class StagedTarget(Target):
    """ostree's note of what is staged (a{sv}), and who reads it. GLib is the judge: both take it alike, or none."""

    name = "staged-deployment"
    share = 22
    modules = ("things/gvariant.py", "things/ostree/facts.py")

    def __init__(self) -> None:
        super().__init__()
        self._type = GLib.VariantType.new("a{sv}")

    def corpus(self) -> list[bytes]:
        def deployment(serial: int) -> str:
            return f"<{{'name': <'{'ab' * 32}.{serial}'>, 'osname': <'default'>}}>"

        texts = [
            f"{{'target': {deployment(0)}, 'merge-deployment': {deployment(1)}, 'kargs': <['root=/x', 'quiet']>}}",
            f"{{'target': {deployment(0)}, 'locked': <true>, 'overlay-initrds': <['{'cd' * 32}']>}}",
            "{'backing-root-device-inode': <(uint64 2049, uint64 77)>, 'ro': <true>, 'd': <1.5>, 'y': <byte 7>}",
            "{'a': <@ay [0x01, 0xff]>, 'm': <@ms 'x'>, 'n': <@mi nothing>, 'e': <@a{sv} {}>, 'v': <<<int16 -5>>>}",
            "{'tuple': <('a', [1, 2], {'k': 'v'}, @g 'a{sv}', @o '/a/b')>, '': <''>}",
            "@a{sv} {}",
        ]
        return [
            GLib.Variant.parse(self._type, text, None, None).get_data_as_bytes().get_data() or b"" for text in texts
        ]

    def make(self, pick: random.Random, corpus: Sequence[bytes]) -> bytes:
        words = (b"target\0", b"\0as", b"\0a{sv}", b"\0v\0v", b"\0b", b"\0(tt)", b"locked\0\0\0\x01\0b", b"\0ms")
        return mutate.octets(pick, corpus, words)

    def take(self, value: bytes) -> None:
        judged = GLib.Variant.new_from_bytes(self._type, GLib.Bytes.new(value), False)
        try:
            state = parse_gvariant("a{sv}", value)
        except ValueError:
            state = None
        assert (state is not None) == judged.is_normal_form(), "GLib is of another opinion"
        facts.staged_arguments(value)
        facts.staged_initrds(value)
        facts.staged_locked(value)
        if state is None:
            return
        self.accepted += 1
        assert _plain(state) == _judged(judged)
        for key in ("target", facts.MERGES):
            try:
                stateroot, name = facts.staged_name(state[key])
            except (ValueError, KeyError, TypeError):
                continue
            assert "/" not in stateroot + name


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {repr(_plain(key)): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _judged(value: Any) -> Any:
    kind, code = value.classify(), value.get_type_string()
    if code == "ay":
        return ["bytes", base64.b64encode(value.get_data_as_bytes().get_data() or b"").decode()]
    if kind == GLib.VariantClass.VARIANT:
        return _judged(value.get_variant())
    if kind == GLib.VariantClass.MAYBE:
        return _judged(value.get_child_value(0)) if value.n_children() else None
    if kind == GLib.VariantClass.DOUBLE:
        return repr(value.get_double())
    if kind in (GLib.VariantClass.ARRAY, GLib.VariantClass.TUPLE, GLib.VariantClass.DICT_ENTRY):
        children = [_judged(value.get_child_value(number)) for number in range(value.n_children())]
        if not code.startswith("a{"):
            return children
        found: dict[str, Any] = {}
        for key, item in children:  # of equal keys the first wins, as for g_variant_lookup
            found.setdefault(repr(key), item)
        return found
    return value.unpack()


class OptionTarget(Target):
    """bus.options: plain values of known keys and types, or a sentence; also for the image that Switch names."""

    name = "options"
    share = 20

    def corpus(self) -> list[Any]:
        keys = sorted({key for table in METHODS.values() for key in table})
        texts = ["booted", "yes", DIGEST, "ab" * 32, "when-ready", "window", "bind", "quay.io/edge/os:1", "größer", ""]
        return [*keys, *texts]

    def make(self, pick: random.Random, corpus: Sequence[Any]) -> Any:
        method = pick.choice(sorted(METHODS))
        given = {}
        for _ in range(pick.choice((0, 1, 1, 2, 3))):
            known = list(METHODS[method]) or [""]
            key = pick.choice(known) if pick.random() < 0.7 else mutate.text(pick, corpus, known)
            text = pick.choice(corpus) if pick.random() < 0.5 else mutate.text(pick, corpus, known)
            signature, value = pick.choice((
                *(("s", text), ("s", text), ("s", text), ("b", pick.random() < 0.5)),
                *(("u", pick.choice((0, 1, 3_600_000, 3_600_001, 2**32 - 1))), ("i", -1), ("d", float("nan"))),
                *(("as", [text]), ("v", ("s", text)), ("a{sv}", {}), ("ay", text.encode(errors="replace"))),
            ))  # fmt: skip
            given[key] = (signature, value)
        return method, given, mutate.text(pick, corpus, ["quay.io/", "--", "docker://"])

    def take(self, value: Any) -> None:
        method, given, image = value
        try:
            options = decode(method, {key: SimpleNamespace(signature=s, value=v) for key, (s, v) in given.items()})
        except LashdError as error:
            _is_refusal(error, ErrorName.INVALID_ARGUMENT)
        else:
            self.accepted += 1
            assert options == {key: item for key, (_, item) in given.items()}
            assert all(METHODS[method][key].signature == given[key][0] for key in options)
        try:
            assert parse_reference(decode_image("Switch", image))
        except LashdError as error:
            _is_refusal(error, ErrorName.INVALID_ARGUMENT)


def _is_refusal(error: LashdError, name: ErrorName) -> None:
    assert error.name is name
    assert error.message.endswith(".")
    assert len(error.message) < 1000


class RootTarget(Target):
    """discover on a root whose unit, drop-in, links and settings are made up: nothing is raised, nothing left out."""

    name = "root"
    share = 2

    def __init__(self) -> None:
        super().__init__()
        # Thousands of small files are written.
        memory = Path("/dev/shm")
        self._work = Path(tempfile.mkdtemp(prefix="lashd-fuzz-", dir=memory if memory.is_dir() else None))
        self._number = 0
        self._mistakes: list[str] = []
        handler = logging.Handler()
        handler.emit = self._heard  # type: ignore[method-assign]
        self._log = logging.getLogger("lashd.steps.discover")
        self._log.addHandler(handler)
        self._log.setLevel(logging.DEBUG)
        self._log.propagate = False
        self._handler = handler

    def _heard(self, record: logging.LogRecord) -> None:
        self._mistakes.append(logging.Formatter().format(record))

    def close(self) -> None:
        self._log.removeHandler(self._handler)
        self._log.propagate = True
        shutil.rmtree(self._work)

    def corpus(self) -> list[str]:
        return [
            *UNITS,
            '[aliases]\nagent = "quay.io/edge/agent"\n',
            '[storage.options]\nadditionalimagestores = ["/usr/lib/bootc/storage"]\n',
            'ID=edge\nVERSION_ID=\'1\'\nIMAGE_VERSION="a\\"b"\n',
        ]

    def make(self, pick: random.Random, corpus: Sequence[str]) -> Any:
        def some() -> str:
            # Mostly right, or nothing of it is looked at beyond the first mistake.
            return pick.choice(corpus) if pick.random() < 0.6 else mutate.text(pick, corpus, UNIT_WORDS)

        names = ["a.container", "b.image", "x.image", "a-b@i.container", "c.network", "--root=.image", "é.container"]
        targets = [
            f"/{QUADLET}/a.container",
            "../../../share/containers/systemd/x.image",
            "/etc/x",
            "a.container",
            "..",
        ]
        files = {f"{QUADLET}/{name}": some() for name in pick.sample(names[:5], 4)}
        unit = pick.choice(names[:4])
        if pick.random() < 0.5:
            files[f"{QUADLET}/{pick.choice([*drop_in_directories(unit)])}/1.conf"] = some()
        files[pick.choice(("usr/etc/os-release", "usr/lib/os-release"))] = some()
        files[pick.choice(("usr/share/containers/storage.conf", "usr/etc/containers/registries.conf.d/1.conf"))] = (
            some()
        )
        links = {}
        for name in pick.sample(names, 3):
            if pick.random() < 0.2:
                name = mutate.text(pick, names, ["a.container"])
            links[name] = f"/{QUADLET}/{name}"
            if pick.random() < 0.4:
                links[name] = mutate.text(pick, [*targets, links[name]], ["../", "/etc/"])
        return files, links

    def take(self, value: Any) -> None:
        files, links = value
        self._number += 1
        root = self._work / str(self._number)
        bound = root / DIRECTORY
        bound.mkdir(parents=True)
        made = set()
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content, errors="surrogatepass")
        for name, target in links.items():
            if "/" in name:
                continue
            try:
                (bound / name).symlink_to(target)
            except (OSError, ValueError):
                continue  # no such name can be
            made.add(name)
        try:
            found = discover(root)
        finally:
            shutil.rmtree(root)
        if self._mistakes:
            raise AssertionError(self._mistakes.pop())
        told = {image.unit for image in found.images}
        self.accepted += bool(told)
        assert len(told) + len(found.bad) >= len(made), "an entry was left out"
        for image in found.images:
            assert is_unit_name(image.unit)
            assert image.unit[image.unit.rindex(".") :] in SECTIONS
            assert str(image.reference)[:1].isalnum()
        for entry in found.bad:
            assert entry.problem.isprintable()
            assert entry.problem.endswith(".")


TARGETS: tuple[type[Target], ...] = (UnitFileTarget, ReferenceTarget, StagedTarget, OptionTarget, RootTarget)
