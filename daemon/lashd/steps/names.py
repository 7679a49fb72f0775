# SPDX-License-Identifier: Apache-2.0
"""What names mean in the store: the one place that decides it, for the walk and for activation at boot.

A floating name means one image at a time, and each deployment has its own idea of which. So it means what the running
system is bound to, and gets its next meaning at the boot of the deployment that wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lashd.steps.discover import discover
from lashd.steps.record import Records
from lashd.things.store import Store, StoredImage, StoreIndex
from lashd.words.errors import ErrorName, LashdError, all_in_one
from lashd.words.model import BoundImage, Deployment, Plan, PlannedImage, Record, Role
from lashd.words.reference import Reference

# Normalised reference, as text → the digest that it is to mean; empty where nobody knows.
Digests = Mapping[str, str]
_NOBODY: Digests = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Move:
    """`name` is to mean the image that `source` (pinned) names; first, the image that has it now is named `keep`."""

    name: Reference
    source: Reference
    keep: Reference | None = None


def moves(
    index: StoreIndex, bound: Iterable[BoundImage], digests: Digests, held: Digests = _NOBODY
) -> tuple[Move, ...]:
    """What has to be renamed so that every name means what `digests` says, in this order. Nothing when all are right.

    `held` are the names of the running system (`held_names`): they are neither taken nor given, unless to the very
    image that the running system is bound to. A name whose image is not in the store is left as it is.
    """
    found: list[Move] = []
    kept: set[Reference] = set()
    for name, source in meanings(bound, digests).items():
        image, holder = index.image_with_digest(source.name, source.digest), index.image_named(name)
        if image is None or _right(index, name, source.digest):
            continue
        if str(name) in held and held[str(name)] not in image.digests:
            continue
        keep = None
        if holder is not None and not _has_digest_name(holder, name):
            keep = kept_name(name, holder.id)
            if keep in kept or index.image_named(keep) is holder:
                keep = None
            else:
                kept.add(keep)
        found.append(Move(name, source, keep))
    return tuple(found)


def meanings(bound: Iterable[BoundImage], digests: Digests) -> dict[Reference, Reference]:
    """Floating name → its image, pinned, for every name that units look for; without those that `digests` lacks.

    Where two units want two things by one name, the first one decides, and a unit's own image before what another one
    looks for besides its own (ImageTag=): so it is the same at every look.
    """
    images = tuple(bound)
    own = {image.reference for image in images}
    found: dict[Reference, Reference] = {}
    for image in images:
        source = _source(image, digests)
        if source is not None and not image.reference.pinned:
            found[image.reference] = source
    for image in images:
        source = _source(image, digests)
        for name in image.names:
            if source is not None and not name.pinned and name not in own:
                found.setdefault(name, source)
    return found


def wrong_names(index: StoreIndex, image: BoundImage, digests: Digests) -> tuple[Reference, ...]:
    """The names that the unit of `image` looks for and that mean something else, or nothing, in the store.

    Only names of which `digests` says what they mean are judged.
    """
    wanted = digests.get(str(image.reference), "") or image.reference.digest
    names = (image.reference, *image.names) if wanted else ()
    return tuple(name for name in names if not (name.pinned or _right(index, name, wanted)))


def digests_of(what: Record | Plan | None) -> dict[str, str]:
    """What each reference is bound to, by a deployment's record or by the plan that leads to one."""
    found: dict[str, str] = {}
    if isinstance(what, Record):
        for recorded in what.images:
            found.setdefault(recorded.reference, recorded.digest)
    elif isinstance(what, Plan):
        for planned in what.images:
            for image in planned.bound:
                found.setdefault(str(image.reference), planned.digest)
    return found


def held_names(deployment: Deployment, deployments: Iterable[Deployment], records: Records) -> dict[str, str]:
    """The names that the running system binds, with their digests, when `deployment` is another one; else nothing.

    Raises BoundImageInvalid when the running system's root cannot be read.
    """
    booted = _booted(deployments)
    return {} if booted is None or booted.key == deployment.key else _names_of(booted, records)


