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
index = json.loads((root / "overlay-layers/layers.json").read_text())
by_id = {layer["id"]: layer for layer in index}
images = {image.get("digest"): image for image in json.loads((root / "overlay-images/images.json").read_text())}
wanted = json.loads(sys.stdin.read())
wrong = []
for digest, layers in wanted:
    if digest not in images:
        wrong.append(f"no image {digest[:19]}")
        continue
    # The very layers that the image stands on: there may be others with the same content.
    chain, place = {}, images[digest].get("layer", "")
    while place in by_id:
        chain[by_id[place].get("diff-digest")] = place
        place = by_id[place].get("parent", "")
    for diff, files in layers:
        if diff not in chain:
            wrong.append(f"no layer {diff[:19]} below {digest[:19]}")
            continue
        for path, content in files.items():
            try:
                found = hashlib.sha256((root / "overlay" / chain[diff] / "diff" / path).read_bytes()).hexdigest()
            except OSError as error:
                found = str(error)
            if found != content:
                wrong.append(f"{path} of layer {diff[:19]}: {found[:60]}")

def podman(*argv):
    store = "--storage-opt=additionalimagestore=/usr/lib/bootc/storage"
    return subprocess.run(["podman", store, *argv], capture_output=True, text=True)

# Not only those that are wanted: a store that podman cannot read keeps every container from starting.
ran = podman("images", "--format=json", "--digests")
try:
    seen = {image.get("Digest") for image in json.loads(ran.stdout)}
except (ValueError, TypeError):
    seen = set()
if ran.returncode or not seen:
    wrong.append(f"podman cannot read the store: {ran.stderr[-300:]}")
for digest, _layers in wanted:
    if digest not in seen:
        wrong.append(f"podman does not see {digest[:19]}: {ran.stderr[-200:]}")
ids = [images[digest]["id"] for digest, _layers in wanted if digest in images]
if ids and (ran := podman("image", "inspect", *ids)).returncode:
    wrong.append(f"podman cannot inspect what is bound: {ran.stderr[-300:]}")
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
