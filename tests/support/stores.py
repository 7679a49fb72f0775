# SPDX-License-Identifier: Apache-2.0
"""Real stores, filled by the real skopeo from images built in memory; and what may happen to a store.

store = make_store(tmp_path)
put(store, image, "quay.io/edge/agent:v1")
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lashd.things.store import Store, StoredImage
from lashd.words.reference import parse_reference
from lashd.words.run import environment, writable
from tests.support.images import Image, Index


def make_store(directory: Path) -> Store:
    """A store that is not there yet, in a sysroot that is a plain directory."""
    sysroot = directory / "sysroot"
    return Store(sysroot / "ostree/bootc/storage", directory / "run", sysroot)


def put(store: Store, image: Image | Index, *names: str, check: bool = True) -> str:
    """Copy `image` into the store under each of `names`. Returns what skopeo said on stderr."""
    store.sysroot.mkdir(parents=True, exist_ok=True)
    said = ""
    for name in names:
        with tempfile.TemporaryDirectory(dir=store.sysroot.parent) as folder:
            argv = ["skopeo", "copy", "--quiet", f"oci:{layout(image, Path(folder))}", store.spec(name)]
            ended = subprocess.run(
                writable(store.sysroot, argv), env=environment(), capture_output=True, text=True, check=False
            )
        said += ended.stderr
        assert not check or ended.returncode == 0, ended.stderr
    return said


def layout(image: Image | Index, folder: Path) -> Path:
    """Write `image` as an OCI layout of its own."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    for each in image.images if isinstance(image, Index) else (image,):
        for digest, content in (each.blobs | {each.digest: each.manifest}).items():
            (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    (blobs / image.digest.removeprefix("sha256:")).write_bytes(image.manifest)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    entry = {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest)}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return folder


def podman_remove(store: Store, image_id: str, *more: str) -> None:
    """As bootc's clean-up does: podman's run directory is known to it as a descriptor only."""
    store.run_root.mkdir(exist_ok=True)
    script = (
        'exec 3<"$0" && exec podman --root "$1" --runroot /proc/self/fd/3 --storage-driver overlay image rm "${@:2}"'
    )
    argv = ["bash", "-c", script, str(store.run_root), str(store.root), *more, image_id]
    ended = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def stored(store: Store, name: str) -> StoredImage:
    found = store.index().image_named(parse_reference(name))
    assert found is not None, f"{name} is not in the store"
    return found


def layer_file(store: Store, name: str, path: str) -> Path:
    """The file `path` of the topmost layer of `name` that has it."""
    chain = store.index().chain(stored(store, name))
    assert chain is not None
    found = [store.root / "overlay" / layer.id / "diff" / path for layer in chain]
    return next(each for each in found if each.is_symlink() or each.exists())


def remove_layer_directory(store: Store, name: str, depth: int = 0) -> str:
    """Lose the directory of a layer, `depth` below the top. Returns the layer's id."""
    chain = store.index().chain(stored(store, name))
    assert chain is not None
    shutil.rmtree(store.root / "overlay" / chain[depth].id)
    return chain[depth].id


def edit_index(store: Store, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change `images` or `layers` of the index in place, as no program would."""
    path = store.root / f"overlay-{name}/{name}.json"
    entries = json.loads(path.read_text())
    changed = change(entries)
    path.write_text(json.dumps(entries if changed is None else changed))
