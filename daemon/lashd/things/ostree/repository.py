# SPDX-License-Identifier: Apache-2.0
"""Layers and images in an ostree repository, by libostree. Runs in the worker only, under the system's interpreter."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gi

gi.require_version("OSTree", "1.0")
from gi.repository import Gio, GLib, OSTree  # noqa: E402  (the version has to be asked for first)

from lashd.things.gvariant import parse  # noqa: E402
from lashd.things.ostree import names  # noqa: E402
from lashd.things.ostree.blob import BlobSource, TarStream  # noqa: E402
from lashd.things.ostree.layertree import Owner  # noqa: E402
from lashd.things.ostree.layout import LayerWriter, to_ostree  # noqa: E402
from lashd.things.ostree.tarfilter import read_layer  # noqa: E402
from lashd.things.ostree.tree import Directory, LayerFacts, complete, kernels, merge  # noqa: E402
from lashd.words.errors import ErrorName, LashdError  # noqa: E402

# Smaller files go over in one call; libostree takes larger ones as a stream.
_INLINE_LIMIT = 512 * 1024
_NO_XATTRS = GLib.Variant("a(ayay)", [])


def open_repository(sysroot: Path) -> Any:
    """The sysroot's own repository. Raises GLib.Error when there is none."""
    repository = OSTree.Repo.new(Gio.File.new_for_path(str(sysroot / "ostree/repo")))
    repository.open(None)
    return repository


@contextmanager
def _transaction(repository: Any) -> Any:
    """What is written inside becomes visible, durably (libostree syncs the filesystem), or not at all."""
    repository.prepare_transaction(None)
    try:
        yield
        repository.commit_transaction(None)
    except BaseException:
        repository.abort_transaction(None)
        raise


class _Objects:
    """File objects, written as their content arrives."""

    def __init__(self, repository: Any) -> None:
        self._repository = repository

    def file(self, owner: Owner, size: int, content: Iterable[bytes]) -> str:
        mode = stat.S_IFREG | owner.mode
        facts = (owner.uid, owner.gid, mode)
        if size <= _INLINE_LIMIT:
            data = b"".join(content)
            checksum: str = self._repository.write_regfile_inline(None, *facts, _xattrs(owner), data, None)
            return checksum
        writer = self._repository.write_regfile(None, *facts, size, _xattrs(owner))
        for piece in content:
            writer.write_all(piece, None)
        return str(writer.finish(None))

    def symlink(self, owner: Owner, target: str) -> str:
        checksum: str = self._repository.write_symlink(None, owner.uid, owner.gid, _xattrs(owner), target, None)
        return checksum

    def directory(self, owner: Owner) -> str:
        """The checksum of a directory's metadata object."""
        mode = stat.S_IFDIR | owner.mode
        # ostree's numbers are big-endian on every machine.
        numbers = [int.from_bytes(number.to_bytes(4, "big"), sys.byteorder) for number in (owner.uid, owner.gid, mode)]
        meta = GLib.Variant.new_tuple(*(GLib.Variant("u", number) for number in numbers), _xattrs(owner))
        _, raw = self._repository.write_metadata(OSTree.ObjectType.DIR_META, None, meta, None)
        return bytes(raw).hex()


def _xattrs(owner: Owner) -> Any:
    if not owner.xattrs:
        return _NO_XATTRS
    return GLib.Variant("a(ayay)", [(name + b"\0", value) for name, value in owner.xattrs])


class _Sink:
    """A mutable tree as a place where a layer's tree is written."""

    def __init__(self, tree: Any, describe: Callable[[Owner], str]) -> None:
        self._tree = tree
        self._describe = describe

    def describe(self, owner: Owner) -> None:
        self._tree.set_metadata_checksum(self._describe(owner))

    def file(self, name: str, checksum: str) -> None:
        self._tree.replace_file(name, checksum)

    def directory(self, name: str) -> _Sink:
        return _Sink(self._tree.ensure_dir(name)[1], self._describe)


class _Described:
    """Metadata objects, each written once."""

    def __init__(self, objects: _Objects) -> None:
        self._objects = objects
        self._known: dict[Owner, str] = {}

    def __call__(self, owner: Owner) -> str:
        if owner not in self._known:
            self._known[owner] = self._objects.directory(owner)
        return self._known[owner]


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer to import: its blob's descriptor, and what its manifest says of it. `limit` bounds what it unpacks to."""

    descriptor: int
    digest: str
    size: int
    media_type: str
    limit: int
    progress: Callable[[int], None]


