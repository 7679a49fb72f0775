# SPDX-License-Identifier: Apache-2.0
"""Makes the copies of roots that lashd.things.bootc.roots tells of."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from lashd.things.bootc import BOOTC
from lashd.things.bootc.roots import Kind, Roots
from lashd.things.rootfs import LINK_LIMIT
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.run import started
from lashd.words.text import one_line

# Of a root: what Quadlet, the short names of images, storage.conf and os-release are made of, and what is bound.
PLACES = ("usr/lib/bootc", "usr/share/containers", "usr/lib/os-release", "etc")
# Where /etc is not needed as a whole, because nothing is merged into it.
PLACES_INSTALLED = ("etc/containers", "etc/os-release")
# A file that is larger is none that anybody reads (rootfs.FILE_LIMIT): its size is kept, and not its content.
FILE_LIMIT = 1024 * 1024
NAME_LIMIT = 50_000
BYTES_LIMIT = 64 * 1024 * 1024
# Names on the way to what links lead to, each time anew; a second or two of work.
STEP_LIMIT = 500_000

_MOUNT_SECONDS = 60.0
_TOLD = 300
_MOUNTED = b"lashd: mounted\n"
# The mount is in this process's namespace only, and is reached through it.
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
            mounted = _open_mounted(Path(f"/proc/{process.pid}/root{mountpoint}"), mountpoint, id)
            try:
                await _copied(Path(f"/proc/self/fd/{mounted}"), partial, kind, etc, settings.paths.root)
            finally:
                os.close(mounted)
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
    raise _not_mounted(id, said.splitlines()[-1] if said else "it did not say why")


def _open_mounted(mounted: Path, mountpoint: Path, id: str) -> int:
    """The root that is mounted there: a descriptor, which is good also when that process is gone.

    Else a process that is killed while it is copied would make an empty root of it, which binds nothing.
    """
    descriptor = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.path.samestat(os.fstat(descriptor), mountpoint.stat()):
            raise _not_mounted(id, "it reported no error, but nothing is mounted")
        usr = Path(f"/proc/self/fd/{descriptor}/usr").lstat()
        if not stat.S_ISDIR(usr.st_mode):
            raise _not_mounted(id, "its /usr is no directory")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def _copied(mounted: Path, target: Path, kind: Kind, etc: Path | None, root: Path) -> None:
    """`_copy` in a thread that has ended when this has, however it does: nobody else may find it still writing."""
    stop = threading.Event()
    copying = asyncio.ensure_future(asyncio.to_thread(_copy, mounted, target, kind, etc, root, stop))
    try:
        await asyncio.shield(copying)
    finally:
        stop.set()
        await asyncio.wait([copying])
        if not copying.cancelled():
            copying.exception()  # was raised above, unless this was cancelled


def _copy(
    mounted: Path, target: Path, kind: Kind, etc: Path | None, root: Path, stop: threading.Event | None = None
) -> None:
    # An image that was made for ostree has its /etc in usr/etc.
    places = ["usr/etc" if place == "etc" and not _is_used(mounted / "etc") else place for place in PLACES]
    if kind is Kind.INSTALLED and etc is not None:
        _Copy(mounted, target, etc, stop).all((*places[:-1], *PLACES_INSTALLED))
    else:
        _Copy(mounted, target, None, stop).all(places)
    if kind is Kind.BOOTED:
        (target / "etc").symlink_to(root.absolute() / "etc")


def _is_used(etc: Path) -> bool:
    try:
        # What a link leads to from here is none of that root's.
        return etc.is_symlink() or any(etc.iterdir())
    except OSError:
        return False


class _Copy:
    """Copies parts of the root `source` to `target`, and whatever links in them lead to.

    `etc` becomes `usr/etc`; with another directory for `etc` it is read from there, and stays `etc`.
    """

    def __init__(self, source: Path, target: Path, etc: Path | None, stop: threading.Event | None) -> None:
        self._source = source
        self._target = target
        self._etc = etc
        self._stop = stop
        self._done: set[str] = set()
        self._to_do: deque[tuple[str, int]] = deque()  # and how many links have led there
        self._names = self._bytes = self._steps = 0

    def all(self, places: Sequence[str]) -> None:
        """Raises OSError, and HostCommandFailed when there is too much of it."""
        self._target.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._to_do.extend((place, 0) for place in places)
        while self._to_do:
            self._place(*self._to_do.popleft())

    def _from(self, path: str) -> Path:
        if self._etc is not None and _is_in_etc(path):
            return self._etc / path[4:]
        return self._source / path

    def _to(self, path: str) -> Path:
        return self._target / (f"usr/{path}" if self._etc is None and _is_in_etc(path) else path)

    def _place(self, path: str, links: int) -> None:
        """One path from its top, part by part, so that a link on the way is copied as such and followed."""
        done: list[str] = []
        status: os.stat_result | None = None
        self._steps += len(path) // 64
        parts = deque(part for part in path.split("/") if part not in ("", "."))
        while parts:
            self._steps += 1
            if self._steps > STEP_LIMIT:
                raise _too_much()
            part = parts.popleft()
            if part == "..":
                del done[-1:]
                continue
            done.append(part)
            status = self._one("/".join(done))
            if status is None:
                return
            if stat.S_ISLNK(status.st_mode):
                self._follow("/".join(done), "/".join(parts), links)
                return
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._tree("/".join(done), links)

    def _tree(self, top: str, links: int) -> None:
        to_do = [top]
        while to_do:
            directory = to_do.pop()
            if f"{directory}/" in self._done:
                continue
            self._done.add(f"{directory}/")
            for name in sorted(path.name for path in self._from(directory).iterdir()):
                inner = f"{directory}/{name}"
                status = self._one(inner)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    to_do.append(inner)
                elif status is not None and stat.S_ISLNK(status.st_mode) and _is_of_interest(inner):
                    self._follow(inner, "", links)

    def _follow(self, link: str, rest: str, links: int) -> None:
        if links == LINK_LIMIT:
            return  # nobody who reads it goes further
        leads = str(self._from(link).readlink())
        start = "" if leads.startswith("/") else link.rpartition("/")[0]
        if (wanted := f"{start}/{leads}/{rest}") not in self._done:
            self._done.add(wanted)
            self._to_do.append((wanted, links + 1))
            # What extends a unit lies beside the file that it is.
            if not rest:
                self._to_do.append((f"{start}/{leads}.d", links + 1))

    def _one(self, path: str) -> os.stat_result | None:
        """Copy this one name, if it is there; what is in a directory is not copied with it."""
        source, target = self._from(path), self._to(path)
        try:
            status = source.lstat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                return None
            raise
        if self._stop is not None and self._stop.is_set():
            raise InterruptedError
        if path in self._done:
            return status
        self._done.add(path)
        self._names += 1
        if self._names > NAME_LIMIT:
            raise _too_much()
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target) and (target.is_symlink() or not stat.S_ISDIR(status.st_mode)):
            # Through a link that stands there the rest would be written wherever that leads.
            raise FileExistsError(errno.EEXIST, "/etc and /usr/etc both have it", path)
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


def _is_in_etc(path: str) -> bool:
    return path == "etc" or path.startswith("etc/")


def _is_of_interest(link: str) -> bool:
    """Links in /etc lead all over the system (time zones, units); those about containers are followed."""
    return not link.startswith(("etc/", "usr/etc/")) or "/containers/" in link or link.endswith("/os-release")


def _give_away(target: Path, status: os.stat_result) -> None:
    """Owner and mode count when local changes of /etc are merged."""
    if os.geteuid() == 0:
        os.lchown(target, status.st_uid, status.st_gid)
    if not stat.S_ISLNK(status.st_mode):
        target.chmod(stat.S_IMODE(status.st_mode))


def _not_mounted(id: str, why: str) -> LashdError:
    return LashdError(
        ErrorName.HOST_COMMAND_FAILED,
        f"bootc could not mount the deployment {id}, so what it binds is unknown and it stays held: "
        f"{one_line(why)[:_TOLD]}.",
        retryable=True,
    )


def _too_much() -> LashdError:
    return LashdError(
        ErrorName.HOST_COMMAND_FAILED,
        f"What says in the deployment which images it binds is more than {NAME_LIMIT} files, or more than "
        f"{BYTES_LIMIT >> 20} MiB, or full of links, so it was not read, and it stays held. Take most of it out of "
        "the host image.",
        retryable=False,
    )
