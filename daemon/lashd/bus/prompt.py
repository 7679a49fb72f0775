# SPDX-License-Identifier: Apache-2.0
"""What a person reads who is asked for a password: the details that polkit puts into an action's message.

Most of them are chosen by whoever asks, and shown by agents that we do not know: some render markup, and a terminal
heeds control codes. So only what cannot be mistaken for anything else gets through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Longest detail (characters). A digest has 71; of what is longer the beginning and the end are shown, because the
# end of an image's name is its tag.
LONGEST = 120
_ODD = re.compile(r"[^A-Za-z0-9 ._:/@+,=-]")
# What is told by other means, or to nobody.
_NOT_TOLD = frozenset({"image", "expected-digest", "initiator", "reason", "idempotency-key"})
_NONE = "-"


def details(verb: str, options: Mapping[str, Any], uid: int) -> dict[str, str]:
    """`verb`, `image`, `digest` and `initiator` for the messages of dbus/io.github.lashd1.policy.

    All of them are always there, since a message shows a missing one as `$(digest)`.
    """
    name = shown(options.get("initiator", ""))
    more = [f"{key} {_word(value)}" for key, value in options.items() if key not in _NOT_TOLD and value is not False]
    return {
        "verb": shown(", ".join([verb, *more])),
        "image": shown(options.get("image", "")) or _NONE,
        "digest": shown(options.get("expected-digest", "")) or _NONE,
        # First what we know, then what it says of itself.
        "initiator": f"user {uid} as {name}" if name else f"user {uid}",
    }


def shown(text: str) -> str:
    """`text` in plain ASCII letters, digits and little else, on one line, of at most LONGEST characters.

    Other scripts go too: some of them turn the order of what stands next to them.
    """
    plain = _ODD.sub("?", " ".join(text.split()))
    if len(plain) <= LONGEST:
        return plain
    half = (LONGEST - 3) // 2
    return f"{plain[:half]}...{plain[-half:]}"


def _word(value: Any) -> str:
    return "yes" if value is True else str(value)