def import_layer(repository: Any, blob: Blob) -> tuple[str, LayerFacts]:
    """Write the layer as a commit under its ref; answers (commit checksum, facts). Nothing is kept of a bad layer.

    Raises LashdError (DigestMismatch, NoSpace, HostCommandFailed) and GLib.Error.
    """
    source = BlobSource(blob.descriptor, blob.digest, blob.size, blob.progress)
    with _transaction(repository):
        objects = _Objects(repository)
        try:
            root = read_layer(TarStream(source, blob.media_type, blob.limit), objects)
            to_ostree(root)
        except ValueError as error:
            # A transfer that broke off looks like a bad archive too: the digest tells which it was.
            source.verify()
            raise _not_importable(f"The layer {blob.digest}", error) from error
        # Everything so far came from whoever answered. Only now it is known to be what the manifest names.
        source.verify()
        tree = OSTree.MutableTree.new()
        empty = objects.file(Owner(0o644), 0, ())
        facts = LayerWriter(empty).write(root, _Sink(tree, _Described(objects)))
        metadata = {names.META_LAYER: GLib.Variant("ay", facts.pack())}
        commit = _commit(repository, tree, metadata, 0)
        repository.transaction_set_ref(None, names.layer_ref(blob.digest), commit)
    return commit, facts


def _not_importable(what: str, error: Exception) -> LashdError:
    return LashdError(
        ErrorName.HOST_COMMAND_FAILED,
        f"{what} cannot be imported: {error}. Build the host image without it.",
        retryable=False,
    )


def _commit(repository: Any, tree: Any, metadata: dict[str, Any], timestamp: int) -> str:
    _, root = repository.write_mtree(tree, None)
    _, commit = repository.write_commit_with_time(
        None, None, None, GLib.Variant("a{sv}", metadata), root, timestamp, None
    )
    return str(commit)


@dataclass(frozen=True, slots=True)
class Image:
    """What is to be merged: layers from the lowest to the topmost, and what the image says of itself."""

    transport: str
    reference: str
    digest: str
    layers: Sequence[str]
    manifest: str
    config: str
    version: str
    timestamp: int


def merge_image(repository: Any, image: Image) -> tuple[str, list[str]]:
    """Merge imported layers into one commit under the image's ref; answers (commit checksum, what was dropped).

    The same image gives the same commit. Raises LashdError (HostCommandFailed) and GLib.Error.
    """

    def load(contents: str) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
        _, variant = repository.load_variant(OSTree.ObjectType.DIR_TREE, contents)
        files, dirs = parse("(a(say)a(sayay))", variant.get_data_as_bytes().get_data())
        return (
            {name: checksum.hex() for name, checksum in files},
            {name: (tree.hex(), meta.hex()) for name, tree, meta in dirs},
        )

    root = Directory()
    dropped: list[str] = []
    for digest in image.layers:
        layer, facts = _read_layer(repository, digest)
        try:
            merge(root, layer, facts, load)
        except ValueError as error:
            raise _not_importable(f"The host image {image.reference} with layer {digest}", error) from error
        dropped += facts.dropped
    if not any(kernels(root, load)):
        raise LashdError(
            ErrorName.HOST_COMMAND_FAILED,
            f"The image {image.reference} has no kernel (/usr/lib/modules/VERSION/vmlinuz), so it cannot be "
            "booted; is it really a host image?",
            retryable=False,
        )
    with _transaction(repository):
        objects = _Objects(repository)
        complete(
            root,
            meta=objects.directory(Owner(0o755)),
            sticky=objects.directory(Owner(0o1777)),
            ostree_link=objects.symlink(Owner(0o777), "sysroot/ostree"),
            load=load,
        )
        tree = OSTree.MutableTree.new()
        # The place for SELinux: a host with a policy would label every object here, by the tree's own policy.
        _fill(repository, tree, root)
        texts = {
            names.META_DIGEST: image.digest,
            names.META_MANIFEST: image.manifest,
            names.META_CONFIG: image.config,
            names.META_VERSION: image.version,
        }
        metadata = {key: GLib.Variant("s", text) for key, text in texts.items() if text}
        metadata[names.META_DROPPED] = GLib.Variant("as", dropped)
        commit = _commit(repository, tree, metadata, image.timestamp)
        repository.transaction_set_ref(None, names.image_ref(image.transport, image.reference), commit)
    return commit, dropped


def _read_layer(repository: Any, digest: str) -> tuple[Directory, LayerFacts]:
    _, commit = repository.resolve_rev(names.layer_ref(digest), False)
    _, variant, _ = repository.load_commit(commit)
    facts = variant.get_child_value(0).lookup_value(names.META_LAYER, GLib.VariantType("ay"))
    if facts is None:
        raise LashdError(ErrorName.HOST_COMMAND_FAILED, f"The layer {digest} was not imported by lashd.")
    contents, meta = (bytes(variant.get_child_value(at).get_data_as_bytes().get_data()).hex() for at in (6, 7))
    return Directory(meta, contents), LayerFacts.unpack(facts.get_data_as_bytes().get_data())


def _fill(repository: Any, tree: Any, directory: Directory) -> None:
    """Write `directory` into the empty `tree`; what no layer has touched is handed over whole, unread."""
    if directory.contents is not None:
        tree.fill_empty_from_dirtree(repository, directory.contents, directory.meta)
        return
    files, dirs = directory.known
    tree.set_metadata_checksum(directory.meta)
    for name, checksum in files.items():
        tree.replace_file(name, checksum)
    for name, child in dirs.items():
        _fill(repository, tree.ensure_dir(name)[1], child)
