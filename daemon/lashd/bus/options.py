# SPDX-License-Identifier: Apache-2.0
"""The `a{sv}` options of each method: which keys there are, their types and their limits.

A key that a method would not honour is not in its table: whoever sends it learns so, instead of trusting it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lashd.words.errors import ErrorName, LashdError
from lashd.words.reference import is_digest, parse_reference

Options = dict[str, Any]

# Longest string that an option may hold (characters); all of them are names, digests or one sentence.
LONGEST = 512
# Most rows of the history that one answer may have.
MOST_ROWS = 500
# Longest time that one Wait may take (milliseconds).
LONGEST_WAIT = 3_600_000
DEFAULT_WAIT = 20_000


@dataclass(frozen=True, slots=True)
class Option:
    """`check` returns what is wrong with a value, as the end of a sentence, or nothing."""

    signature: str
    check: Callable[[Any], str] = lambda value: ""


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        return "" if value in words else f"must be one of {', '.join(words)}"

    return check


def _digest(value: Any) -> str:
    return "" if is_digest(value) else "must be a digest (sha256: and 64 hexadecimal digits)"


def _digest_or_checksum(value: Any) -> str:
    good = is_digest(value) or re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{128}", value)
    return "" if good else "must be a digest (sha256: and 64 hexadecimal digits) or a checksum (64 or 128)"


def _not_empty(value: Any) -> str:
    return "" if value else "must not be empty"


def _short_wait(value: Any) -> str:
    return "" if value <= LONGEST_WAIT else f"must not be more than {LONGEST_WAIT}"


def _rows(value: Any) -> str:
    return "" if 1 <= value <= MOST_ROWS else f"must be from 1 to {MOST_ROWS}"


def _number(value: Any) -> str:
    return "" if value else "must be the number of a job"


WHO = {"initiator": Option("s"), "reason": Option("s")}
CHANGE = WHO | {"idempotency-key": Option("s", _not_empty)}

_STAGED = {"expected-digest": Option("s", _digest_or_checksum)}
WHEN_REBOOT = ("no", "when-ready", "window")

METHODS: dict[str, dict[str, Option]] = {
    "Upgrade": CHANGE | {"expected-digest": Option("s", _digest), "reboot": Option("s", _one_of(*WHEN_REBOOT))},
    "Switch": CHANGE | {"expected-digest": Option("s", _digest), "reboot": Option("s", _one_of(*WHEN_REBOOT))},
    "Rollback": CHANGE | {"drop-staged": Option("b")},
    "Bind": CHANGE | {"deployment": Option("s", _not_empty)},
    "Check": CHANGE,
    "Plan": CHANGE | {"deployment": Option("s", _not_empty), "kind": Option("s", _one_of("bind", "upgrade"))},
    "Verify": WHO | {"deployment": Option("s", _not_empty), "deep": Option("b")},
    "Collect": CHANGE | {"dry-run": Option("b")},
    "Discard": CHANGE | _STAGED,
    "Hold": WHO | _STAGED,
    "Release": WHO | _STAGED,
    "Reboot": CHANGE | {"when": Option("s", _one_of("now", "ready", "window", "never"))},
    "ListBound": {"deployment": Option("s", _not_empty)},
    "ListDeployments": {},
    "ListJobs": {},
    "GetHistory": {
        "kind": Option("s", _one_of("jobs", "sets")),
        "job": Option("t", _number),
        "limit": Option("u", _rows),
        "since": Option("t"),
    },
    "Cancel": WHO,
    "Wait": {"timeout-ms": Option("u", _short_wait)},
}


def decode(method: str, given: Mapping[str, Any]) -> Options:
    """Plain values of the options `given` to `method`. Raises InvalidArgument that names the key."""
    table = METHODS[method]
    decoded: Options = {}
    for key, variant in given.items():
        option = table.get(key)
        if option is None:
            known = ", ".join(f"'{name}'" for name in table) or "none"
            raise _invalid(f"{method} has no option {_shown(key)}; it knows {known}")
        if variant.signature != option.signature:
            raise _invalid(
                f"The option '{key}' of {method} must be of type '{option.signature}', not {_shown(variant.signature)}"
            )
        value = variant.value
        if isinstance(value, str):
            _check_text(method, key, value)
        if problem := option.check(value):
            raise _invalid(f"The option '{key}' of {method} {problem}")
        decoded[key] = value
    return decoded


def decode_image(method: str, text: str) -> str:
    """The host image that `text` names, normalised. Raises InvalidArgument."""
    _check_text(method, "image", text)
    try:
        # Without aliases for short names: those are for containers, and what they stand for may change.
        return str(parse_reference(text))
    except LashdError as error:
        raise _invalid(error.message.rstrip(".")) from error


def _check_text(method: str, key: str, value: str) -> None:
    if len(value) > LONGEST:
        raise _invalid(f"The option '{key}' of {method} has {len(value)} characters; {LONGEST} are allowed")
    # It ends up in the journal and on terminals.
    if not value.isprintable():
        raise _invalid(f"The option '{key}' of {method} must not have control characters or line breaks")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:64] + "…")


def _invalid(what: str) -> LashdError:
    return LashdError(ErrorName.INVALID_ARGUMENT, f"{what}. Nothing was changed.")
