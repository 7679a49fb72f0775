# SPDX-License-Identifier: Apache-2.0
"""The bound image store, written: by skopeo, each time in a private mount namespace in which the sysroot is writable.

podman's own database in the store belongs to whoever made the store with podman, so podman is never asked. Nothing
here edits the index by hand: what skopeo has no word for is put in words that it has.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lashd.things.failures import explain
from lashd.things.store_index import (
    ANCHOR,
    NOTHING,
    NOTHING_ID,
    DamagedIndex,
    StoredImage,
    StoredLayer,
    config_of,
    made_up_config,
)
from lashd.words.errors import ErrorName, LashdError
from lashd.words.reference import Reference
from lashd.words.run import Completed, run, writable

if TYPE_CHECKING:
    from lashd.things.store import Store

# Removing an image may mean to unlink a hundred thousand files on a slow disk.
_TIMEOUT_SECONDS = 900.0

# Below the store: layers that were removed while they were in use, by boot. Nobody but lashd looks there.
_ASIDE = "lashd-aside"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Everyone who names an additional store opens these; on a read-only filesystem nobody could create them.
_LOCKS = ("storage.lock", "overlay-images/images.lock", "overlay-layers/layers.lock")
_ENSURE = (
    'mkdir -p "$(dirname "$0")" && umask 077 && mkdir -p "$0" "$0/overlay/l" "$0/overlay-images" "$0/overlay-layers" '
    f'&& chmod 700 "$0" && cd "$0" && touch -a {" ".join(_LOCKS)}'
)

_ACCEPT = [{"type": "insecureAcceptAnything"}]

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"

# A layer that nobody has.
_NOWHERE = f"sha256:{'0' * 64}"


async def ensure(store: Store) -> None:
    """Create the store, or what is missing of it. Raises UnsupportedHost where another driver than overlay made it."""
    present = {path.name for path in store.root.iterdir()} if store.root.is_dir() else set()
    others = sorted(name for name in present if name.endswith("-images") and name != "overlay-images")
    if others and "overlay-images" not in present:
        driver = others[0].removesuffix("-images")
        raise LashdError(
            ErrorName.UNSUPPORTED_HOST,
            f"The bound image store {store.root} was made with the storage driver '{driver}'; lashd can use only "
            f"'overlay'. Make the store anew with overlay.",
        )
    if all((store.root / name).exists() for name in _LOCKS) and (store.root / "overlay/l").is_dir():
        return
    done = await run(writable(store.sysroot, ["sh", "-c", _ENSURE, os.fspath(store.root)]), timeout=_TIMEOUT_SECONDS)
    _check(done, f"Creating the bound image store {store.root}")


async def remove(store: Store, image: StoredImage) -> None:
    # By id: a name may have moved to another image since the index was read, or the image may have no name at all.
    done = await _skopeo(store, ["delete", store.spec(f"@{image.id}")])
    if done.status != 0 and any(other.id == image.id for other in store.index().images):
        name = image.names[0] if image.names else image.id
        _check(done, f"Removing the image {name} from the bound image store")


async def remove_layer(store: Store, layer: StoredLayer) -> None:
    for top in store.index().orphans_on(frozenset({layer.id})):
        await _remove_orphan(store, top)


async def tidy(store: Store) -> None:
    # Done by any removal, under the lock that a writer of layers holds.
    with _made_up(NOTHING, ()) as folder, _policy({"dir": {"": _ACCEPT}}) as policy:
        copy = ["--policy", policy.path, "copy", "--quiet", f"dir:{folder}", store.spec(f"@{NOTHING_ID}")]
        done = await _skopeo(store, copy, policy.descriptors)
    _check(done, f"Cleaning up the bound image store {store.root}")
    await remove(store, StoredImage(NOTHING_ID, "", (), None, frozenset()))


async def give_name(store: Store, image_ref: Reference, name: Reference) -> None:
    """Raises StoreDamaged when the image is not there, else what the failure table says."""
    with _policy(own_sources(store)) as policy:
        copy = ["--policy", policy.path, "copy", "--quiet", store.spec(str(image_ref)), store.spec(str(name))]
        done = await _skopeo(store, copy, policy.descriptors)
    _check(done, f"Giving the name {name} to the image {image_ref} in the bound image store")


async def drop_name(store: Store, image: StoredImage, name: Reference) -> bool:
    """skopeo knows no word for this: another image takes the name, one of nothing, and is removed with it."""
    holder = store.index().image_named(name)
    if holder is None or holder.id != image.id or len(holder.names) < 2:
        return False
    with _made_up(NOTHING, ()) as folder, _policy({"dir": {"": _ACCEPT}}) as policy:
        copy = ["--policy", policy.path, "copy", "--quiet", f"dir:{folder}", store.spec(str(name))]
        done = await _skopeo(store, copy, policy.descriptors)
    _check(done, f"Taking the name {name} away in the bound image store")
    await remove(store, StoredImage(NOTHING_ID, "", (str(name),), None, frozenset()))
    return True


def own_sources(store: Store) -> dict[str, Any]:
    """What a policy accepts so that images of `store`, and of no other place, can be copied."""
    return {"containers-storage": {f"[overlay@{store.root.resolve()}]": _ACCEPT}}


async def set_aside_damaged(store: Store) -> tuple[Path, ...]:
    aside: list[Path] = []
    for _ in range(3):  # at most once for each index file
        try:
            store.index()
            break
        except DamagedIndex as error:
            target = error.path.with_name(f"{error.path.name}.damaged-{time.time_ns()}")
            move = ["mv", "--no-target-directory", "--", os.fspath(error.path), os.fspath(target)]
            done = await run(writable(store.sysroot, move), timeout=_TIMEOUT_SECONDS)
            _check(done, f"Setting the damaged index {error.path} aside")
            aside.append(target)
    return tuple(aside)


async def set_aside_layers(store: Store, layers: Iterable[str]) -> None:
    # Where a mount stands on a directory, it goes on to do so wherever that is moved on its filesystem.
    moved = [os.fspath(path) for each in sorted(layers) if (path := store.root / "overlay" / each).is_dir()]
    if not moved:
        return
    # The same layer may go twice in a boot.
    target = store.root / _ASIDE / _BOOT_ID.read_text().strip() / str(time.time_ns())
    move = ["sh", "-c", 'umask 077 && mkdir -p "$0" && mv -- "$@" "$0"', os.fspath(target), *moved]
    done = await run(writable(store.sysroot, move), timeout=_TIMEOUT_SECONDS)
    _check(done, f"Setting layers of the bound image store {store.root} aside that are in use")


async def drop_set_aside(store: Store) -> None:
    try:
        found = list((store.root / _ASIDE).iterdir())
    except OSError:
        return
    boot = _BOOT_ID.read_text().strip()
    gone = [os.fspath(path) for path in found if path.name != boot]
    if gone:
        argv = writable(store.sysroot, ["rm", "-r", "-f", "--", *gone])
        _check(await run(argv, timeout=_TIMEOUT_SECONDS), f"Cleaning up the bound image store {store.root}")


async def anchor(store: Store, image: StoredImage) -> bool:
    """skopeo makes images only. So one is made of the image's layers, the anchor, and a last layer that is nowhere: all
    but that is finished, and what was finished stays."""
    index = store.index()
    chain = index.chain(image)
    if not chain or not all(layer.uncompressed_digest for layer in chain):
        return False
    if chain[0].id in index.anchored():
        return True
    blobs = [*_blobs(chain), (ANCHOR, len(_anchor())), (_NOWHERE, 1)]
    diff_ids = [layer.uncompressed_digest for layer in reversed(chain)]
    config = config_of([*diff_ids, ANCHOR, _NOWHERE])
    with _made_up(config, blobs, [_anchor()]) as folder, _policy({"dir": {"": _ACCEPT}}) as policy:
        name = store.spec(f"@{hashlib.sha256(config).hexdigest()}")
        done = await _skopeo(
            store, ["--policy", policy.path, "copy", "--quiet", f"dir:{folder}", name], policy.descriptors
        )
    if chain[0].id not in store.index().anchored():
        _check(done, f"Keeping the layers of {image.names[0] if image.names else image.id} in the bound image store")
        return False
    return True


async def bring_back(store: Store, folder: Path, name: Reference, platform: Sequence[str]) -> None:
    with _policy({"dir": {"": _ACCEPT}}) as policy:
        copy = [*platform, "--policy", policy.path, "copy", "--quiet", f"dir:{folder}", store.spec(str(name))]
        done = await _skopeo(store, copy, policy.descriptors)
    _check(done, f"Bringing back {name}, whose layers are in the bound image store")


def _anchor() -> bytes:
    """The archive that `ANCHOR` is the digest of: one empty file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(".lashd-anchor"))
    return content.getvalue()


