# SPDX-License-Identifier: Apache-2.0
"""Single files of an ostree host, read for what they say: commits, origins, boot entries. Nothing here fails."""

from __future__ import annotations

import configparser
import contextlib
import ctypes
import functools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lashd.things.gvariant import parse
from lashd.things.ostree import names
from lashd.words import files
from lashd.words.model import HostImage

DEPLOYMENT_NAME = re.compile(r"(?P<checksum>[0-9a-f]{64})\.(?P<serial>[0-9]{1,9})")
# In ostree's note of what is staged: the deployment whose local changes of /etc it will get.
MERGES = "merge-deployment"
COMMIT_TYPE = "(a{sv}aya(say)sstayay)"
_FILE_LIMIT = 16 * 1024 * 1024
_compare_versions = ctypes.CDLL(None).strverscmp


@dataclass(frozen=True, slots=True)
class CommitFacts:
    """What a commit says of the image it was made from; `layers` are its digests from the lowest up."""

    digest: str | None = None
    version: str | None = None
    timestamp: int | None = None
    layers: tuple[str, ...] = ()
    ours: bool = False  # a layer that lashd imported
    dropped: tuple[str, ...] = ()  # of an image: what ostree cannot hold


def read(path: Path) -> bytes:
    """The file's content, empty when it cannot be read or is no regular file of a sane size."""
    try:
        return files.read_regular(path, _FILE_LIMIT)[0]
    except (OSError, ValueError):
        return b""


@dataclass(frozen=True, slots=True)
class BootEntry:
    """A boot entry. `link` is its `ostree=` argument, `arguments` are all others, `initrds` the checksums of those that
    ostree lays over the deployment's own."""

    version: str = ""
    link: str = ""
    arguments: tuple[str, ...] = ()
    initrds: tuple[str, ...] = ()


def boot_entries(entries: Path) -> list[BootEntry]:
    """All boot entries of ostree's, the one that boots next first."""
    found: list[BootEntry] = []
    with contextlib.suppress(OSError):
        for entry in sorted(entries.iterdir()):
            if entry.name.startswith("ostree-") and entry.suffix == ".conf":
                found.append(_entry(read(entry).decode("utf-8", "replace")))
    return sorted(found, key=functools.cmp_to_key(_later_first))


def _later_first(one: BootEntry, other: BootEntry) -> int:
    """As libostree: the higher version first, entries without one last."""
    if one.version and other.version:
        return -int(_compare_versions(one.version.encode(), other.version.encode()))
    return bool(other.version) - bool(one.version)


def _entry(text: str) -> BootEntry:
    fields: dict[str, str] = {}
    initrds: list[str] = []
    for line in text.splitlines():
        key, _, value = line.strip().replace("\t", " ", 1).partition(" ")
        if key and not key.startswith("#"):
            fields[key] = value.strip()
        if key == "initrd" and "/initramfs-overlays/" in value:
            initrds.append(value.strip().rpartition("/")[2].removesuffix(".img"))
    options = fields.get("options", "").split()
    link = next((option[7:] for option in options if option.startswith("ostree=")), "")
    others = tuple(option for option in options if not option.startswith("ostree="))
    return BootEntry(fields.get("version", ""), link, others, tuple(initrds))


def parse_origin(text: str) -> tuple[HostImage | None, bool]:
    origin = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    with contextlib.suppress(configparser.Error):
        origin.read_string(text)
    pinned = origin.get("libostree-transient", "pinned", fallback="") == "true"
    try:
        reference, transport, signature = names.parse_origin_image(
            origin.get("origin", "container-image-reference", fallback="")
        )
    except ValueError:
        return None, pinned
    return HostImage(reference, transport, signature), pinned


def staged_name(deployment: Any) -> tuple[str, str]:
    """Stateroot and key of a deployment that ostree's note of what is staged names. Raises ValueError, KeyError."""
    stateroot, name = str(deployment["osname"]), str(deployment["name"])
    if "/" in stateroot or stateroot in ("", ".", "..") or not DEPLOYMENT_NAME.fullmatch(name):
        raise ValueError(f"no deployment is called {stateroot}/{name}")
    return stateroot, name


def staged_arguments(note: bytes) -> tuple[str, ...] | None:
    """The kernel arguments that ostree's `note` of what is staged gives it; None: those of the running system."""
    with contextlib.suppress(ValueError, TypeError):
        arguments = parse("a{sv}", note).get("kargs")
        return None if arguments is None else tuple(str(argument) for argument in arguments)
    return None


def staged_initrds(note: bytes) -> tuple[str, ...]:
    """The checksums of the initrds that ostree's `note` of what is staged lays over its own."""
    with contextlib.suppress(ValueError, TypeError):
        return tuple(str(checksum) for checksum in parse("a{sv}", note).get("overlay-initrds", ()))
    return ()


def staged_locked(note: bytes) -> bool:
    """Whether ostree's `note` of what is staged says itself that it is locked."""
    with contextlib.suppress(ValueError, TypeError):
        return parse("a{sv}", note).get("locked") is True
    return False


def commit_facts(data: bytes) -> CommitFacts:
    try:
        # Written by this machine's kind, but for the time: ostree's own numbers are big-endian everywhere.
        metadata, _, _, _, _, raw_time, _, _ = parse(COMMIT_TYPE, data)
        timestamp = int.from_bytes(raw_time.to_bytes(8, "big"), sys.byteorder)
    except (ValueError, TypeError):
        return CommitFacts()
    digest = _text(metadata.get(names.META_DIGEST))
    version = _text(metadata.get(names.META_VERSION)) or _version_label(_text(metadata.get(names.META_CONFIG)))
    layers = _manifest_layers(_text(metadata.get(names.META_MANIFEST)))
    dropped = metadata.get(names.META_DROPPED)
    listed = tuple(map(str, dropped)) if isinstance(dropped, list) else ()
    return CommitFacts(digest, version, timestamp, layers, names.META_LAYER in metadata, listed)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _version_label(config: str | None) -> str | None:
    with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError):
        labels = json.loads(config or "{}").get("config", {}).get("Labels", {})
        return _text(labels.get("org.opencontainers.image.version")) or _text(labels.get("version"))
    return None


def _manifest_layers(manifest: str | None) -> tuple[str, ...]:
    with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return tuple(str(layer["digest"]) for layer in json.loads(manifest or "{}").get("layers", ()))
    return ()
