# SPDX-License-Identifier: Apache-2.0
"""Values from JSON or TOML, checked by msgspec against the type that they are to be.

For our own files, and the few foreign ones that are read at boot and at shutdown: there pydantic alone takes longer to
load than all the rest together. Keys that a type does not know are ignored.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")
# What msgspec puts behind its messages: the place, such as `$.images[0].id`; `[...]` is some key of a table.
_PLACE = re.compile(r"(?P<why>.*?)(?: - at `(?:key in )?\$(?P<place>[^`]*)`)?", re.DOTALL)
_PART = re.compile(r"\[([^\]]*)\]|\.([^.\[]+)")


class Misfit(ValueError):
    """The value at `place` (keys and numbers, outermost first) is not what it must be, and `why`."""

    def __init__(self, why: str, place: tuple[str, ...] = ()) -> None:
        super().__init__(f"{'.'.join(place)}: {why}" if place else why)
        self.why = why
        self.place = place


def from_json(kind: type[_T], content: bytes) -> _T:
    """The value of type `kind` in a file's content. Raises Misfit when it is none."""
    try:
        decoder: msgspec.json.Decoder[_T] = _decoder(kind)  # type: ignore[arg-type]
        return decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _misfit(error) from None
    except RecursionError:
        raise Misfit("it is nested too deeply") from None


def shaped(kind: type[_T], value: object) -> _T:
    """`value`, made of what a JSON or TOML parser makes, as `kind`. Raises Misfit.

    Nothing is converted but an integer to a float, a list to a tuple and a text to a Path or an enumeration.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise _misfit(error) from None


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_path)


def _path(kind: type, value: Any) -> Any:
    if kind is not Path or not isinstance(value, (str, Path)) or "\0" in str(value):
        raise ValueError(f"Expected a path, got `{type(value).__name__}`")
    return Path(value)


def _misfit(error: Exception) -> Misfit:
    found = _PLACE.fullmatch(str(error))
    assert found is not None
    place = tuple(first or second for first, second in _PART.findall(found["place"] or ""))
    return Misfit(found["why"], place)