def _blobs(chain: Sequence[StoredLayer]) -> list[tuple[str, int]]:
    """The layers of `chain` (topmost first) as a manifest lists them: what the index has by them is not fetched."""
    return [
        (str(layer.compressed_digest or layer.uncompressed_digest), layer.compressed_size) for layer in reversed(chain)
    ]


async def _remove_orphan(store: Store, top: StoredLayer) -> None:
    """Remove `top` and what it stands on, as far as nothing else does.

    skopeo removes images only. So an image is made of exactly these layers, for which nothing is fetched or unpacked
    because the index has them all, and then removed with its layers.
    """
    index = store.index()
    chain = index.chain_from(top.id)
    if chain is None or not all(layer.uncompressed_digest for layer in chain):
        raise LashdError(
            ErrorName.STORE_DAMAGED,
            f"The layer {top.id} of the bound image store {store.root} is damaged and cannot be removed, because the "
            f"index does not say what it stands on; remove the store, and run 'lashctl bind'.",
        )
    config = made_up_config(chain)
    with _made_up(config, _blobs(chain)) as folder, _policy({"dir": {"": _ACCEPT}}) as policy:
        config_id = hashlib.sha256(config).hexdigest()
        copy = ["--policy", policy.path, "copy", "--quiet", f"dir:{folder}", store.spec(f"@{config_id}")]
        done = await _skopeo(store, copy, policy.descriptors)
    _check(done, f"Removing the layer {top.id} from the bound image store")
    done = await _skopeo(store, ["delete", store.spec(f"@{config_id}")])
    _check(done, f"Removing the layer {top.id} from the bound image store")


