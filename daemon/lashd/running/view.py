# SPDX-License-Identifier: Apache-2.0
"""What can be read at any moment: deployments and their bound images, from files and memory, as plain rows.

Looking is free: nothing here waits for a job, a lock, the network or a process, and what has not changed on disk is
not worked out again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lashd.running.walk import is_known
from lashd.steps.decide import Decision, decide
from lashd.steps.discover import discover
from lashd.steps.record import Records
from lashd.steps.verify import classify
from lashd.things.host import HostBackend
from lashd.things.primary import PrimaryStore
from lashd.things.store import Store, StoredImage
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, Deployment, Discovery, ImageState, Record, Role, UseProblem

# A booted deployment's /etc can be edited, so what it binds is read anew after so many seconds. All others are fixed.
BOOTED_SECONDS = 5.0

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Read:
    at: float
    found: Discovery


class View:
    """Rows for the doors. `failures` maps a normalised reference to the (error name, sentence) of its last failure."""

    def __init__(self, backend: HostBackend, store: Store, records: Records, primary: PrimaryStore) -> None:
        self._backend = backend
        self._store = store
        self._records = records
        self._primary = primary
        self._discoveries: dict[str, _Read] = {}
        self._rows: dict[str, tuple[object, list[Row]]] = {}
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
        """What `deployment` binds."""
        read = self._discoveries.get(deployment.key)
        now = time.monotonic()
        if read is None or (Role.BOOTED in deployment.roles and now - read.at > BOOTED_SECONDS):
            found = discover(deployment.root)
            # The same object for the same content: rows that were made from it stay valid.
            read = _Read(now, read.found if read is not None and read.found == found else found)
            self._discoveries[deployment.key] = read
        return read.found

    async def learn(self, deployment: Deployment) -> None:
        """Find out what `deployment` binds, beside the event loop, so that `discovery` has it at hand."""
        if deployment.key not in self._discoveries:
            found = await asyncio.to_thread(discover, deployment.root)
            self._discoveries.setdefault(deployment.key, _Read(time.monotonic(), found))

    def is_broken(self, deployment: Deployment) -> bool:
        """Whether something that the running `deployment` is known to be bound to is not there, or not by its name."""
        record, vouched = self._records.get(deployment.key), self._vouched()
        return any(
            is_known(image, record)
            and classify(image, record, self._store, vouched, named=True)[0] is not ImageState.PRESENT
            for image in self.discovery(deployment).images
        )

    def decision(self, deployment: Deployment) -> Decision:
        """May this deployment be finalised, by what the store holds now?"""
        found = self.discovery(deployment)
        record, vouched = self._records.get(deployment.key), self._vouched()
        states = {image.unit: classify(image, record, self._store, vouched)[0] for image in found.images}
        return decide(found, record, states)

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
        found = self.discovery(deployment)
        record, vouched = self._records.get(deployment.key), self._vouched()
        valid = (
            id(found),
            self._store.signature(),
            self._primary.signature(),
            record,
            vouched,
            tuple(self.failures.items()),
        )
        cached = self._rows.get(deployment.key)
        if cached is not None and cached[0] == valid:
            return cached[1]
        rows = [self._image_row(deployment, image, record, vouched) for image in found.images]
        rows += [
            {
                **_blank(deployment, entry.unit),
                "state": ImageState.INVALID.value,
                "error-name": ErrorName.BOUND_IMAGE_INVALID.value,
                "error-message": entry.problem,
            }
            for entry in found.bad
        ]
        self._rows[deployment.key] = (valid, rows)
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
            **_blank(deployment, image.unit),
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

    def _vouched(self) -> frozenset[str]:
        return self._records.vouched(self._store.index().layers)

    def _size(self, stored: StoredImage | None) -> int:
        chain = self._store.index().chain(stored) if stored else None
        return sum(layer.uncompressed_size for layer in chain or ())


def _blank(deployment: Deployment, unit: str) -> Row:
    return {
        "deployment": deployment.key,
        "unit": unit,
        "reference": "",
        "normalised": "",
        "wanted-digest": "",
        "present-digest": "",
        "state": "",
        "bytes": 0,
        "usable": False,
        "use-problems": [],
        "error-name": "",
        "error-message": "",
    }


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
