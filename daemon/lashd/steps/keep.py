# SPDX-License-Identifier: Apache-2.0
"""What a host's deployments keep in the bound image store: all that they are bound to, or may be.

By record, and by what their links mean now: so two names of one image, a tag beside a digest and short names count as
what they are. Where it cannot be told what a deployment means, everything stays that it might.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lashd.steps.discover import DIRECTORY, discover
from lashd.words.errors import LashdError
from lashd.words.model import BoundImage, Deployment, Discovery, HostImage, Owed, Record, RecordedImage, Role
from lashd.words.reference import Reference, parse_reference

# Whoever stages may fetch the images first.
_BEFORE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What must stay, each with who wants it ("deployment 2").

    `names`: whatever these references mean; `digests`: the image with this digest in this repository (without tag);
    `images`: these ids; `repositories`: every image with a name in them. `layers` (ids) are those of kept records.
    `unfinished` are references that a deployment on its way is bound to: while one is missing, parts of it may be in
    the store. `known` are the ids of images and layers that some record names, also of a deployment that is gone: of
    them nobody is about to make a new one. What came after `since` (seconds since the epoch) may be for `since_who`, of
    whom nobody knows what it binds. With a `doubt` (a sentence) nothing at all may go. `deployments` are the keys of
    all that there are, the owed one among them.
    """

    names: Mapping[Reference, str] = field(default_factory=dict)
    digests: Mapping[tuple[str, str], str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    repositories: Mapping[str, str] = field(default_factory=dict)
    layers: frozenset[str] = frozenset()
    unfinished: frozenset[Reference] = frozenset()
    known: frozenset[str] = frozenset()
    doubt: str = ""
    since: float | None = None
    since_who: str = ""
    deployments: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Present:
    """What there is at one moment: the host's deployments; the one that is to be staged again; the records by
    deployment, and the keys of those that cannot be read; deployments that nothing but a directory tells of."""

    deployments: tuple[Deployment, ...]
    owed: Owed | None
    records: Mapping[str, Record]
    damaged: frozenset[str] = frozenset()
    unlisted: tuple[Deployment, ...] = ()


def what_stays(present: Present, *, read: Callable[[Path, Path | None], Discovery] = discover) -> Kept:
    """What all deployments of the host and the owed one keep. Blocks: `read` reads every deployment's root."""
    keeper = _Keeper(present)
    if not present.deployments:
        keeper.doubt = "No deployment of this host can be read, so it is unknown what they are bound to."
    everything = (*present.deployments, *present.unlisted)
    for deployment in everything:
        keeper.add(deployment, read)
    keys = {deployment.key for deployment in everything}
    if present.owed is not None and present.owed.deployment not in keys:
        keeper.add_owed(present.owed)
        keys.add(present.owed.deployment)
    return keeper.kept(frozenset(keys))


class _Keeper:
    def __init__(self, present: Present) -> None:
        self._records = present.records
        self._damaged = present.damaged
        self._owed = present.owed.deployment if present.owed else ""
        self._names: dict[Reference, str] = {}
        self._digests: dict[tuple[str, str], str] = {}
        self._images: dict[str, str] = {}
        self._repositories: dict[str, str] = {}
        self._layers: set[str] = set()
        self._unfinished: set[Reference] = set()
        self._since: float | None = None
        self._since_who = ""
        self.doubt = ""

    def add(self, deployment: Deployment, read: Callable[[Path, Path | None], Discovery]) -> None:
        who = f"deployment {deployment.version or deployment.key}"
        record = self._records.get(deployment.key)
        self._add_record(record, who)
        if deployment.image is not None:
            self._add_host_image(deployment.image, deployment.digest, who)
        try:
            found = read(deployment.root, deployment.merges)
        except LashdError as error:
            self.doubt = error.message
            return
        for bad in found.bad:
            # The entry that stands for them all: not every one was read. Of a single bad one nobody has the image,
            # because neither lashd nor bootc can bind it.
            if bad.unit == posixpath.basename(DIRECTORY):
                self.doubt = f"What {who} is bound to is not known to its end: {bad.problem}"
        for image in found.images:
            for name in (image.reference, *image.names):
                self._names.setdefault(name, who)
            if Role.STAGED in deployment.roles or deployment.key == self._owed:
                self._unfinished.add(image.reference)
            if self._unclear(deployment, image, record):
                self._repositories.setdefault(image.reference.name, who)

    def add_owed(self, owed: Owed) -> None:
        """A deployment that is to be staged again, and whose root is gone.

        Its record says what it is bound to; without one, its names were noted when it was staged. Where nobody had the
        time for either, only what has come since then can have been fetched for it.
        """
        record = self._records.get(owed.deployment)
        who = f"deployment {owed.deployment}, which is to be staged again,"
        self._add_record(record, who)
        for text in owed.binds or ():
            try:
                name = parse_reference(text)
            except LashdError as error:
                self.doubt = f"The note of {who} is not understood: {error.message}"
                continue
            self._names.setdefault(name, who)
            self._unfinished.add(name)
            if owed.deployment in self._damaged and not name.pinned:
                self._repositories.setdefault(name.name, who)
        if record is None and owed.binds is None:
            self._since, self._since_who = owed.since - _BEFORE_SECONDS, who

    def kept(self, deployments: frozenset[str]) -> Kept:
        known = {image.image_id for record in self._records.values() for image in record.images}
        known |= {layer for record in self._records.values() for image in record.images for layer in image.layers}
        return Kept(
            names=self._names,
            digests=self._digests,
            images=self._images,
            repositories=self._repositories,
            layers=frozenset(self._layers),
            unfinished=frozenset(self._unfinished),
            known=frozenset(known),
            doubt=self.doubt,
            since=self._since,
            since_who=self._since_who,
            deployments=deployments,
        )

    def _add_record(self, record: Record | None, who: str) -> None:
        for image in record.images if record else ():
            try:
                repository = _reference(image).name
            except LashdError as error:
                self.doubt = f"The record of {who} is not understood: {error.message}"
                continue
            for digest in filter(None, (image.digest, image.index_digest)):
                self._digests.setdefault((repository, digest), who)
            self._images.setdefault(image.image_id, who)
            self._layers.update(image.layers)

    def _add_host_image(self, image: HostImage, digest: str | None, who: str) -> None:
        """bootc may keep the host image itself in this store, too."""
        try:
            name = parse_reference(image.reference)
        except LashdError:
            if image.transport == "containers-storage":
                self.doubt = f"The image '{image.reference}' that {who} was made from may be any one in the store."
            return
        self._names.setdefault(name, who)
        if digest:
            self._digests.setdefault((name.name, digest), who)

    def _unclear(self, deployment: Deployment, image: BoundImage, record: Record | None) -> bool:
        """Whether the deployment may have run with another image than the one that the name means now."""
        if image.reference.pinned:
            return False
        if deployment.key in self._damaged:
            return True
        # The booted one runs with what its names mean now, and a staged one has not run yet.
        settled = deployment.roles & {Role.BOOTED, Role.STAGED}
        return not settled and (record is None or record.image(str(image.reference)) is None)


def _reference(image: RecordedImage) -> Reference:
    return parse_reference(image.reference)
