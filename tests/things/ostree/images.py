# SPDX-License-Identifier: Apache-2.0
"""Host images made by hand: layers entry by entry, packed as an OCI layout on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION_LABEL = "org.opencontainers.image.version"


@dataclass(frozen=True)
class Entry:
    """One tar entry; `type_` as in tarfile, `data` a file's content."""

    name: str
    type_: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str = ""
    xattrs: dict[str, str] = field(default_factory=dict)


def file(name: str, data: str | bytes = "", mode: int = 0o644, **more: Any) -> Entry:
    return Entry(name, data=data.encode() if isinstance(data, str) else data, mode=mode, **more)


def folder(name: str, mode: int = 0o755, **more: Any) -> Entry:
    return Entry(name, tarfile.DIRTYPE, mode=mode, **more)


def symlink(name: str, link: str, **more: Any) -> Entry:
    return Entry(name, tarfile.SYMTYPE, mode=0o777, link=link, **more)


def hardlink(name: str, link: str) -> Entry:
    return Entry(name, tarfile.LNKTYPE, link=link)


def special(name: str, type_: bytes = tarfile.CHRTYPE) -> Entry:
    return Entry(name, type_)


def whiteout(name: str) -> Entry:
    head, _, tail = name.rpartition("/")
    return file(f"{head}/.wh.{tail}" if head else f".wh.{tail}")


def opaque(name: str) -> Entry:
    return file(f"{name}/.wh..wh..opq")


def tar(entries: Sequence[Entry]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.type, member.mode, member.linkname = entry.type_, entry.mode, entry.link
            member.uid, member.gid, member.size = entry.uid, entry.gid, len(entry.data)
            member.devmajor, member.devminor = 1, 3
            member.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in entry.xattrs.items()}
            archive.addfile(member, io.BytesIO(entry.data))
    return out.getvalue()


def pack(data: bytes, how: str) -> tuple[bytes, str]:
    """The blob and its media type."""
    media = "application/vnd.oci.image.layer.v1.tar"
    if how == "gzip":
        return gzip.compress(data, 1, mtime=0), media + "+gzip"
    if how == "zstd":
        return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout, media + "+zstd"
    return data, media


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# The least that makes a root bootable for ostree.
BASE = (
    folder("usr"),
    folder("usr/lib"),
    folder("usr/lib/modules"),
    folder("usr/lib/modules/6.1"),
    file("usr/lib/modules/6.1/vmlinuz", "kernel"),
    file("usr/lib/modules/6.1/initramfs.img", "initramfs"),
    file("usr/lib/os-release", "ID=test\n"),
    folder("etc"),
    file("etc/hostname", "host\n"),
)

Layer = Sequence[Entry] | bytes


def write_image(
    layout: Path,
    tag: str,
    layers: Sequence[Layer],
    *,
    version: str = "1",
    packing: Sequence[str] = ("gzip",),
    created: str = "2026-01-02T03:04:05Z",
) -> str:
    """Add an image to the OCI layout in `layout`; answers its manifest digest."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes) -> str:
        digest = sha256(data)
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return digest

    descriptors, diffs = [], []
    for number, layer in enumerate(layers):
        plain = layer if isinstance(layer, bytes) else tar(layer)
        blob, media = pack(plain, packing[number % len(packing)])
        diffs.append(sha256(plain))
        descriptors.append({"mediaType": media, "digest": put(blob), "size": len(blob)})
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": created,
            "config": {"Labels": {VERSION_LABEL: version}},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": put(config),
                "size": len(config),
            },
            "layers": descriptors,
        }
    ).encode()
    digest = put(manifest)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index_path = layout / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {"schemaVersion": 2, "manifests": []}
    others = [m for m in index["manifests"] if m["annotations"]["org.opencontainers.image.ref.name"] != tag]
    new = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": len(manifest),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    index_path.write_text(json.dumps({**index, "manifests": [*others, new]}))
    return digest
