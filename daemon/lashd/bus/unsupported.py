# SPDX-License-Identifier: Apache-2.0
"""Why lashd does not run on this host, kept where lashctl finds it: the bus tells only that it could not be started."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lashd.words import files

RUN = Path("/run/lashd")
_NAME = "unsupported"
_LIMIT = 4096  # bytes


def leave_word(run: Path, sentence: str) -> None:
    """Let `sentence` be the answer until lashd is started again; an empty one takes it back. Never raises."""
    with contextlib.suppress(OSError):
        if sentence:
            run.mkdir(parents=True, exist_ok=True)
            files.write_durably(run / _NAME, sentence.encode())
        else:
            (run / _NAME).unlink(missing_ok=True)


def word_left(run: Path = RUN) -> str:
    """What the lashd that was started last has said, empty when it runs on this host. Never raises."""
    try:
        return files.read_small(run / _NAME, _LIMIT).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""
