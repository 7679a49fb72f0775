# SPDX-License-Identifier: Apache-2.0
"""Durable records: which digests each deployment is bound to, and which layers were seen to be on disk.

One JSON file for each deployment, replaced whole. A record is written after the store was synced and not before, so
that what it vouches for has survived whatever came later; a file that cannot be read vouches for nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from _thread import allocate_lock  # all of threading costs the gate half a millisecond
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from lashd.things.store import StoredLayer
from lashd.words import files, shape
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Record, RecordedImage
from lashd.words.notes import unwritable

VERSION = 1
# In front of the stamp of a copy that was found damaged after it had been recorded: nothing vouches for that copy.
DISTRUSTED = "damaged:"
_LIMIT = 16 * 1024 * 1024
_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,200}")
_Digest = Annotated[str, Meta(pattern=r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")]
_Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


@dataclass(frozen=True, slots=True)
class _Image:
    """As RecordedImage, whose names the fields have."""

    reference: Annotated[str, Meta(min_length=1)]
    digest: _Digest
    image_id: _Id
    layers: tuple[_Id, ...] = ()
    units: tuple[str, ...] = ()
    index_digest: _Digest | None = None
    stamps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _File:
    """What is in a file. Keys that a later version may add are ignored, a later `version` is not read at all."""

    version: Annotated[int, Meta(ge=1, le=VERSION)]
    deployment: str
    images: tuple[_Image, ...]
    created: int
    host_digest: str | None = None
    adopted: bool = False


class Records:
    """The records below `directory`, which need not exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: dict[str, tuple[tuple[int, int, int], Record | str]] = {}
        self._vouched: tuple[object, object, frozenset[str]] = ({}, None, frozenset())
        self._writing = allocate_lock()  # writers are called in threads

    def load_all(self) -> dict[str, Record]:
        """Deployment key → record. Files that did not change are not read again; damaged ones are left out."""
        return {key: found for key, (_, found) in self._look().items() if isinstance(found, Record)}

    def damaged(self) -> frozenset[str]:
        """The keys of the deployments whose file cannot be used."""
        return frozenset(key for key, (_, found) in self._look().items() if isinstance(found, str))

    def problems(self) -> tuple[str, ...]:
        """A sentence for each file that cannot be used."""
        return tuple(found for _, found in self._look().values() if isinstance(found, str))

    def require(self) -> None:
        """Raise StoreDamaged when the records cannot be read. All others that read raise OSError then."""
        try:
            self._look()
        except OSError as error:
            raise LashdError(
                ErrorName.STORE_DAMAGED,
                f"The records in {error.filename} cannot be read ({error.strerror}), so it is unknown which images "
                "were verified and which must stay; make it a directory that root can read, or remove it.",
            ) from error

    def get(self, key: str) -> Record | None:
        return self.load_all().get(key)

    def write(self, record: Record) -> None:
        """Make `record` durable. Raises NoSpace, or Internal when the file cannot be written."""
        with self._writing:
            self._write(record)

    def write_unless_doubted(self, record: Record, known: frozenset[tuple[str, str]]) -> bool:
        """As `write`, unless one of its copies was found damaged (`doubts`) and was not `known` to be; whether it did.

        In one step with `distrust`: the word that this record gives would be newer than the one that was taken back.
        """
        with self._writing:
            news = self.doubts() - known
            if any(pair in news for image in record.images for pair in zip(image.layers, image.stamps, strict=False)):
                return False
            self._write(record)
        return True

    def doubts(self) -> frozenset[tuple[str, str]]:
        """The copies of layers (id, stamp) that were found damaged by any record's word."""
        return frozenset(
            (layer_id, stamp.removeprefix(DISTRUSTED))
            for record in self.load_all().values()
            for image in record.images
            for layer_id, stamp in zip(image.layers, image.stamps, strict=False)
            if stamp.startswith(DISTRUSTED)
        )

    def _write(self, record: Record) -> None:
        path = self._path(record.deployment)
        content = print_record(record)
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(parents=True)
                files.sync_directory(self._directory.parent)
            files.write_durably(path, content)
        except OSError as error:
            raise unwritable(path, "written", error) from error

    def remove(self, key: str) -> None:
        """Forget the record of `key`, durably; nothing happens when there is none."""
        path = self._path(key)
        try:
            path.unlink()
            files.sync_directory(self._directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise unwritable(path, "removed", error) from error

    def vouched(self, layers: Mapping[str, StoredLayer] | None = None) -> frozenset[str]:
        """Ids of the layers that a record vouches for.

        With the store's `layers` only those are named that are still the copies the record saw: a layer that was
        removed and fetched again by somebody else may not be on disk yet.
        """
        records = self.load_all()
        for_records, for_layers, known = self._vouched
        # A read index never changes, so the same object says the same; records that were not read again are the same.
        if layers is for_layers and records == for_records:
            return known
        found = set()
        for record in records.values():
            for image in record.images:
                for place, layer_id in enumerate(image.layers):
                    stamp = image.stamps[place] if place < len(image.stamps) else None
                    if stamp is not None and stamp.startswith(DISTRUSTED):
                        continue
                    if layers is None or (layer_id in layers and stamp == layers[layer_id].created):
                        found.add(layer_id)
        self._vouched = (records, layers, frozenset(found))
        return self._vouched[2]

    def distrusted(self, layers: Mapping[str, StoredLayer]) -> frozenset[str]:
        """Ids of those of the store's `layers` whose copy was found damaged (`distrust`), by any record's word."""
        return frozenset(
            layer_id for layer_id, stamp in self.doubts() if layer_id in layers and stamp == layers[layer_id].created
        )

    def distrust(self, layers: Iterable[StoredLayer]) -> bool:
        """Let no record vouch for these copies any more, durably; whether any did. Raises what `write` does.

        Whoever reads such a layer again and finds it sound, or fetches it again, may record it as ever.
        """
        damaged = {layer.id: layer.created for layer in layers}
        found = False
        with self._writing:
            for record in self.load_all().values():
                images = tuple(_without(image, damaged) for image in record.images)
                if images != record.images:
                    self._write(replace(record, images=images))
                    found = True
        return found

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise LashdError(ErrorName.INVALID_ARGUMENT, f"{key!r} is not the name of a deployment.")
        return self._directory / f"{key}.json"

    def _look(self) -> dict[str, tuple[tuple[int, int, int], Record | str]]:
        seen: dict[str, tuple[tuple[int, int, int], Record | str]] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                key, dot, extension = entry.name.rpartition(".")
                # A leading dot: a new content that was never finished.
                if not dot or extension != "json" or not _KEY.fullmatch(key):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                mark = (status.st_ino, status.st_mtime_ns, status.st_size)
                known = self._seen.get(key)
                seen[key] = known if known and known[0] == mark else (mark, self._read(key))
        self._seen = seen
        return seen

    def _read(self, key: str) -> Record | str:
        path = self._directory / f"{key}.json"
        try:
            record = parse_record(files.read_small(path, _LIMIT))
        except (OSError, ValueError) as error:
            return f"The record {path} cannot be used and is ignored: {_why(error)}."
        if record.deployment != key:
            return f"The record {path} cannot be used and is ignored: it belongs to {record.deployment!r}."
        return record


def print_record(record: Record) -> bytes:
    """The content of the file of `record`. Raises ValueError for what `parse_record` would not take."""
    content = shape.shaped(_File, {"version": VERSION, **asdict(record)})
    return json.dumps(asdict(content), indent=1).encode() + b"\n"


def parse_record(content: bytes) -> Record:
    """The record in a file's content. Raises ValueError when it is none, or of a later version."""
    file = shape.from_json(_File, content)
    return Record(
        deployment=file.deployment,
        host_digest=file.host_digest,
        images=tuple(_recorded(image) for image in file.images),
        created=file.created,
        adopted=file.adopted,
    )


def _without(image: RecordedImage, damaged: Mapping[str, str]) -> RecordedImage:
    """`image` with the word taken back for the `damaged` copies (layer id → stamp)."""
    pairs = zip(image.layers, image.stamps, strict=False)
    stamps = tuple(DISTRUSTED + stamp if damaged.get(layer) == stamp else stamp for layer, stamp in pairs)
    return replace(image, stamps=stamps)


def _recorded(image: _Image) -> RecordedImage:
    return RecordedImage(**{each.name: getattr(image, each.name) for each in fields(image)})


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
