# SPDX-License-Identifier: Apache-2.0
"""TOML that somebody else wrote. Where the standard library gives up, or would take for ever, it is a ValueError."""

from __future__ import annotations

from typing import Any

# Characters; the largest such file that distributions ship (aliases of short names) has about ten thousand. The parser
# takes about a microsecond for each, and more than that in proportion for a key of thousands of parts.
TEXT_LIMIT = 256 * 1024
LINE_LIMIT = 2 * 1024


def parse_toml(text: str) -> dict[str, Any]:
    """The table that `text` is. Raises ValueError, whose message completes a sentence that begins with the file."""
    import tomllib  # not needed on most hosts

    if len(text) > TEXT_LIMIT:
        raise ValueError(f"has more than {TEXT_LIMIT} characters")
    if any(len(line) > LINE_LIMIT for line in text.split("\n")):
        raise ValueError(f"has a line of more than {LINE_LIMIT} characters")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:  # not only TOMLDecodeError: a number of thousands of digits is none
        raise ValueError(f"is not valid TOML: {error}") from error
