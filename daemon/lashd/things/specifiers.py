# SPDX-License-Identifier: Apache-2.0
"""systemd's specifiers (`%a`, `%W`, …), as far as they can be known by looking at a root that is not running."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field

# Left: what the kernel says. Right: systemd's own names (ConditionArchitecture=), not those that images use.
_ARCHITECTURES = {
    "x86_64": "x86-64",
    "i386": "x86",
    "i486": "x86",
    "i586": "x86",
    "i686": "x86",
    "aarch64": "arm64",
    "aarch64_be": "arm64-be",
    "armv6l": "arm",
    "armv7l": "arm",
    "armv8l": "arm",
    "ppc": "ppc",
    "ppc64": "ppc64",
    "ppc64le": "ppc64-le",
    "riscv32": "riscv32",
    "riscv64": "riscv64",
    "loongarch64": "loongarch64",
    "mips": "mips",
    "mips64": "mips64",
    "s390": "s390",
    "s390x": "s390x",
}

_OS_RELEASE = {
    "A": "IMAGE_VERSION",
    "B": "BUILD_ID",
    "M": "IMAGE_ID",
    "o": "ID",
    "w": "VERSION_ID",
    "W": "VARIANT_ID",
}

# The system manager's own: the same on every host.
_FIXED = {
    "C": "/var/cache",
    "D": "/usr/share",
    "E": "/etc",
    "G": "0",
    "L": "/var/log",
    "S": "/var/lib",
    "T": "/tmp",
    "U": "0",
    "V": "/var/tmp",
    "g": "root",
    "h": "/root",
    "t": "/run",
    "u": "root",
}

_LETTERS = frozenset(string.ascii_letters + string.digits)

# As in a shell: single quotes, double quotes in which a backslash escapes some characters, and a backslash outside.
_QUOTING = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)""")
_ESCAPE = re.compile(r'\\(["$\\`])')

_NOT_YET_KNOWN = {
    "H": "the host's name",
    "b": "the boot",
    "i": "the instance",
    "I": "the instance",
    "l": "the host's name",
    "m": "the machine's id",
    "n": "the instance",
    "N": "the instance",
    "q": "the host's name",
    "v": "the running kernel",
}


# Characters that specifiers may add to a value: what os-release says can be long, and be asked for again and again.
_ADDED_LIMIT = 64 * 1024


class Unresolvable(Exception):
    """A specifier without a known meaning; the message completes a sentence that begins with the value's name."""


@dataclass(frozen=True, slots=True)
class Meanings:
    """What specifiers mean in one service: its name without `.service`, the root's os-release, the machine's name."""

    service: str
    os_release: Mapping[str, str] = field(default_factory=dict)
    machine: str = field(default_factory=lambda: os.uname().machine)

    def of(self, letter: str) -> str | None:
        """The meaning of `%<letter>`; None when it cannot be known before the service runs on its host."""
        if letter == "a":
            return _ARCHITECTURES.get(self.machine)
        if letter in _OS_RELEASE:
            # systemd takes what os-release does not say for empty.
            return self.os_release.get(_OS_RELEASE[letter], "")
        if letter in _FIXED:
            return _FIXED[letter]
        prefix, at, instance = self.service.partition("@")
        if letter in "pP":
            return prefix if letter == "p" else _unescaped(prefix)
        if letter in "jJ":
            last = prefix.rpartition("-")[2]
            return last if letter == "j" else _unescaped(last)
        if at and not instance:
            return None  # a template: only whoever starts it knows
        return {"n": f"{self.service}.service", "N": self.service, "i": instance, "I": _unescaped(instance)}.get(letter)


def expand(text: str, meanings: Meanings) -> str:
    """`text` with its specifiers replaced; `%%` is a percent sign. Raises Unresolvable."""

    added = 0

    def meaning(found: re.Match[str]) -> str:
        nonlocal added
        letter = found[1]
        if letter == "%":
            return "%"
        if letter not in _LETTERS:
            return found[0]  # systemd leaves it as it is
        known = meanings.of(letter)
        if known is None:
            what = _NOT_YET_KNOWN.get(letter)
            why = f"only known when it runs ({what})" if what else "not one that can be resolved beforehand"
            raise Unresolvable(f"uses the specifier %{letter}, which is {why}; write the value out")
        added += len(known)
        if added > _ADDED_LIMIT:
            raise Unresolvable(f"becomes too long: its specifiers mean more than {_ADDED_LIMIT} characters")
        return known

    return re.sub("%(.)", meaning, text, flags=re.DOTALL)


def parse_os_release(text: str) -> dict[str, str]:
    """The assignments of an os-release file; lines that are none are left out."""
    values = {}
    for line in text.split("\n"):
        key, equals, value = line.strip().partition("=")
        if not equals or not re.fullmatch(r"[A-Z0-9_]+", key):
            continue
        values[key] = _QUOTING.sub(
            lambda found: found[1] or _ESCAPE.sub(r"\1", found[2] or "") or found[3] or "", value
        )
    return values


def _unescaped(name: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), name.replace("-", "/"))
