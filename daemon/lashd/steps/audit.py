# SPDX-License-Identifier: Apache-2.0
"""Audit: compare the store with what is recorded for a deployment. Looks only; a bind repairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from lashd.steps.adopt import own_digest
from lashd.steps.examine import Finding, examine
from lashd.steps.names import digests_of, wrong_names
from lashd.things.store import Store, StoredLayer
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, PlannedImage, Record
from lashd.words.progress import Report, ignore

# So many images are described in one error.
_TOLD = 8


class Condition(StrEnum):
    """How a bound image is found."""

    OK = "ok"
    MISSING = "missing"
    DAMAGED = "damaged"  # something is there and wrong, or stands on other layers than were recorded
    DRIFTED = "drifted"  # it is all there, but a name means something else


@dataclass(frozen=True, slots=True)
class Audited:
    """One bound image: what was found, and a whole sentence about it, empty when it is as it should be."""

    image: BoundImage
    condition: Condition
    digest: str = ""  # the one that it should have; empty when nobody knows
    sentence: str = ""
    doubtful: tuple[StoredLayer, ...] = ()  # what is damaged; where that is no layer, one that makes the image doubtful


async def audit(
    images: Sequence[BoundImage],
    record: Record | None,
    store: Store,
    vouched: frozenset[str],
    *,
    named: bool = False,
    deep: bool = False,
    report: Report = ignore,
) -> tuple[Audited, ...]:
    """One row for each of `images`, in the same order.

    Wanted is the digest in `record`; without one that of the reference, or of what the name means now. Layers (ids)
    that are `vouched` for are read again only when this is `deep`. With `named` every name must mean its image, as on
    the booted system. Raises StoreDamaged when the index cannot be read.
    """
    index = store.index()
    digests = digests_of(record)
    rows: dict[BoundImage, Audited] = {}
    wanted: list[PlannedImage] = []
    for image in images:
        meant = index.image_named(image.reference)
        digest = digests.get(str(image.reference)) or image.reference.digest
        if not digest and meant is not None:
            digest, _ = own_digest(meant, store)
        if digest:
            wanted.append(PlannedImage(image.reference, digest, (image,), present=True))
        else:
            sentence = f"The bound image {image.reference} is not in the store."
            rows[image] = Audited(image, Condition.MISSING, "", sentence)
    for finding in await examine(wanted, store, vouched, report=report, deep=deep):
        (image,) = finding.planned.bound
        rows[image] = _judge(finding, record)
        wrong = wrong_names(index, image, digests) if named and rows[image].condition is Condition.OK else ()
        if wrong:
            sentence = f"{wrong[0]} does not mean the image {finding.planned.digest} that {image.unit} is bound to."
            rows[image] = Audited(image, Condition.DRIFTED, finding.planned.digest, sentence)
    return tuple(rows[image] for image in images)


def require_sound(rows: Sequence[Audited], which: str = "") -> None:
    """Raise BoundImageMissing, or StoreDamaged when something is damaged, unless every row is as it should be.

    `which` names the deployment on the command line, where that is not the one that a bind is about by itself.
    """
    wrong = [row for row in rows if row.condition is not Condition.OK]
    if wrong:
        damaged = any(row.condition is Condition.DAMAGED for row in wrong)
        count = f"{len(wrong)} of {len(rows)} bound images {'is' if len(wrong) == 1 else 'are'} not as recorded."
        raise LashdError(
            ErrorName.STORE_DAMAGED if damaged else ErrorName.BOUND_IMAGE_MISSING,
            f"{count} {_told(wrong)} '{' '.join(filter(None, ('lashctl bind', which)))}' repairs what it can.",
        )


def _told(wrong: Sequence[Audited]) -> str:
    sentences = list(dict.fromkeys(row.sentence for row in wrong))
    more = len(sentences) - _TOLD
    return " ".join([*sentences[:_TOLD], *([f"The same is true of {more} more."] if more > 0 else [])])


def _judge(finding: Finding, record: Record | None) -> Audited:
    (image,) = finding.planned.bound
    digest = finding.planned.digest
    if finding.problem:
        condition = Condition.DAMAGED if finding.damaged else Condition.MISSING
        return Audited(image, condition, digest, finding.problem, _doubtful(finding) if finding.damaged else ())
    recorded = record.image(str(image.reference)) if record else None
    layers = tuple(layer.id for layer in finding.layers)
    if recorded is not None and recorded.layers and recorded.layers != layers:
        sentence = f"The bound image {image.reference} stands on other layers than those that were recorded."
        return Audited(image, Condition.DAMAGED, digest, sentence)
    return Audited(image, Condition.OK, digest)


def _doubtful(finding: Finding) -> tuple[StoredLayer, ...]:
    """Layers that nobody may vouch for any more: an image with a damaged description is read anew because of its top
    layer, and then the description is looked at as well."""
    return tuple(layer for layer in finding.layers if layer.id in finding.broken) or finding.layers[:1]
