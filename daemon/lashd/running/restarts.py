# SPDX-License-Identifier: Apache-2.0
"""Services that were started before their image's name got the meaning that it has now, and so still run another one.

They are not restarted by lashd: when that may be is for others to say. systemd's own note of each running unit's
invocation tells, without a process, whether it was restarted since.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lashd.things.store import Store
from lashd.words import files
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import BoundImage

NOTE = "restarts.json"
_LIMIT = 1024 * 1024  # bytes

# Service → (reference, id of the image that it means, stamps of its layers); None: it means nothing.
Meanings = Mapping[str, tuple[str, object]]


def meanings(images: Iterable[BoundImage], store: Store) -> Meanings:
    """What the service of each of `images` would be started from now."""
    try:
        index = store.index()
    except LashdError:
        return {}
    found: dict[str, tuple[str, object]] = {}
    for image in images:
        if image.service:
            stored = index.image_named(image.reference)
            chain = index.chain(stored) if stored is not None else None
            stamps = tuple(layer.created for layer in chain or ())
            found[image.service] = str(image.reference), (stored.id, stamps) if stored is not None else None
    return found


def note(settings: Settings, before: Meanings, after: Meanings) -> tuple[str, ...]:
    """Remember which running services were started from something else than they would be now: a sentence for each.

    Never raises: it is a hint.
    """
    found = _read(settings)
    fresh = {}
    for service, (reference, meaning) in after.items():
        invocation = _invocation(settings, service)
        if invocation and service in before and before[service][1] != meaning:
            fresh[service] = [invocation, _sentence(service, reference)]
    if fresh:
        with contextlib.suppress(OSError):
            settings.paths.run.mkdir(parents=True, exist_ok=True)
            content = json.dumps(found | fresh, indent=1).encode() + b"\n"
            files.write_durably(settings.paths.run / NOTE, content)
    return tuple(sentence for _, sentence in fresh.values())


def pending(settings: Settings) -> list[str]:
    """A sentence for each service that still runs what its name meant before."""
    return [
        sentence
        for service, (invocation, sentence) in _read(settings).items()
        if _invocation(settings, service) == invocation
    ]


def _sentence(service: str, reference: str) -> str:
    return (
        f"{service} was started before {reference} got the meaning that it has now in the bound image store, so it "
        f"runs another image, or layers that were replaced; 'systemctl restart {service}' starts what this deployment "
        "is bound to."
    )


def _read(settings: Settings) -> dict[str, tuple[str, str]]:
    try:
        told = json.loads(files.read_small(settings.paths.run / NOTE, _LIMIT))
        return {str(service): (str(entry[0]), str(entry[1])) for service, entry in told.items()}
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return {}


def _invocation(settings: Settings, service: str) -> str:
    """The id of the invocation in which `service` runs now; empty when it does not run."""
    # systemd keeps such a link for each unit that is active.
    link = settings.paths.root / "run/systemd/units" / f"invocation:{Path(service).name}"
    try:
        return os.fspath(link.readlink())
    except OSError:
        return ""
