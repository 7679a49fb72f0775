# SPDX-License-Identifier: Apache-2.0
"""Have floating bound images moved on in their registries since a deployment was bound to them? Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from lashd.steps.plan import QUESTIONS
from lashd.things.registry import resolve
from lashd.words.config import Settings
from lashd.words.errors import LashdError
from lashd.words.model import BoundImage, Record


@dataclass(frozen=True, slots=True)
class Moved:
    """`references` (normalised) mean another digest now; `unknown`: a sentence for each that could not be asked."""

    references: tuple[str, ...]
    unknown: tuple[str, ...]


async def moved(bound: Iterable[BoundImage], record: Record | None, settings: Settings) -> Moved:
    """Ask the registries, several at once and each name once, what the floating ones of `bound` mean.

    Only what `record` has a digest of can have moved. Each question may take `settings.pull.stall_seconds`.
    """
    wanted = {
        (str(image.reference), image.pull): image
        for image in bound
        if not image.reference.pinned and record is not None and record.image(str(image.reference)) is not None
    }
    questions = asyncio.Semaphore(QUESTIONS)

    async def ask(image: BoundImage) -> tuple[str, bool] | str:
        known = record.image(str(image.reference)) if record is not None else None
        try:
            async with questions:
                now = await resolve(image.reference, image.pull, settings)
        except LashdError as error:
            return error.message
        assert known is not None
        return str(image.reference), now.digest != known.digest

    answers = await asyncio.gather(*map(ask, wanted.values()))
    return Moved(
        tuple(sorted({answer[0] for answer in answers if isinstance(answer, tuple) and answer[1]})),
        tuple(sorted({answer for answer in answers if isinstance(answer, str)})),
    )
