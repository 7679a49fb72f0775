# SPDX-License-Identifier: Apache-2.0
"""Makes the copies of roots that lashd.things.bootc.roots tells of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
from collections import deque
from pathlib import Path

from lashd.things.bootc import BOOTC
from lashd.things.bootc.roots import Kind, Roots
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.run import started
from lashd.words.text import one_line

# Of a root: what Quadlet, the short names of images, storage.conf and os-release are made of, and what is bound.
PLACES = ("usr/lib/bootc", "usr/share/containers", "usr/lib/os-release", "etc")
# Where /etc is not needed as a whole, because nothing is merged into it.
PLACES_INSTALLED = ("containers", "os-release")
# A file that is larger is none that anybody reads (rootfs.FILE_LIMIT): its size is kept, and not its content.
FILE_LIMIT = 1024 * 1024
NAME_LIMIT = 50_000
BYTES_LIMIT = 64 * 1024 * 1024

_MOUNT_SECONDS = 60.0
_TOLD = 300
_MOUNTED = b"lashd: mounted\n"
# The mount is there for as long as this process is, and until then it is reached through it.
_SCRIPT = '"$@" >&2 && echo "lashd: mounted" && exec cat'


async def copy_root(settings: Settings, roots: Roots, id: str, kind: Kind, etc: Path | None = None) -> None:
    """Make the copy of that kind. `etc` is, for an installed one, the /etc that it has been booted with.

    Raises HostCommandFailed when bootc cannot mount it or it has more files than any host, Timeout, NoSpace.
    """
    mountpoint = roots.top / "mount"
    partial = roots.directory / f".{id}.{kind.value}"
    try:
        _prepare(settings, roots, mountpoint)
        shutil.rmtree(partial, ignore_errors=True)
        argv = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _SCRIPT, "sh"]
        argv += [os.fspath(settings.paths.root / BOOTC), "internals", "cfs", "mount", id, os.fspath(mountpoint)]
        async with started(argv, stdin=asyncio.subprocess.PIPE) as process:
            await _until_mounted(process, id)
            mounted = Path(f"/proc/{process.pid}/root{mountpoint}")
            await asyncio.to_thread(_copy, mounted, partial, kind, etc, settings.paths.root)
        partial.replace(roots.place(id, kind))
    except OSError as error:
        name = ErrorName.NO_SPACE if error.errno == 28 else ErrorName.HOST_COMMAND_FAILED
        raise LashdError(
            name,
            f"What the deployment {id} binds could not be copied to {roots.directory}: {error}. It stays held.",
            retryable=True,
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _prepare(settings: Settings, roots: Roots, mountpoint: Path) -> None:
    # There are files in an /etc that not everybody may read.
    for directory in (roots.top, roots.directory, mountpoint):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (roots.top / "var").symlink_to(settings.host.sysroot / "state/os/default/var")


async def _until_mounted(process: asyncio.subprocess.Process, id: str) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_MOUNT_SECONDS):
            if await process.stdout.readline() == _MOUNTED:
                return
            said = (await process.stderr.read()).decode(errors="replace").strip()
    except TimeoutError:
        said = f"it did not end within {_MOUNT_SECONDS:.0f} seconds"
    raise LashdError(
        ErrorName.HOST_COMMAND_FAILED,
        f"bootc could not mount the deployment {id}, so what it binds is unknown and it stays held: "
        f"{one_line(said.splitlines()[-1] if said else 'it did not say why')[:_TOLD]}.",
        retryable=True,
    )


def _copy(mounted: Path, target: Path, kind: Kind, etc: Path | None, root: Path) -> None:
    copy = _Copy(mounted, target)
    # An image that was made for ostree has its /etc in usr/etc.
    places = ["usr/etc" if place == "etc" and not _is_used(mounted / "etc") else place for place in PLACES]
    if kind is Kind.INSTALLED and etc is not None:
        copy.all(places[:-1])
        _Copy(etc, target / "etc", into_etc=False).all(PLACES_INSTALLED)
    else:
        copy.all(places)
    if kind is Kind.BOOTED:
        (target / "etc").symlink_to(root.absolute() / "etc")


def _is_used(etc: Path) -> bool:
    try:
        return any(etc.iterdir())
    except OSError:
        return False


class _Copy:
    """Copies parts of the root `source` to `target`, and whatever links in them lead to; `etc` becomes `usr/etc`."""

    def __init__(self, source: Path, target: Path, *, into_etc: bool = True) -> None:
        self._source = source
        self._target = target
        self._into_etc = into_etc
        self._done: set[str] = set()
        self._to_do: deque[str] = deque()
        self._names = self._bytes = 0

    def all(self, places: tuple[str, ...] | list[str]) -> None:
        """Raises OSError, and HostCommandFailed when there is too much of it."""
        self._target.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._to_do.extend(places)
        while self._to_do:
            self._place(self._to_do.popleft())

    def _place(self, path: str) -> None:
        """One path from its top, part by part, so that a link on the way is copied as such and followed."""
        done: list[str] = []
        status: os.stat_result | None = None
        parts = deque(part for part in path.split("/") if part not in ("", "."))
        while parts:
            part = parts.popleft()
            if part == "..":
                del done[-1:]
                continue
            done.append(part)
            status = self._one("/".join(done))
            if status is None:
                return
            if stat.S_ISLNK(status.st_mode):
                self._follow("/".join(done), "/".join(parts))
                return
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._tree("/".join(done))

    def _tree(self, top: str) -> None:
        to_do = [top]
        while to_do:
            directory = to_do.pop()
            if f"{directory}/" in self._done:
                continue
            self._done.add(f"{directory}/")
            for name in sorted(path.name for path in (self._source / directory).iterdir()):
                inner = f"{directory}/{name}"
                status = self._one(inner)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    to_do.append(inner)
                elif status is not None and stat.S_ISLNK(status.st_mode) and _is_of_interest(inner):
                    self._follow(inner, "")

    def _follow(self, link: str, rest: str) -> None:
        leads = str((self._source / link).readlink())
        start = "" if leads.startswith("/") else link.rpartition("/")[0]
        if (wanted := f"{start}/{leads}/{rest}") not in self._done:
            self._done.add(wanted)
            self._to_do.append(wanted)
            # What extends a unit lies beside the file that it is.
            if not rest:
                self._to_do.append(f"{start}/{leads}.d")

    def _one(self, path: str) -> os.stat_result | None:
        """Copy this one name, if it is there; what is in a directory is not copied with it."""
        source = self._source / path
        try:
            status = source.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if path in self._done:
            return status
        self._done.add(path)
        self._names += 1
        if self._names > NAME_LIMIT:
            raise _too_much()
        target = self._target / (f"usr/{path}" if self._into_etc and f"{path}/".startswith("etc/") else path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISLNK(status.st_mode):
            target.symlink_to(source.readlink())
        elif stat.S_ISDIR(status.st_mode):
            target.mkdir(exist_ok=True)
        elif stat.S_ISREG(status.st_mode):
            self._file(source, target, status.st_size)
        else:
            return None  # a pipe or a device is nothing to be read
        _give_away(target, status)
        return status

    def _file(self, source: Path, target: Path, size: int) -> None:
        if size > FILE_LIMIT:
            with target.open("wb") as file:
                file.truncate(size)
            return
        self._bytes += size
        if self._bytes > BYTES_LIMIT:
            raise _too_much()
        shutil.copyfile(source, target, follow_symlinks=False)


def _is_of_interest(link: str) -> bool:
    """Links in /etc lead all over the system (time zones, units); those about containers are followed."""
    return not link.startswith(("etc/", "usr/etc/")) or "/containers/" in link or link.endswith("/os-release")


def _give_away(target: Path, status: os.stat_result) -> None:
    """Owner and mode count when local changes of /etc are merged."""
    if os.geteuid() == 0:
        os.lchown(target, status.st_uid, status.st_gid)
    if not stat.S_ISLNK(status.st_mode):
        target.chmod(stat.S_IMODE(status.st_mode))


def _too_much() -> LashdError:
    return LashdError(
        ErrorName.HOST_COMMAND_FAILED,
        f"What says in the deployment which images it binds is more than {NAME_LIMIT} files, or more than "
        f"{BYTES_LIMIT >> 20} MiB, so it was not read, and it stays held. Take most of it out of the host image.",
        retryable=False,
    )
