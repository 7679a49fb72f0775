# SPDX-License-Identifier: Apache-2.0
"""What can be read at any moment: deployments and their bound images, from files and memory, as plain rows.

Looking is free: nothing here waits for a job, a lock, the network or a process, and what has not changed on disk is
not worked out again.
"""

from __future__ import annotations

import asyncio
import math
import posixpath
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lashd.running.bind import is_known
from lashd.running.rows import Row, bad_rows, blank_row, not_known, unreadable
from lashd.steps.decide import Decision, decide
from lashd.steps.discover import DIRECTORY, discover
from lashd.steps.record import Records
from lashd.steps.verify import classify
from lashd.things.host import HostBackend
from lashd.things.primary import PrimaryStore
from lashd.things.store import Store, StoredImage
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, Deployment, Discovery, ImageState, Record, Role, UseProblem

# The running /etc can be edited, so what the booted deployment binds, and what a staged one will once it has got the
# local changes, is read anew after so many seconds. All others are fixed.
BOOTED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Read:
    begun: float
    at: float  # when it was ended: what takes long to read would else be old before it is there
    found: Discovery
    merges: Path | None


class View:
    """Rows for the doors. `failures` maps a normalised reference to the (error name, sentence) of its last failure."""

    def __init__(self, backend: HostBackend, store: Store, records: Records, primary: PrimaryStore) -> None:
        self._backend = backend
        self._store = store
        self._records = records
        self._primary = primary
        self._discoveries: dict[Path, _Read] = {}  # by root: keys are unique in a stateroot only
        self._edits = 0
        self._rows: dict[Path, tuple[object, list[Row]]] = {}
        self.failures: dict[str, tuple[str, str]] = {}

    def forget(self) -> None:
        """Read everything anew at the next look."""
        self._discoveries.clear()
        self._rows.clear()

    def deployments(self) -> tuple[Deployment, ...]:
        return self._backend.deployments()

    def selected(self, which: str) -> list[Deployment]:
        """The deployments that `which` names (a role, `all`, or a key). Raises InvalidArgument."""
        everything = self.deployments()
        if which == "all":
            return list(everything)
        if which in Role.__members__.values():
            return [deployment for deployment in everything if which in deployment.roles]
        chosen = [deployment for deployment in everything if deployment.key == which]
        if not chosen:
            raise LashdError(
                ErrorName.INVALID_ARGUMENT,
                f"There is no deployment '{which[:100]}'; name staged, booted, rollback, pinned, all, or the whole "
                "key of a deployment.",
            )
        return chosen

    def discovery(self, deployment: Deployment) -> Discovery:
        """What `deployment` binds. Read here and now when it is not known: rootfs.BUDGET keeps that short."""
        found = self._fresh(deployment)
        if found is None:
            begun = time.monotonic()
            read = discover(deployment.root, deployment.merges)
            found = self._learnt(deployment, begun, time.monotonic(), read)
        return found

    async def learn(self, deployment: Deployment) -> None:
        """Find out what `deployment` binds, beside the event loop, so that `discovery` has it at hand."""
        if self._fresh(deployment) is None:
            begun, edits = time.monotonic(), self._edits
            found = await asyncio.to_thread(discover, deployment.root, deployment.merges)
            if edits == self._edits:
                self._learnt(deployment, begun, time.monotonic(), found)
            else:
                self._learnt(deployment, -math.inf, -math.inf, found)

    def edited(self) -> None:
        """The running /etc has changed: read anew, at the next look, whatever depends on it."""
        self._edits += 1
        for root, read in self._discoveries.items():
            self._discoveries[root] = replace(read, begun=-math.inf, at=-math.inf)

    def _fresh(self, deployment: Deployment) -> Discovery | None:
        read = self._discoveries.get(deployment.root)
        if read is None or read.merges != deployment.merges:
            return None
        fixed = Role.BOOTED not in deployment.roles and deployment.merges is None
        return read.found if fixed or time.monotonic() - read.at <= BOOTED_SECONDS else None

    def _learnt(self, deployment: Deployment, begun: float, at: float, found: Discovery) -> Discovery:
        read = self._discoveries.get(deployment.root)
        if read is not None and read.begun > begun:
            return read.found  # somebody looked later, and was faster
        # The same object for the same content: rows that were made from it stay valid.
        found = read.found if read is not None and read.found == found else found
        if read is None:
            self._forget_gone()
        self._discoveries[deployment.root] = _Read(begun, at, found, deployment.merges)
        return found

    def _forget_gone(self) -> None:
        there = {one.root for one in self.deployments()}
        for root in self._discoveries.keys() - there:
            del self._discoveries[root]
            self._rows.pop(root, None)

    def known_names(self, deployment: Deployment) -> tuple[str, ...] | None:
        """All names of what `deployment` binds; None when that has not been read yet, or not to its end."""
        read = self._discoveries.get(deployment.root)
        if read is None or any(entry.unit == posixpath.basename(DIRECTORY) for entry in read.found.bad):
            return None
        return tuple(sorted({str(name) for image in read.found.images for name in (image.reference, *image.names)}))

    def is_broken(self, deployment: Deployment) -> bool:
        """Whether something that the running `deployment` is known to be bound to is not there, or not by its name."""
        record, vouched = self._recorded(deployment)
        return any(
            is_known(image, record)
            and classify(image, record, self._store, vouched, named=True)[0] is not ImageState.PRESENT
            for image in self.discovery(deployment).images
        )

    def lacking(self, booted: Deployment) -> list[tuple[str, str]]:
        """What the running system binds and has not got, also where no digest of it is known: (state, sentence)."""
        try:
            found = self.discovery(booted)
            record, vouched = self._recorded(booted)
        except LashdError:
            return []  # told by `troubles`
        states = {image.unit: classify(image, record, self._store, vouched, named=True)[0] for image in found.images}
        wanted = {ImageState.MISSING.value, ImageState.INCOMPLETE.value, ImageState.DRIFTED.value}
        return [reason for reason in decide(found, record, states).reasons if reason[0] in wanted]

    def decision(self, deployment: Deployment) -> Decision:
        """May this deployment be finalised, by what the store holds now? Not when that cannot be read; never raises."""
        try:
            found = self.discovery(deployment)
            record, vouched = self._recorded(deployment)
            states = {image.unit: classify(image, record, self._store, vouched)[0] for image in found.images}
        except LashdError as error:
            return Decision(False, (unreadable(error),))
        return decide(found, record, states)

    def vouched(self) -> frozenset[str]:
        """Ids of the layers that a record vouches for; none when the records cannot be read."""
        try:
            return self._records.vouched()
        except OSError:
            return frozenset()

    def troubles(self) -> list[tuple[str, str]]:
        """What cannot be read, so that less is known than should be: a code and a whole sentence, each."""
        found = []
        try:
            self._store.index()
        except LashdError as error:
            found.append(unreadable(error))
        try:
            self._records.load_all()
        except OSError as error:
            why = (
                f"The records in {error.filename} cannot be read ({error.strerror}), so it is not known which images "
                "were verified, and nothing can be bound; make it a directory that root can read, or remove it."
            )
            found.append(("records-unreadable", why))
        for deployment in self.deployments():
            try:
                self.discovery(deployment)
            except LashdError as error:
                found.append(unreadable(error))
        return found

    def bound(self, deployments: Iterable[Deployment], busy: Mapping[str, str]) -> list[Row]:
        """One row per (deployment, unit). `busy` maps normalised references to `pulling` or `failed`."""
        rows: list[Row] = []
        for deployment in deployments:
            for row in self._bound_rows(deployment):
                state = busy.get(row["normalised"])
                settled = row["state"] in (ImageState.PRESENT, ImageState.INVALID)
                rows.append(row if state is None or settled else row | {"state": state})
        return rows

    def _bound_rows(self, deployment: Deployment) -> list[Row]:
        try:
            found = self.discovery(deployment)
        except LashdError as error:
            return [blank_row(deployment, posixpath.basename(DIRECTORY)) | not_known(error)]
        try:
            record, vouched = self._recorded(deployment)
        except LashdError as error:
            # Not kept: the next look may succeed although the file is the same.
            return [self._unknown_row(deployment, image, error) for image in found.images] + bad_rows(deployment, found)
        valid = (
            id(found),
            self._store.signature(),
            self._primary.signature(),
            record,
            vouched,
            tuple(self.failures.items()),
        )
        cached = self._rows.get(deployment.root)
        if cached is not None and cached[0] == valid:
            return cached[1]
        rows = [self._image_row(deployment, image, record, vouched) for image in found.images]
        rows += bad_rows(deployment, found)
        self._rows[deployment.root] = (valid, rows)
        return rows

    def _image_row(
        self, deployment: Deployment, image: BoundImage, record: Record | None, vouched: frozenset[str]
    ) -> Row:
        # On the running system the name must mean it as well: that is what its containers start from.
        state, stored = classify(image, record, self._store, vouched, named=Role.BOOTED in deployment.roles)
        recorded = record.image(str(image.reference)) if record else None
        problems = list(image.use_problems)
        names = (image.reference, *image.names)
        if any(self._primary.shadows(name, stored.id if stored else "") for name in names):
            problems.append(UseProblem.SHADOWED)
        name, sentence = self.failures.get(str(image.reference), ("", ""))
        return {
            **blank_row(deployment, image.unit),
            "reference": image.text,
            "normalised": str(image.reference),
            "wanted-digest": recorded.digest if recorded else image.reference.digest,
            "present-digest": stored.digest if stored else "",
            "state": state.value,
            "bytes": self._size(stored),
            "usable": not problems,
            "use-problems": [problem.value for problem in problems],
            "error-name": "" if state is ImageState.PRESENT else name,
            "error-message": "" if state is ImageState.PRESENT else sentence,
        }

    def _unknown_row(self, deployment: Deployment, image: BoundImage, error: LashdError) -> Row:
        """What is known of a bound image while the store cannot be read."""
        problems = [problem.value for problem in image.use_problems]
        return {
            **blank_row(deployment, image.unit),
            "reference": image.text,
            "normalised": str(image.reference),
            "wanted-digest": image.reference.digest,
            "usable": not problems,
            "use-problems": problems,
            **not_known(error),
        }

    def _recorded(self, deployment: Deployment) -> tuple[Record | None, frozenset[str]]:
        """The record of `deployment` and the layers that any record vouches for. Raises StoreDamaged."""
        layers = self._store.index().layers
        try:
            return self._records.get(deployment.key), self._records.vouched(layers)
        except OSError:
            # As the gate has it: the place where they are kept is damaged, which is the same as no records.
            return None, frozenset()

    def _size(self, stored: StoredImage | None) -> int:
        chain = self._store.index().chain(stored) if stored else None
        return sum(layer.uncompressed_size for layer in chain or ())


def deployment_row(deployment: Deployment, *, ready: bool, next_boot: bool) -> Row:
    """One deployment as ListDeployments shows it."""
    return {
        "key": deployment.key,
        "stateroot": deployment.stateroot,
        "checksum": deployment.checksum,
        "serial": deployment.serial,
        "roles": sorted(role.value for role in deployment.roles),
        "image": deployment.image.reference if deployment.image else "",
        "digest": deployment.digest or "",
        "version": deployment.version or "",
        "timestamp": deployment.timestamp or 0,
        "locked": deployment.locked,
        "ready": ready,
        "next-boot": next_boot,
    }
