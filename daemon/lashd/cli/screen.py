# SPDX-License-Identifier: Apache-2.0
"""Where output goes and what it can show: a terminal with colours, a plain one, a file."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from lashd.cli.failures import Failure

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# A file has no width: wide enough that no table is cut.
_WIDE = 400


def prepare() -> None:
    """Make sure that there are streams, and that a character that the locale lacks does not end the program."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(ValueError, OSError):
                stream.reconfigure(errors="replace")


def lively(stream: TextIO) -> bool:
    """True for a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def coloured(stream: TextIO) -> bool:
    return lively(stream) and not os.environ.get("NO_COLOR")


def plain(stream: TextIO) -> bool:
    """True when only ASCII can be shown."""
    return (getattr(stream, "encoding", "") or "ascii").lower().replace("-", "") not in ("utf8", "utf16", "utf32")


def console(stream: TextIO | None = None) -> Console:
    """A rich console for `stream` (standard output). Nothing is ever taken for markup, an emoji or a link."""
    from rich.console import Console

    stream = stream or sys.stdout
    terminal = lively(stream)
    return Console(
        file=stream,
        force_terminal=terminal,
        no_color=not coloured(stream),
        color_system="auto" if coloured(stream) else None,
        width=None if terminal else _file_width(),
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=False,
    )


def _file_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isascii() and columns.isdigit() and 20 <= int(columns) <= 10000 else _WIDE


def show(renderable: RenderableType) -> None:
    """Print for a person; lines never end in blanks when they go to a file."""
    target = console()
    if target.is_terminal:
        target.print(renderable)
        return
    with target.capture() as captured:
        target.print(renderable)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def complain(failure: Failure) -> None:
    """The error's sentence, and what to do, to standard error."""
    bold, red, cyan, off = ("\x1b[1m", "\x1b[31m", "\x1b[36m", "\x1b[0m") if coloured(sys.stderr) else ("",) * 4
    from lashd.cli.render.words import clean

    start = "" if failure.name == "Interrupted" else f"{bold}{red}lashctl:{off} "
    print(f"{start}{clean(failure.message)}", file=sys.stderr)
    if failure.hint:
        print(f"{bold}{cyan}hint:{off} {clean(failure.hint)}", file=sys.stderr)
