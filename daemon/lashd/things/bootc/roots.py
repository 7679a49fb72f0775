# SPDX-License-Identifier: Apache-2.0
"""What is to be read of a deployment of bootc's composefs backend, whose root is no directory but an EROFS image.

bootc mounts it (`bootc internals cfs mount`) in a mount namespace that nobody else sees, and what says which images it
binds is copied to lashd's run directory, once: an id is the digest of the whole content, so a copy that is there is
right for as long as the host is up. The gate at shutdown reads just that; it has no time to mount anything.

A copy is laid out like a deployment of ostree's, in `roots/deploy/<id>.<kind>`, with the /var that all share beside it:

    staged      its /etc is in usr/etc, as it came in the image; it gets the local changes of the running one
    booted      only for that: usr/etc as it came in the image, and etc, a link to the running /etc
    installed   its /etc is the one that it has been booted with
"""

from __future__ import annotations

import contextlib
import shutil
from enum import StrEnum
from pathlib import Path

from lashd.words.config import Settings


class Kind(StrEnum):
    STAGED = "staged"
    BOOTED = "booted"
    INSTALLED = "installed"


class Roots:
    """Where the copies are. lashd.things.bootc.copyroot makes them; who only reads has no need of what that takes."""

    def __init__(self, settings: Settings) -> None:
        self.top = settings.paths.run / "roots"
        self.directory = self.top / "deploy"

    def place(self, id: str, kind: Kind) -> Path:
        """Where the copy of that kind is, or will be."""
        return self.directory / f"{id}.{kind.value}"

    def has(self, id: str, kind: Kind) -> bool:
        return self.place(id, kind).is_dir()

    def keep_only(self, wanted: frozenset[tuple[str, Kind]]) -> None:
        """Remove all other copies; of what has booted since its /etc was copied, say, that is another by now."""
        names = {self.place(id, kind).name for id, kind in wanted}
        with contextlib.suppress(FileNotFoundError):
            for path in self.directory.iterdir():
                if path.name not in names:
                    shutil.rmtree(path, ignore_errors=True)
