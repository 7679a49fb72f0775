# SPDX-License-Identifier: Apache-2.0
"""Changes to the list of deployments, by libostree and under its own lock. Runs in the worker only."""

from __future__ import annotations

import contextlib
import json
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gi

gi.require_version("OSTree", "1.0")
from gi.repository import Gio, GLib, OSTree  # noqa: E402  (the version has to be asked for first)

from lashd.things.ostree import names  # noqa: E402
from lashd.things.ostree.lockfile import (  # noqa: E402
    ASIDE,
    NOTE,
    STAGED,
    STAGING,
    Lock,
    disown_key,
    key_is_ours,
    put_back,
    read_lock,
    remove_lock,
    write_lock,
)
from lashd.things.ostree.undisturbed import undisturbed  # noqa: E402
from lashd.words.errors import ErrorName, LashdError  # noqa: E402

# libostree writes and removes the lock file here and nowhere else.
_RUN = Path("/run/ostree")
_STATEROOT = "default"  # bootc's name for the first one
_LOCK_POLL_SECONDS = 0.2


class Sysroot:
    """A sysroot, locked for the life of the process. `booted`: the one this system runs from."""

    def __init__(self, path: Path, *, booted: bool, timeout: float) -> None:
        self._booted = booted
        self._sysroot = OSTree.Sysroot.new(Gio.File.new_for_path("/" if booted else str(path)))
        # We run in a mount namespace of our own: libostree may make /sysroot and /boot writable in it.
        self._sysroot.set_mount_namespace_in_use()
        self._lock(timeout)
        self._sysroot.load(None)

    def _lock(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._sysroot.try_lock()[1]:
            if time.monotonic() > deadline:
                raise LashdError(
                    ErrorName.SYSROOT_LOCKED,
                    f"Another program has held the lock of the system's deployments for more than {timeout:.0f} "
                    "seconds; nothing was changed. Try again when it has ended.",
                )
            time.sleep(_LOCK_POLL_SECONDS)

    def deploy(self, commit: str, origin_image: str, stateroot: str) -> str:
        """Deploy `commit`: staged and locked on the booted system, else installed at once. Answers its key."""
        origin = GLib.KeyFile.new()
        origin.set_string("origin", "container-image-reference", origin_image)
        stateroot = stateroot or self._only_stateroot()
        merge = self._sysroot.get_merge_deployment(stateroot)
        self._sysroot.prepare_cleanup(None)
        if self._booted:
            return self._stage(commit, origin, stateroot, merge)
        _, new = self._sysroot.deploy_tree(stateroot, commit, origin, merge, None, None)
        flags = OSTree.SysrootSimpleWriteDeploymentFlags.NONE
        with undisturbed():
            self._sysroot.simple_write_deployment(stateroot, new, merge, flags, None)
        self._sysroot.cleanup(None)
        return _key(new)

    def _only_stateroot(self) -> str:
        booted = self._sysroot.get_booted_deployment()
        if booted is not None:
            return str(booted.get_osname())
        found = sorted({deployment.get_osname() for deployment in self._sysroot.get_deployments()})
        if not found:
            directory = Path(self._sysroot.get_path().get_path(), "ostree/deploy")
            found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        if len(found) > 1:
            raise LashdError(
                ErrorName.INVALID_ARGUMENT,
                f"This sysroot has the stateroots {', '.join(found)}; say which one in the settings, [host] stateroot.",
            )
        stateroot = found[0] if found else _STATEROOT
        if not found:
            self._sysroot.init_osname(stateroot, None)
        return stateroot

    def _stage(self, commit: str, origin: Any, stateroot: str, merge: Any) -> str:
        options = OSTree.SysrootDeployTreeOpts()
        with_key = hasattr(options, "locked")
        if with_key:
            # The one hold that is there in the same instant as the deployment, and survives what libostree does
            # meanwhile: it removes the lock file once it has removed a deployment that was staged before.
            options.locked = True
        before = read_lock(_RUN)
        if before is None:
            write_lock(_RUN, Lock(STAGING))
        if with_key:
            (_RUN / NOTE).write_text(commit, encoding="ascii")
        noted = _noted()
        try:
            _, new = self._sysroot.stage_tree_with_options(stateroot, commit, origin, merge, options, None)
        except BaseException:
            # It is staged all the same when what failed (a full disk) is what libostree tidies up afterwards.
            key = _noted_key() if _noted() != noted else ""
            if key.startswith(f"{commit}."):
                self._own(key, before, with_key=with_key)
            else:
                if before is None and read_lock(_RUN) == Lock(STAGING):
                    remove_lock(_RUN)
                (_RUN / NOTE).unlink(missing_ok=True)
            raise
        self._own(_key(new), before, with_key=with_key)
        return _key(new)

    def _own(self, key: str, before: Lock | None, *, with_key: bool) -> None:
        """What has just been staged as `key` is held by the lock file, in lashd's name; `before` it held another."""
        # A lock of somebody else's held the deployment that has just been replaced: newer versions of libostree
        # remove it themselves.
        write_lock(_RUN, Lock(key), take_over=before is not None)
        if with_key:
            # From now on the lock file holds it, and a key can only be somebody else's: whoever locks it while its
            # images are fetched would be told that it is locked already, and we would take his lock for ours.
            _take_key_off()
            (_RUN / NOTE).unlink(missing_ok=True)

    def restage(self, commit: str, origin: str, stateroot: str, kargs: Sequence[str] | None) -> str:
        """Stage `commit` with the content `origin`, held, when nothing is staged. Answers its key."""
        keys = GLib.KeyFile.new()
        # Written anew by libostree, so comments are all that it may lose.
        keys.load_from_data(origin, len(origin.encode()), GLib.KeyFileFlags.KEEP_TRANSLATIONS)
        if self._sysroot.get_staged_deployment() is not None:
            raise LashdError(ErrorName.BUSY, "Another deployment was staged meanwhile, so none was staged again.")
        merge = self._sysroot.get_merge_deployment(stateroot)
        self._sysroot.prepare_cleanup(None)
        before = read_lock(_RUN)
        if before is None:
            write_lock(_RUN, Lock(STAGING))
        try:
            # The lock file is enough here: libostree removes it only where it replaces a staged deployment.
            arguments = list(kargs) if kargs is not None else None
            _, new = self._sysroot.stage_tree(stateroot, commit, keys, merge, arguments, None)
        except BaseException:
            if before is None and read_lock(_RUN) == Lock(STAGING):
                remove_lock(_RUN)
            raise
        write_lock(_RUN, Lock(_key(new)))
        return _key(new)

    def set_first(self, key: str, stateroot: str = "", *, drop_staged: bool, shutting_down: bool = False) -> bool:
        """Make the deployment `key` (of `stateroot`) the one that boots next; answers whether that changed anything.

        `shutting_down`: what is staged stays as it is, and nothing is cleaned up, which takes long.
        """
        target = self._find(key, stateroot)
        deployments = list(self._sysroot.get_deployments())
        staged = self._sysroot.get_staged_deployment()
        if staged is not None and not drop_staged and not shutting_down:
            # libostree keeps a staged deployment only in the first place, where it would undo the rollback.
            raise LashdError(ErrorName.WOULD_DROP_STAGED)
        if staged is not None and _name(staged) == _name(target):
            raise LashdError(ErrorName.ROLLBACK_UNAVAILABLE, f"The deployment {key} is only staged.")
        rest = [one for one in deployments if _name(one) != _name(target) and not one.is_staged()]
        if shutting_down:
            self._order_behind_staged([target, *rest])
            return True
        if list(map(_name, [target, *rest])) == list(map(_name, deployments)):
            return False
        with undisturbed():
            self._sysroot.write_deployments([target, *rest], None)
        self._sysroot.cleanup(None)
        return True

    def _order_behind_staged(self, wanted: Sequence[Any]) -> None:
        """Let the installed deployments boot in the order `wanted`, and leave alone what is staged."""
        options = OSTree.SysrootWriteDeploymentsOpts()
        options.do_postclean = False
        with undisturbed(), _staged_aside():
            sysroot = OSTree.Sysroot.new(self._sysroot.get_path())
            sysroot.set_mount_namespace_in_use()
            sysroot.load(None)
            found = {_name(one): one for one in sysroot.get_deployments()}
            sysroot.write_deployments_with_options([found[_name(one)] for one in wanted], options, None)

    def remove(self, key: str, stateroot: str = "") -> None:
        """Take the deployment `key` (of `stateroot`) away; with a staged one its lock goes too."""
        target = self._find(key, stateroot)
        booted = self._sysroot.get_booted_deployment()
        if booted is not None and _name(booted) == _name(target):
            raise LashdError(ErrorName.INVALID_ARGUMENT, "The deployment that is running cannot be discarded.")
        if target.is_pinned():
            raise LashdError(ErrorName.INVALID_ARGUMENT, f"The deployment {key} is pinned; unpin it first.")
        rest = [one for one in self._sysroot.get_deployments() if _name(one) != _name(target)]
        if not rest:
            raise LashdError(ErrorName.INVALID_ARGUMENT, "The only deployment cannot be discarded.")
        with undisturbed():
            self._sysroot.write_deployments(rest, None)
        self._sysroot.cleanup(None)

    def release(self, key: str) -> None:
        """Declare the staged deployment `key` ready. The lock file stays until the gate has looked at shutdown."""
        staged = self._sysroot.get_staged_deployment()
        if staged is None:
            raise LashdError(ErrorName.NOTHING_STAGED)
        if _key(staged) != key:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                f"The deployment {key} is no longer the staged one ({_key(staged)} is); nothing was released.",
            )
        lock = read_lock(_RUN)
        key_set = _has_locked_key(staged)
        if (lock is not None and not (lock.ours and lock.is_for(key))) or (
            key_set and not key_is_ours(_RUN, staged.get_csum())
        ):
            raise LashdError(
                ErrorName.HELD,
                f"The staged deployment {key} is locked by someone else, so lashd does not release it; "
                "'ostree admin lock-finalization --unlock' does.",
            )
        if key_set:
            # Takes the lock file with it. What is staged was verified, and the gate looks whoever holds.
            self._sysroot.change_finalization(staged)
            disown_key(_RUN)
        (_RUN / NOTE).unlink(missing_ok=True)
        write_lock(_RUN, Lock(key, ready=True))

    def prune(self, keep: Sequence[str]) -> dict[str, int]:
        """Drop refs of images and layers that no deployment and none of the commits `keep` needs, then their objects.

        Answers how many layers and objects went, and the bytes that were freed.
        """
        repository = self._sysroot.repo()
        origins = {_origin_ref(deployment) for deployment in self._sysroot.get_deployments()}
        kept = {deployment.get_csum() for deployment in self._sysroot.get_deployments()} | set(keep)
        layers: set[str] = set()
        for commit in kept:
            layers |= _layers_of(repository, commit)
        _, refs = repository.list_refs_ext(None, OSTree.RepoListRefsExtFlags.NONE, None)
        gone = 0
        for ref, commit in refs.items():
            if ref.startswith(names.IMAGE_PREFIX + "/") and ref not in origins and commit not in kept:
                repository.set_ref_immediate(None, ref, None, None)
            if ref.startswith(names.LAYER_PREFIX + "/") and ref not in layers:
                repository.set_ref_immediate(None, ref, None, None)
                gone += 1
        self._sysroot.prepare_cleanup(None)
        _, _, objects, size = repository.prune(OSTree.RepoPruneFlags.REFS_ONLY, 0, None)
        return {"layers": gone, "objects": objects, "bytes": size}

    def _find(self, key: str, stateroot: str) -> Any:
        booted = self._sysroot.get_booted_deployment()
        # Where nobody says which stateroot (the gate, which puts the running one first) it is the running one's.
        for deployment in [*([booted] if booted is not None else []), *self._sysroot.get_deployments()]:
            if _key(deployment) == key and stateroot in ("", deployment.get_osname()):
                return deployment
        raise LashdError(ErrorName.INVALID_ARGUMENT, f"There is no deployment {key} on this host any more.")


