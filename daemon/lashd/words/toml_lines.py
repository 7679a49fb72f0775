# SPDX-License-Identifier: Apache-2.0
"""On which line of a TOML file something is said; the parser of the standard library does not tell."""

from __future__ import annotations

from collections.abc import Collection

# A value of more lines than this is none of ours.
_LONGEST = 200


def line_of(text: str, section: str, key: str = "") -> int:
    """The number of the line where `key` of the table `section` is given its value; without a key, where the table is
    first spoken of. 0 when that is not found. `text` as a whole must be valid TOML."""
    import tomllib  # only for who has made a mistake

    table: tuple[str, ...] = ()
    statement: list[str] = []
    begun = 0
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        begun = begun if statement else number
        statement.append(line)
        try:
            said = tomllib.loads("\n".join(statement))
        except ValueError:
            if len(statement) == _LONGEST:
                return 0
            continue  # it goes on in the next line
        header = statement[0].lstrip().startswith("[")
        statement = []
        path = _first_path(said)
        if header:
            table = path
        elif not path:
            continue  # empty, or a comment
        else:
            path = (*table, *path)
        if path[:1] == (section,) and (not key or path[1:2] == (key,) or key in _inside(said, path)):
            return begun
    return 0


def _first_path(said: object) -> tuple[str, ...]:
    """The way down to the first key that does not lead to just one other."""
    path: list[str] = []
    while True:
        if isinstance(said, list) and len(said) == 1:
            (said,) = said
        if not isinstance(said, dict) or len(said) != 1:
            return tuple(path)
        ((name, said),) = said.items()
        path.append(name)


def _inside(said: dict[str, object], path: tuple[str, ...]) -> Collection[object]:
    """The keys of an inline table that is the value of `path`, which is a section's name alone."""
    found = said.get(path[0]) if len(path) == 1 else None
    return found if isinstance(found, dict) else ()