def running_names(deployments: Iterable[Deployment], records: Records) -> dict[str, str]:
    """`held_names` for a deployment that is yet to come."""
    booted = _booted(deployments)
    return {} if booted is None else _names_of(booted, records)


def _booted(deployments: Iterable[Deployment]) -> Deployment | None:
    return next((each for each in deployments if Role.BOOTED in each.roles), None)


def _names_of(booted: Deployment, records: Records) -> dict[str, str]:
    images = discover(booted.root).images
    known = {str(name): source.digest for name, source in meanings(images, digests_of(records.get(booted.key))).items()}
    return {str(name): known.get(str(name), "") for image in images for name in (image.reference, *image.names)}


def name_in_store(image: PlannedImage, index: StoreIndex, held: Digests = _NOBODY) -> Reference:
    """The name to fetch `image` under: as it is written, if it is pinned or if its tag is free.

    Else by digest only: a tag that another image has is moved by `give_names`, and one of the running system at boot.
    """
    reference = image.reference
    if reference.pinned:
        return reference
    holder = index.image_named(reference)
    taken = holder is not None and image.digest not in holder.digests
    if taken or held.get(str(reference), image.digest) != image.digest:
        return source_of(image)
    return reference


def source_of(image: PlannedImage) -> Reference:
    """What is asked of the registry: always a digest, that of the index where there is one, as it is what is signed."""
    if image.reference.pinned:
        return image.reference
    return image.reference.at(image.index_digest or image.digest)


def kept_name(reference: Reference, image_id: str) -> Reference:
    """The tag under which an image stays in the store whose own tag has moved on to another one.

    An image without any name in a repository could not be found there by its digest either, by whoever is bound to it.
    """
    return Reference(reference.domain, reference.path, f"lashd-{image_id[:32]}")


async def give_names(store: Store, bound: Iterable[BoundImage], digests: Digests, held: Digests = _NOBODY) -> bool:
    """Carry out `moves` and sync the store; answers whether there were any. Offline; without any, no process.

    One name's failure does not stop the others. Raises one error for all that failed, and StoreDamaged when the index
    cannot be read. What a deployment is bound to stays reachable by digest, also when this is killed at any moment.
    """
    images = tuple(bound)
    wanted = moves(store.index(), images, digests, held)
    if not wanted:
        return False
    errors: list[LashdError] = []
    for move in wanted:
        try:
            if move.keep is not None:
                await store.give_name(move.name, move.keep)
            await store.give_name(move.source, move.name)
        except LashdError as error:
            errors.append(error)
    await store.sync()
    if not errors:
        errors = [_not_given(move) for move in wanted if not _right(store.index(), move.name, move.source.digest)]
    if errors:
        raise all_in_one(errors, f"{len(errors)} of {len(wanted)} names did not get their meaning in the store.")
    return True


def _source(image: BoundImage, digests: Digests) -> Reference | None:
    if image.reference.pinned:
        return image.reference
    digest = digests.get(str(image.reference))
    return image.reference.at(digest) if digest else None


def _right(index: StoreIndex, name: Reference, digest: str) -> bool:
    holder = index.image_named(name)
    return holder is not None and digest in holder.digests


def _has_digest_name(image: StoredImage, name: Reference) -> bool:
    """Whether `image` has a name in the repository of `name` that can never mean anything else."""
    return any(each.startswith(f"{name.name}@") for each in image.names)


def _not_given(move: Move) -> LashdError:
    # An exit status is not trusted, and others may write the store at the same time.
    return LashdError(
        ErrorName.HOST_COMMAND_FAILED,
        f"{move.name} was to mean {move.source.digest} in the bound image store, and still means something else; "
        "another program may be changing the store. Try again.",
    )