@contextlib.contextmanager
def _staged_aside() -> Iterator[None]:
    """What is staged is not there in here, and afterwards it is again, by the very same file.

    While libostree knows of it, it writes no other order of what is installed, and says nothing of that; told to go on
    without it, it removes its directory, too. Who is killed in here leaves it aside; packaging/libexec/passed then puts
    it back.
    """
    with contextlib.suppress(FileNotFoundError):
        (_RUN / STAGED).rename(_RUN / ASIDE)
    try:
        yield
    finally:
        put_back(_RUN)


def _key(deployment: Any) -> str:
    return f"{deployment.get_csum()}.{deployment.get_deployserial()}"


def _name(deployment: Any) -> tuple[str, str]:
    """What no two deployments have in common: each stateroot counts its deployments of a commit for itself."""
    return deployment.get_osname(), _key(deployment)


def _noted() -> tuple[int, int] | None:
    """Tells one of ostree's notes of what is staged from the next: each is a new file. None without any."""
    try:
        found = (_RUN / STAGED).lstat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _noted_key() -> str:
    """The key of what ostree's note says is staged, empty when it says nothing."""
    try:
        content = GLib.Bytes.new((_RUN / STAGED).read_bytes())
    except FileNotFoundError:
        return ""
    said = GLib.Variant.new_from_bytes(GLib.VariantType("a{sv}"), content, False)
    target = said.lookup_value("target", GLib.VariantType("a{sv}"))
    name = target.lookup_value("name", GLib.VariantType("s")) if target is not None else None
    return name.get_string() if name is not None else ""


