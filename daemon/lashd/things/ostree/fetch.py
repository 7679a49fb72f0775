# SPDX-License-Identifier: Apache-2.0
"""A host image, layer by layer, from where it is into the ostree repository."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from lashd.things.ostree import names
from lashd.things.ostree.client import Worker
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.things.ostree.image import HostManifest, read_host_manifest
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import HostImage, Layer
from lashd.words.progress import ItemProgress, Report, Stage, StageStarted
from lashd.words.reference import parse_reference


class Proxy(Protocol):
    """What is used of skopeo's image proxy."""

    async def open(self, name: str) -> Any: ...

    async def manifest(self, image: Any) -> tuple[str, bytes]: ...

    async def config(self, image: Any) -> bytes: ...

    def blob(self, image: Any, digest: str, size: int) -> AbstractAsyncContextManager[int]: ...


OpenProxy = Callable[[], AbstractAsyncContextManager[Proxy]]


class ImageFetch:
    """One fetch of one image, over as many connections as it takes: what has arrived is not fetched again."""

    def __init__(
        self,
        settings: Settings,
        image: HostImage,
        *,
        sysroot: OstreeSysroot,
        worker: Worker,
        open_proxy: OpenProxy,
        report: Report,
        free: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._image = image
        self._sysroot = sysroot
        self._worker = worker
        self._open_proxy = open_proxy
        self._report = report
        self._free = free
        self._attempt = 1
        self._digest: str | None = None
        self._waiting: list[Layer] = []
        self._announced = False
        self._parallel = asyncio.Semaphore(min(4, max(2, os.cpu_count() or 1)))

    async def run(self, expected_digest: str | None, *, by_digest: bool = False) -> tuple[str, str, tuple[str, ...]]:
        """(commit, manifest digest, what was dropped). With `by_digest` the tag is not asked. Raises LashdError."""
        pull = self._settings.pull
        if by_digest:
            self._digest = expected_digest
        while True:
            try:
                return await self._once(expected_digest)
            except LashdError as error:
                if not error.retryable or self._attempt >= pull.attempts:
                    raise
                pause = min(pull.backoff_seconds * 2 ** (self._attempt - 1), pull.backoff_limit_seconds)
                pause = max(pause * random.uniform(0.75, 1.25), error.retry_after or 0)
                self._attempt += 1
                for layer in self._waiting:
                    self._tell(layer, "retrying", error=error.message, next_attempt=time.time() + pause)
                await asyncio.sleep(pause)

    async def _once(self, expected_digest: str | None) -> tuple[str, str, tuple[str, ...]]:
        async with self._open_proxy() as proxy:
            image = await proxy.open(self._name())
            digest, raw = await proxy.manifest(image)
            self._check(digest, expected_digest)
            present = self._present(digest)
            if present is not None:
                return present, digest, self._sysroot.commit(present).dropped
            manifest = read_host_manifest(digest, raw, await proxy.config(image))
            await self._import_missing(proxy, image, manifest)
        merged = await self._worker.call("merge", {}, stdin=json.dumps(self._description(manifest)).encode())
        return merged["commit"], digest, tuple(merged["dropped"])

    def _name(self) -> str:
        """What to open: after the first answer, exactly what that named, although the tag may have moved on."""
        reference = self._image.reference
        if self._digest is not None and self._image.transport == "registry":
            reference = str(parse_reference(reference).at(self._digest))
        return names.skopeo_name(self._image.transport, reference)

    def _check(self, digest: str, expected_digest: str | None) -> None:
        wanted = expected_digest or self._digest
        if wanted is not None and digest != wanted:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                f"The host image {self._image.reference} is {digest} now and not {wanted}; it was not fetched.",
            )
        self._digest = digest

    def _present(self, digest: str) -> str | None:
        """The commit that an earlier fetch of this very image left."""
        commit = self._sysroot.resolve(names.image_ref(self._image.transport, self._image.reference))
        return commit if commit is not None and self._sysroot.commit(commit).digest == digest else None

    def _missing(self, manifest: HostManifest) -> list[Layer]:
        found: dict[str, Layer] = {}
        for layer in manifest.layers:
            commit = self._sysroot.resolve(names.layer_ref(layer.digest))
            # Layers of another importer lack what a merge has to know of them.
            if commit is None or not self._sysroot.commit(commit).ours:
                found[layer.digest] = layer
        return list(found.values())

    async def _import_missing(self, proxy: Proxy, image: Any, manifest: HostManifest) -> None:
        missing = self._missing(manifest)
        self._waiting = list(missing)
        total = sum(layer.size for layer in missing)
        if not self._announced:
            self._announced = True
            self._report(StageStarted(Stage.STAGE, total, len(missing)))
        room = self._free() - self._settings.pull.reserve_bytes
        if missing and total > room:
            raise LashdError(
                ErrorName.NO_SPACE,
                f"The host image needs {total} bytes more even before it is unpacked, and {max(room, 0)} are free "
                "beside the reserve; free some and try again.",
            )
        for layer in missing:
            self._tell(layer, "waiting")
        imports = [self._import(proxy, image, layer, room) for layer in missing]
        # A layer that fails does not end the others: what they have fetched would be fetched again.
        failures = [failure for failure in await asyncio.gather(*imports, return_exceptions=True) if failure]
        # One that no further attempt can mend decides.
        failures.sort(key=lambda failure: isinstance(failure, LashdError) and failure.retryable)
        if failures:
            raise failures[0]

    async def _import(self, proxy: Proxy, image: Any, layer: Layer, room: int) -> None:
        arguments = {"digest": layer.digest, "size": layer.size, "media_type": layer.media_type, "limit": room}
        async with self._parallel:
            self._tell(layer, "fetching")
            try:
                # Why bytes stop to come is known at the other end, and raised there in place of what it causes here.
                async with proxy.blob(image, layer.digest, layer.size) as descriptor:
                    await self._worker.call(
                        "import-layer",
                        arguments,
                        stdin=descriptor,
                        on_bytes=lambda done: self._tell(layer, "fetching" if done < layer.size else "unpacking", done),
                        reading=layer.size,
                        stall=self._settings.pull.stall_seconds,
                    )
            except LashdError as error:
                self._tell(layer, "failed", error=error.message)
                raise
        self._waiting.remove(layer)
        self._tell(layer, "done", layer.size)

    def _tell(self, layer: Layer, state: str, done: int = 0, *, error: str = "", next_attempt: float = 0.0) -> None:
        self._report(ItemProgress(layer.digest, state, done, layer.size, self._attempt, next_attempt, error))

    def _description(self, manifest: HostManifest) -> dict[str, Any]:
        return {
            "transport": self._image.transport,
            "reference": self._image.reference,
            "digest": manifest.digest,
            "layers": [layer.digest for layer in manifest.layers],
            "manifest": manifest.manifest,
            "config": manifest.config,
            "version": manifest.version,
            "timestamp": manifest.timestamp,
        }
