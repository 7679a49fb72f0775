# SPDX-License-Identifier: Apache-2.0
"""The part that needs libostree's bindings, as a program: `python3 -m lashd.things.ostree.worker COMMAND ARGUMENTS`.

ARGUMENTS is one JSON object. Standard output is JSON lines: `{"bytes": n}` as a layer's blob is read, and at the end
`{"result": …}` or `{"error": name, "message": …, "retryable": …}`. Needs the standard library, python3-gi,
libostree's introspection data and `lashd.words.errors`; nothing else of lashd's requirements.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lashd.words.errors import ErrorName, LashdError

_PROGRESS_SECONDS = 0.2


def main(argv: list[str]) -> int:
    _keep_to_ourselves()
    try:
        command, arguments = COMMANDS[argv[0]], json.loads(argv[1])
        _say({"result": command(**arguments)})
    except Exception as error:
        failure = error if isinstance(error, LashdError) else _explain(error)
        _say({"error": failure.name, "message": failure.message, "retryable": failure.retryable})
        return 1
    return 0


def _keep_to_ourselves() -> None:
    """libostree prints on standard output what it frees; that goes where complaints go."""
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _explain(error: Exception) -> LashdError:
    """libostree's failures have only texts; what a person can act on gets a name of its own."""
    text = str(getattr(error, "message", "") or error)
    if isinstance(error, ImportError):
        return LashdError(
            ErrorName.UNSUPPORTED_HOST,
            f"libostree's Python bindings cannot be loaded ({text}); install python3-gi and gir1.2-ostree-1.0.",
        )
    if "No space left" in text or "min-free-space" in text or getattr(error, "errno", 0) == 28:
        return LashdError(ErrorName.NO_SPACE, f"There is not enough free space for the host image ({text}).")
    return LashdError(ErrorName.HOST_COMMAND_FAILED, f"ostree could not do it: {text}.")


class _Progress:
    def __init__(self, total: int) -> None:
        self._next = 0.0
        self._total = total

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        # The last byte is always told: from then on it is not the transfer that takes time.
        if now >= self._next or count == self._total:
            self._next = now + _PROGRESS_SECONDS
            _say({"bytes": count})


def import_layer(sysroot: str, digest: str, size: int, media_type: str, limit: int) -> dict[str, Any]:
    """Import the blob on standard input."""
    from lashd.things.ostree.repository import Blob, import_layer, open_repository

    blob = Blob(0, digest, size, media_type, limit, _Progress(size))
    commit, facts = import_layer(open_repository(Path(sysroot)), blob)
    return {"commit": commit, "dropped": list(facts.dropped)}


def merge(sysroot: str) -> dict[str, Any]:
    """Merge the layers of the image that standard input describes; it can be longer than an argument may be."""
    from lashd.things.ostree.repository import Image, merge_image, open_repository

    commit, dropped = merge_image(open_repository(Path(sysroot)), Image(**json.load(sys.stdin)))
    return {"commit": commit, "dropped": dropped}


def _sysroot(sysroot: str, booted: bool, timeout: float) -> Any:
    from lashd.things.ostree.sysroot import Sysroot

    return Sysroot(Path(sysroot), booted=booted, timeout=timeout)


def _durable(sysroot: str) -> None:
    from lashd.words.files import sync_filesystem

    sync_filesystem(Path(sysroot))


def deploy(commit: str, origin: str, stateroot: str, **where: Any) -> str:
    key: str = _sysroot(**where).deploy(commit, origin, stateroot)
    _durable(where["sysroot"])
    return key


def restage(commit: str, origin: str, stateroot: str, kargs: list[str] | None, **where: Any) -> str:
    key: str = _sysroot(**where).restage(commit, origin, stateroot, kargs)
    _durable(where["sysroot"])
    return key


def set_first(key: str, drop_staged: bool, stateroot: str = "", shutting_down: bool = False, **where: Any) -> bool:
    changed: bool = _sysroot(**where).set_first(key, stateroot, drop_staged=drop_staged, shutting_down=shutting_down)
    _durable(where["sysroot"])
    return changed


def remove(key: str, stateroot: str = "", **where: Any) -> None:
    _sysroot(**where).remove(key, stateroot)
    _durable(where["sysroot"])


def release(key: str, **where: Any) -> None:
    _sysroot(**where).release(key)


def prune(keep: list[str], **where: Any) -> dict[str, int]:
    freed: dict[str, int] = _sysroot(**where).prune(keep)
    return freed


COMMANDS: dict[str, Callable[..., Any]] = {
    "import-layer": import_layer,
    "merge": merge,
    "deploy": deploy,
    "restage": restage,
    "set-first": set_first,
    "remove": remove,
    "release": release,
    "prune": prune,
}


if __name__ == "__main__":
    # Nothing may be written beside the program: /usr is read-only, and a cache there would be found by nobody.
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
