# SPDX-License-Identifier: Apache-2.0
"""The grammar of unit files, as Quadlet reads them: what podman makes of a file is what counts, oddities included.

Only text is handled here. The rules that surprise: a line that ends in a backslash is joined to the next one without
a blank; comments stand on lines of their own, also within such a joined line; a section or key may come again; only
double quotes are taken off a single value, and only at its ends.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# What Go's unicode.IsSpace takes for a blank. Python's own idea of it is wider (U+001C to U+001F).
_BLANKS = " \t\n\v\f\r\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_ASCII_BLANKS = " \t\n\v\f\r"
_SEPARATORS = " \t\n\r"
_SIMPLE_ESCAPES = dict(zip("abfnrtvs\\\"'", "\a\b\f\n\r\t\v \\\"'", strict=True))
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_TRUE = frozenset(["1", "yes", "true", "on"])

# The values of each key, in the order they were given.
Assignments = Mapping[str, tuple[str, ...]]


class NotAUnitFile(Exception):
    """The text breaks the grammar; the message completes a sentence that begins with the file's name."""


@dataclass(frozen=True, slots=True)
class UnitFile:
    """Assignments by section; values as written, with joined lines joined. `size`: characters it was read from."""

    sections: Mapping[str, Assignments] = field(default_factory=dict)
    size: int = 0

    def last(self, section: str, key: str) -> str | None:
        """The last value of `key` as a single value: without blanks after it and without double quotes around it."""
        values = self.sections.get(section, {}).get(key)
        return values[-1].rstrip(_BLANKS).strip('"') if values else None

    def flag(self, section: str, key: str) -> bool | None:
        """The last value of `key` as yes or no; whatever is not a known word for yes means no."""
        value = self.last(section, key)
        return None if value is None else value.lower() in _TRUE

    def every(self, section: str, key: str) -> list[str]:
        """All values of `key`; an empty one takes back those before it."""
        values: list[str] = []
        for value in self.sections.get(section, {}).get(key, ()):
            if value:
                values.append(value)
            else:
                values.clear()
        return values

    def words(self, section: str, key: str) -> list[str]:
        """All values of `key`, split into words as a command line is; one that cannot be split counts for nothing."""
        return [word for value in self.every(section, key) for word in split_words(value) or ()]

    def with_drop_ins(self, others: Sequence[UnitFile]) -> UnitFile:
        """This file with the assignments of `others` made after its own, in their order."""
        if not others:
            return self
        # Lists first: thousands of drop-ins for one key must not copy its values as often.
        added: dict[str, dict[str, list[str]]] = {}
        for other in others:
            for section, assignments in other.sections.items():
                mine = added.setdefault(section, {})
                for key, values in assignments.items():
                    mine.setdefault(key, []).extend(values)
        merged = dict(self.sections)
        for section, lists in added.items():
            own = merged.get(section, {})
            merged[section] = {**own, **{key: own.get(key, ()) + tuple(values) for key, values in lists.items()}}
        return UnitFile(merged, self.size + sum(other.size for other in others))


def parse(text: str) -> UnitFile:
    """The unit file that `text` is. Raises NotAUnitFile where Quadlet refuses the whole file."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] | None = None
    for number, line in _joined_lines(text):
        name = _section_name(line)
        if name is not None:
            if not name or any(c in "[]" or unicodedata.category(c) == "Cc" for c in name):
                raise NotAUnitFile(f"has a section with a name that is not valid in line {number}")
            current = sections.setdefault(name, {})
            continue
        key, equals, value = line.partition("=")
        if not equals or not key:
            raise NotAUnitFile(f"has a line that is no section, assignment or comment: line {number}")
        if current is None:
            raise NotAUnitFile(f"has an assignment before its first section, in line {number}")
        key = key.rstrip(_ASCII_BLANKS)
        if not key:
            raise NotAUnitFile(f"has an assignment without a key in line {number}")
        current.setdefault(key, []).append(value.lstrip(_ASCII_BLANKS))
    done = {name: {key: tuple(values) for key, values in keys.items()} for name, keys in sections.items()}
    return UnitFile(done, len(text))


def _joined_lines(text: str) -> list[tuple[int, str]]:
    """The lines that say something, each with the number of the line it ends in."""
    lines = text.removesuffix("\n").split("\n")
    joined: list[tuple[int, str]] = []
    parts: list[str] = []
    for number, raw in enumerate(lines, 1):
        line = raw.strip(_BLANKS)
        if not line or line[0] in "#;":
            continue
        if line.endswith("\\"):
            line = line[:-1]
            if number < len(lines):
                parts.append(line)
                continue
        line = "".join([*parts, line])
        parts.clear()
        # Nothing but a backslash: Quadlet takes what is left for an empty line.
        if line and line[0] not in "#;":
            joined.append((number, line))
    # What was to be continued by nothing but comments is lost: that is what Quadlet does.
    return joined


def _section_name(line: str) -> str | None:
    if not line.startswith("["):
        return None
    name, bracket, rest = line[1:].partition("]")
    return name if bracket and not rest.strip(" \t") else None


def split_words(text: str) -> list[str] | None:
    """Splits a command line: blanks separate, quotes of both kinds join, backslashes escape as in C.

    An open quote ends with the text. None when there is an escape that does not exist. An empty word ends the line,
    which is Quadlet's own oddity.
    """
    words: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _SEPARATORS:
            at += 1
        result = _next_word(text, at)
        if result is None:
            return None
        word, at = result
        if not word:
            return words
        words.append(word)


def _next_word(text: str, at: int) -> tuple[str, int] | None:
    word: list[str] = []
    quote = ""
    while at < len(text):
        character = text[at]
        at += 1
        if character == "\\":
            if at == len(text):
                break
            unescaped = _unescape(text, at)
            if unescaped is None:
                return None
            meant, at = unescaped
            word.append(meant)
        elif quote:
            if character == quote:
                quote = ""
            else:
                word.append(character)
        elif character in "\"'":
            quote = character
        elif character in _SEPARATORS:
            break
        else:
            word.append(character)
    return "".join(word), at


def _unescape(text: str, at: int) -> tuple[str, int] | None:
    """The character that the escape at `at` (behind the backslash) means, and where the text goes on."""
    kind = text[at]
    if kind in _SIMPLE_ESCAPES:
        return _SIMPLE_ESCAPES[kind], at + 1
    if kind in _HEX_ESCAPES:
        start, end, base = at + 1, at + 1 + _HEX_ESCAPES[kind], 16
        allowed = "0123456789abcdefABCDEF"
    elif kind in "01234567":
        start, end, base, allowed = at, at + 3, 8, "01234567"
    else:
        return None
    digits = text[start:end]
    if len(digits) != end - start or any(digit not in allowed for digit in digits):
        return None
    code = int(digits, base)
    if code == 0 or code > (0xFF if base == 8 else 0x10FFFF):
        return None
    return ("\ufffd" if 0xD800 <= code <= 0xDFFF else chr(code)), end
