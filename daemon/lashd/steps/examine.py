# SPDX-License-Identifier: Apache-2.0
"""What the store really has of the images that are wanted: by index, directories, manifest, and by every byte.

What a durable record vouches for was read or synced before, and is not read again; everything else is, unless this
very bind has just fetched it. Nothing here trusts the exit status of whoever wrote the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lashd.things.store import Store, StoredImage, StoredLayer, StoreIndex
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import PlannedImage, RecordedImage
from lashd.words.progress import ItemProgress, Report, Stage, StageStarted, ignore
from lashd.words.reference import Reference

if TYPE_CHECKING:
    from lashd.things.layers import LayerProblem

# So many images are described in one error, the others only named.
_TOLD = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """What the store has of one planned image. `problem` is a whole sentence, empty when nothing is wrong.

    `damaged`: something is there and wrong, and must be removed before the image can be fetched; `broken` are the
    layers (ids) that are to blame, as far as it is a matter of layers.
    """

    planned: PlannedImage
    image: StoredImage | None = None
    layers: tuple[StoredLayer, ...] = ()
    problem: str = ""
    damaged: bool = False
    broken: frozenset[str] = frozenset()


async def examine(
    wanted: Sequence[PlannedImage],
    store: Store,
    vouched: frozenset[str],
    *,
    report: Report = ignore,
    fresh: frozenset[str] = frozenset(),
    deep: bool = False,
) -> tuple[Finding, ...]:
    """One finding for each of `wanted`, in the same order.

    `vouched` are the layers (ids) that need no reading because of a record, `fresh` those that this bind has just
    fetched; with `deep` every layer is read. Raises StoreDamaged only when the index cannot be read.
    """
    report(StageStarted(Stage.VERIFY, items_total=len(wanted)))
    index = store.index()
    findings = [look_up(planned, store, index) for planned in wanted]
    trusted = vouched | fresh
    doubtful = [
        layer
        for finding in findings
        if not finding.problem
        for layer in finding.layers
        if deep or layer.id not in trusted
    ]
    problems: dict[str, LayerProblem] = {}
    if doubtful:
        # Mostly there is none, and at boot and at shutdown there is no time to load this.
        from lashd.things.layers import read_layers

        problems = await read_layers(store.root, doubtful)
    # What cannot be read again at all stays trusted, if it was: else it would be fetched for ever.
    problems = {layer: found for layer, found in problems.items() if found.damaged or layer not in trusted}
    judged = tuple(_judge(finding, problems) for finding in findings)
    for finding in judged:
        state = "failed" if finding.problem else "done"
        report(ItemProgress(str(finding.planned.reference), state, error=finding.problem))
    return judged


def require(findings: Iterable[Finding]) -> None:
    """Raises BoundImageMissing, or StoreDamaged when any of them is damaged, unless every finding is good."""
    failed = [finding for finding in findings if finding.problem]
    if not failed:
        return
    name = ErrorName.STORE_DAMAGED if any(finding.damaged for finding in failed) else ErrorName.BOUND_IMAGE_MISSING
    sentences = [finding.problem for finding in failed[:_TOLD]]
    if len(failed) > _TOLD:
        others = ", ".join(str(finding.planned.reference) for finding in failed[_TOLD:])
        sentences.append(f"The same is true of {others}.")
    raise LashdError(name, " ".join([*sentences, "'lashctl bind' fetches what is missing."]))


def recorded_images(finding: Finding) -> tuple[RecordedImage, ...]:
    """What to record of a good finding: one entry for each reference under which units name the image."""
    assert finding.image is not None
    planned = finding.planned
    units: dict[Reference, list[str]] = {planned.reference: []} if not planned.bound else {}
    for bound in planned.bound:
        units.setdefault(bound.reference, []).append(bound.unit)
    return tuple(
        RecordedImage(
            reference=str(reference),
            digest=planned.digest,
            image_id=finding.image.id,
            layers=tuple(layer.id for layer in finding.layers),
            units=tuple(sorted(names)),
            index_digest=planned.index_digest,
            stamps=tuple(layer.created for layer in finding.layers),
        )
        for reference, names in units.items()
    )


def look_up(planned: PlannedImage, store: Store, index: StoreIndex) -> Finding:
    """All that can be said without reading a layer."""
    shown = f"{planned.reference} ({planned.digest})" if not planned.reference.pinned else str(planned.reference)
    image = None
    for name in sorted({planned.reference.name, *(bound.reference.name for bound in planned.bound)}):
        image = index.image_with_digest(name, planned.digest)
        if image is None:
            return Finding(planned, problem=f"The bound image {shown} is not in the store.")
    assert image is not None
    finding = Finding(planned, image)
    chain = index.chain(image)
    if chain is None:
        problem = f"The bound image {shown} is in the store, but not all of its layers are."
        return replace(finding, problem=problem, damaged=True)
    finding = replace(finding, layers=chain)
    gone = store.layers_off_disk(chain)
    if gone:
        problem = f"The directory of the layer {gone[0].id} of the bound image {shown} is gone from the store."
        return replace(finding, problem=problem, damaged=True, broken=frozenset(layer.id for layer in gone))
    if not _described(planned.digest, image, store):
        problem = f"The manifest or the configuration of the bound image {shown} is damaged in the store."
        return replace(finding, problem=problem, damaged=True)
    return finding


def _described(digest: str, image: StoredImage, store: Store) -> bool:
    """Whether the store still has the manifest with `digest`, and the configuration it names, unchanged."""
    manifest = store.big_data(image, f"manifest-{digest}")
    if manifest is None:
        # As those who run the image do: what old versions of containers-storage wrote has this name only.
        manifest = store.big_data(image, "manifest")
    if manifest is None or _digest_as(digest, manifest) != digest:
        return False
    try:
        wanted = str(json.loads(manifest)["config"]["digest"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return True  # a kind of manifest without a configuration
    config = store.big_data(image, wanted)
    return config is not None and _digest_as(wanted, config) == wanted


def _digest_as(digest: str, content: bytes) -> str:
    """The digest of `content`, by the algorithm of `digest`; empty when that is none we know."""
    algorithm = digest.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}" if algorithm in ("sha256", "sha512") else ""


def _judge(finding: Finding, problems: dict[str, LayerProblem]) -> Finding:
    bad = {layer.id: problems[layer.id] for layer in finding.layers if layer.id in problems}
    if not bad:
        return finding
    first = next(iter(bad.values())).sentence
    problem = f"The bound image {finding.planned.reference} is in the store, but cannot be relied on. {first}"
    return replace(finding, problem=problem, damaged=True, broken=frozenset(bad))
