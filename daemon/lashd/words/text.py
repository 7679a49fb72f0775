# SPDX-License-Identifier: Apache-2.0
"""Foreign text, made fit to stand in a sentence of ours."""

from __future__ import annotations


def one_line(text: str, limit: int = 200) -> str:
    """`text` as one line of at most `limit` printable characters, without the full stop at its end."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * limit])
    return " ".join(shown.split())[:limit].rstrip(" .")
