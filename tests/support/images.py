# SPDX-License-Identifier: Apache-2.0
"""Synthetic container images, built in memory and always the same for the same arguments.

shared = files({"usr/lib/base": b"…"})
image = build([shared, random_bytes(5_000_000, seed=1)], cmd=["/bin/agent"])
index = build_index([build(…, arch="amd64"), build(…, arch="arm64")])
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lashd.things import platform

Compression = Literal["gzip", "zstd", "none"]
Kind = Literal["oci", "docker"]

_LAYER_TYPES = {
    ("oci", "gzip"): "application/vnd.oci.image.layer.v1.tar+gzip",
    ("oci", "zstd"): "application/vnd.oci.image.layer.v1.tar+zstd",
    ("oci", "none"): "application/vnd.oci.image.layer.v1.tar",
    ("docker", "gzip"): "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ("docker", "none"): "application/vnd.docker.image.rootfs.diff.tar",
}
_CONFIG_TYPES = {
    "oci": "application/vnd.oci.image.config.v1+json",
    "docker": "application/vnd.docker.container.image.v1+json",
}
_MANIFEST_TYPES = {
    "oci": "application/vnd.oci.image.manifest.v1+json",
    "docker": "application/vnd.docker.distribution.manifest.v2+json",
}
_INDEX_TYPES = {
    "oci": "application/vnd.oci.image.index.v1+json",
    "docker": "application/vnd.docker.distribution.manifest.list.v2+json",
}


@dataclass(frozen=True)
class Link:
    """A symbolic link, as the content of a path."""

    target: str


@dataclass(frozen=True)
class Program:
    """An executable file, as the content of a path."""

    content: bytes


Content = bytes | str | Link | Program | None  # None: an empty directory


@dataclass(frozen=True)
class LayerBlob:
    """A layer: `blob` is what crosses the line (compressed), `diff_id` the digest of the tar stream in it."""

    blob: bytes = field(repr=False)
    diff_id: str
    compression: Compression
    size: int  # of the tar stream

    @cached_property
    def digest(self) -> str:
        return digest_of(self.blob)


@dataclass(frozen=True)
class Image:
    """One image for one platform: everything a registry needs. `layers` lists digests and sizes, lowest first."""

    manifest: bytes = field(repr=False)
    media_type: str
    config: bytes = field(repr=False)
    layers: tuple[LayerBlob, ...]
    arch: str
    variant: str = ""
    os: str = "linux"

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def config_digest(self) -> str:
        return digest_of(self.config)

    @property
    def image_id(self) -> str:
        """64 hex digits, as containers-storage names the image."""
        return self.config_digest.removeprefix("sha256:")

    @property
    def blobs(self) -> dict[str, bytes]:
        return {self.config_digest: self.config} | {layer.digest: layer.blob for layer in self.layers}


@dataclass(frozen=True)
class Index:
    """An image index (manifest list) and the images it lists."""

    manifest: bytes = field(repr=False)
    media_type: str
    images: tuple[Image, ...]

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def files(tree: Mapping[str, Content], *, compression: Compression = "gzip", level: int = 1) -> LayerBlob:
    """A layer with the given files; missing parent directories are made. Owner root, time 0."""
    return layer(tar(tree), compression=compression, level=level)


def random_bytes(
    size: int, seed: int, *, path: str = "", count: int = 1, compression: Compression = "gzip"
) -> LayerBlob:
    """A layer of `count` files that together have `size` bytes which do not compress."""
    generator = random.Random(seed)
    base = path or f"opt/data-{seed}"
    tree: dict[str, Content] = {f"{base}/{number}": generator.randbytes(size // count) for number in range(count)}
    # Nothing is gained by squeezing noise: level 0 keeps large images quick to build.
    return files(tree, compression=compression, level=0 if compression == "gzip" else 1)


def tar(tree: Mapping[str, Content]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        made: set[str] = set()
        for path in sorted(tree):
            name, content = path.strip("/"), tree[path]
            parents = [str(parent) for parent in reversed(Path(name).parents) if str(parent) != "."]
            for directory in [*parents, name] if content is None else parents:
                if directory not in made:
                    made.add(directory)
                    info = tarfile.TarInfo(directory)
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(info)
            if content is None:
                continue
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            if isinstance(content, Link):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, content.target, 0o777
                archive.addfile(info)
                continue
            if isinstance(content, Program):
                info.mode, content = 0o755, content.content
            data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def layer(tar_stream: bytes, *, compression: Compression = "gzip", level: int = 1) -> LayerBlob:
    """A layer from the bytes of a tar archive (or from anything else, for a broken one)."""
    if compression == "gzip":
        blob = gzip.compress(tar_stream, compresslevel=level, mtime=0)
    elif compression == "zstd":
        argv = ["zstd", "--quiet", "--stdout", f"-{level or 1}"]
        blob = subprocess.run(argv, input=tar_stream, check=True, capture_output=True).stdout
    else:
        blob = tar_stream
    return LayerBlob(blob, digest_of(tar_stream), compression, len(tar_stream))


def build(
    layers: Sequence[LayerBlob | Mapping[str, Content] | bytes],
    *,
    arch: str = "",
    variant: str = "",
    os: str = "linux",
    kind: Kind = "oci",
    cmd: Sequence[str] = (),
    env: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    created: str = "2026-01-01T00:00:00Z",
) -> Image:
    """An image of `layers`, lowest first: layers, {path: content} dicts, or bytes (one file with them).

    `arch` is a GOARCH name, this machine's when empty.
    """
    made = tuple(_layer(number, given) for number, given in enumerate(layers))
    arch = arch or platform.architecture()
    config: dict[str, Any] = {
        "created": created,
        "architecture": arch,
        "os": os,
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", *env]},
        "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in made]},
        "history": [{"created": created, "created_by": f"layer {number}"} for number in range(len(made))],
    }
    if variant:
        config["variant"] = variant
    if cmd:
        config["config"]["Cmd"] = list(cmd)
    if labels:
        config["config"]["Labels"] = dict(labels)
    raw_config = _json(config)
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPES[kind],
        "config": {"mediaType": _CONFIG_TYPES[kind], "digest": digest_of(raw_config), "size": len(raw_config)},
        "layers": [
            {"mediaType": _LAYER_TYPES[kind, each.compression], "digest": each.digest, "size": len(each.blob)}
            for each in made
        ],
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    return Image(_json(manifest), _MANIFEST_TYPES[kind], raw_config, made, arch, variant, os)


def build_index(images: Sequence[Image], *, kind: Kind = "oci") -> Index:
    """An index that lists `images` in the given order."""
    entries = []
    for image in images:
        platform_entry = {"architecture": image.arch, "os": image.os}
        if image.variant:
            platform_entry["variant"] = image.variant
        entries.append(
            {
                "mediaType": image.media_type,
                "digest": image.digest,
                "size": len(image.manifest),
                "platform": platform_entry,
            }
        )
    raw = _json({"schemaVersion": 2, "mediaType": _INDEX_TYPES[kind], "manifests": entries})
    return Index(raw, _INDEX_TYPES[kind], tuple(images))


def _layer(number: int, given: LayerBlob | Mapping[str, Content] | bytes) -> LayerBlob:
    if isinstance(given, LayerBlob):
        return given
    return files({f"layer-{number}": given} if isinstance(given, bytes) else given)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
