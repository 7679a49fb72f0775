# SPDX-License-Identifier: Apache-2.0
"""Is an image really there? Every regular file of every layer is compared with the layer's own tar, in the guest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence

from demo.host import Host
from tests.support.images import Image, LayerBlob

# Knows nothing of lashd: it reads the store's own index and the files, and asks podman whether it can read them too.
_COMPARE = """
import hashlib, json, subprocess, sys
from pathlib import Path

root = Path("/usr/lib/bootc/storage").resolve()
layers = json.loads((root / "overlay-layers/layers.json").read_text())
by_diff = {layer.get("diff-digest"): layer["id"] for layer in layers}
digests = {image.get("digest") for image in json.loads((root / "overlay-images/images.json").read_text())}
wanted = json.loads(sys.stdin.read())
wrong = []
for digest, layers in wanted:
    if digest not in digests:
        wrong.append(f"no image {digest[:19]}")
    for diff, files in layers:
        if diff not in by_diff:
            wrong.append(f"no layer {diff[:19]}")
            continue
        for path, content in files.items():
            try:
                found = hashlib.sha256((root / "overlay" / by_diff[diff] / "diff" / path).read_bytes()).hexdigest()
            except OSError as error:
                found = str(error)
            if found != content:
                wrong.append(f"{path} of layer {diff[:19]}: {found[:60]}")
argv = ["podman", "--storage-opt=additionalimagestore=/usr/lib/bootc/storage", "images", "--format=json", "--digests"]
ran = subprocess.run(argv, capture_output=True, text=True)
try:
    seen = {image.get("Digest") for image in json.loads(ran.stdout or "null") or []}
except ValueError:
    seen = set()
for digest, _layers in wanted:
    if digest not in seen:
        wrong.append(f"podman does not see {digest[:19]}: {ran.stderr[-200:]}")
print(json.dumps(wrong))
"""


def damage(host: Host, images: Sequence[Image]) -> list[str]:
    """What is wrong with `images` in the store of `host`, a sentence each; empty when every byte is there."""
    wanted = [[image.digest, [[layer.diff_id, contents(layer)] for layer in image.layers]] for image in images]
    script = ["python3", "-c", _COMPARE]
    done = host.run(*script, input=json.dumps(wanted).encode(), check=False, timeout=120)
    if done.status != 0:
        return [f"the store cannot be read: {done.errors[-300:]}"]
    found: list[str] = json.loads(done.output)
    return found


def contents(layer: LayerBlob) -> dict[str, str]:
    """Path → sha256 of the content, of every regular file in `layer`."""
    blob = gzip.decompress(layer.blob) if layer.compression == "gzip" else layer.blob
    found = {}
    with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                found[member.name.removeprefix("./")] = hashlib.sha256(file.read()).hexdigest()
    return found