@contextmanager
def _made_up(config: bytes, blobs: Sequence[tuple[str, int]], present: Sequence[bytes] = ()) -> Iterator[str]:
    """A directory that skopeo takes for an image with this configuration and these layers (digest, size).

    Of them only the content of those that are `present` is in it.
    """
    config_id = hashlib.sha256(config).hexdigest()
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": _descriptor(_CONFIG_TYPE, f"sha256:{config_id}", len(config)),
        "layers": [_descriptor(_LAYER_TYPE, digest, max(size, 0)) for digest, size in blobs],
    }
    with tempfile.TemporaryDirectory(prefix="lashd-") as folder:
        Path(folder, "version").write_text("Directory Transport Version: 1.1\n")
        Path(folder, "manifest.json").write_text(json.dumps(manifest))
        for content in (config, *present):
            Path(folder, hashlib.sha256(content).hexdigest()).write_bytes(content)
        yield folder


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


class _Policy:
    def __init__(self, descriptor: int) -> None:
        self.path = f"/proc/self/fd/{descriptor}"
        self.descriptors = (descriptor,)


@contextmanager
def _policy(accepted: dict[str, Any]) -> Iterator[_Policy]:
    """A signature policy that accepts these sources and no others, as a file without a name.

    The host's own policy is for what comes from outside, and it may well reject everything that a registry did not
    sign: moving what is already in the store must work all the same, and must not open a way for anything else.
    """
    descriptor = os.memfd_create("policy.json", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, json.dumps({"default": [{"type": "reject"}], "transports": accepted}).encode())
        yield _Policy(descriptor)
    finally:
        os.close(descriptor)


async def _skopeo(store: Store, arguments: Sequence[str], descriptors: Sequence[int] = ()) -> Completed:
    argv = writable(store.sysroot, [store.skopeo, *arguments])
    return await run(argv, timeout=_TIMEOUT_SECONDS, pass_fds=descriptors)


def _check(done: Completed, what: str) -> None:
    """Raises the error for `what` (Removing …, Creating …) unless it was done."""
    if done.status != 0:
        raise explain("the store's writer", done.status, done.stderr, what)