def _take_key_off() -> None:
    """Write ostree's note of what is staged anew without the key `locked`. Not by libostree, which would remove the
    lock file at that: for a moment nothing would hold."""
    note, partial = _RUN / STAGED, _RUN / f".{STAGED}.lashd"
    said = GLib.Variant.new_from_bytes(GLib.VariantType("a{sv}"), GLib.Bytes.new(note.read_bytes()), False)
    kept = GLib.VariantDict.new(said)
    if not kept.remove("locked"):
        return
    try:
        partial.write_bytes(kept.end().get_data_as_bytes().get_data())
        partial.chmod(stat.S_IMODE(note.stat().st_mode))
        partial.rename(note)
    finally:
        partial.unlink(missing_ok=True)


def _has_locked_key(deployment: Any) -> bool:
    return hasattr(deployment, "is_finalization_locked") and bool(deployment.is_finalization_locked())


def _origin_ref(deployment: Any) -> str | None:
    origin = deployment.get_origin()
    try:
        text = origin.get_string("origin", "container-image-reference") if origin is not None else ""
        reference, transport, _ = names.parse_origin_image(text)
    except (GLib.Error, ValueError):
        return None
    return names.image_ref(transport, reference)


def _layers_of(repository: Any, commit: str) -> set[str]:
    """Refs of the layers that the image of `commit` stands on."""
    try:
        _, variant, _ = repository.load_commit(commit)
    except GLib.Error:
        return set()
    found = variant.get_child_value(0).lookup_value(names.META_MANIFEST, GLib.VariantType("s"))
    if found is None:
        return set()
    # Whoever wrote the commit wrote this, too: a manifest that is none names no layers.
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {names.layer_ref(layer["digest"]) for layer in json.loads(found.get_string()).get("layers", [])}
    return set()
