# SPDX-License-Identifier: Apache-2.0
"""The root that a soft reboot would switch to, as `ostree admin prepare-soft-reboot` mounts it on /run/nextroot.

systemd goes there also on a plain `systemctl reboot`, and libostree mounts a staged deployment there whoever holds it.
Without it systemd starts the same root again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from lashd.things.gvariant import parse
from lashd.words.model import Deployment

# In ostree's run directory; an a{sv} that says which directory the mounted root was made from.
PREPARED = "nextroot-booted"
NEXTROOT = Path("/run/nextroot")
UNKNOWN = "unknown"

_BACKING = "backing-root-device-inode"
_MOUNTS = Path("/proc/thread-self/mountinfo")
_OWN_NAMESPACE, _SYSTEM_NAMESPACE = Path("/proc/self/ns/mnt"), Path("/proc/1/ns/mnt")
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_LIMIT = 64 * 1024
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_libc = ctypes.CDLL(None, use_errno=True)


def prepared(ostree_run: Path, deployments: Iterable[Deployment]) -> str | None:
    """Name of the deployment that a soft reboot would bring up, None when none is prepared.

    UNKNOWN when one is prepared that is none of `deployments`.
    """
    try:
        with open(ostree_run / PREPARED, "rb") as file:
            content = file.read(_LIMIT)
    except FileNotFoundError:
        return None
    except OSError:
        return UNKNOWN
    try:
        wanted = tuple(parse("a{sv}", content)[_BACKING])
    except (ValueError, TypeError, KeyError):
        return UNKNOWN
    for deployment in deployments:
        with contextlib.suppress(OSError):
            found = deployment.root.stat()
            if (found.st_dev, found.st_ino) == wanted:
                return deployment.name
    return UNKNOWN


def mounted(nextroot: Path = NEXTROOT) -> bool:
    """Whether anything is mounted there, whoever did it. Raises OSError."""
    return bool(_mounts(nextroot))


def take_down(ostree_run: Path, nextroot: Path = NEXTROOT) -> None:
    """Unmount it with all that is mounted below, and forget it: a soft reboot then starts the running root again.

    Works in this process's mount namespace, which has to be the system's own. Raises OSError.
    """
    for target in reversed(_mounts(nextroot)):
        # Detached when something still uses it: it is out of systemd's way then, too.
        if _umount(target, _UMOUNT_NOFOLLOW) and _umount(target, _UMOUNT_NOFOLLOW | _MNT_DETACH):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fsdecode(target))
    (ostree_run / PREPARED).unlink(missing_ok=True)


def take_down_outside(ostree_run: Path, nextroot: Path = NEXTROOT, system: Path = _SYSTEM_NAMESPACE) -> None:
    """As `take_down`, but in the mount namespace `system`, from whatever namespace this process is in.

    The daemon's own is a copy of the system's: what is unmounted there is still mounted for systemd. Raises OSError.
    """
    with system.open("rb") as namespace:
        if os.path.samestat(os.fstat(namespace.fileno()), _OWN_NAMESPACE.stat()):
            take_down(ostree_run, nextroot)
            return
        from threading import Thread  # the gate has no time for it

        failures: list[OSError] = []

        def enter() -> None:
            try:
                # A thread can enter one when it shares root and working directory with no other; it is not used again.
                if _libc.unshare(_CLONE_FS) or _libc.setns(namespace.fileno(), _CLONE_NEWNS):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), os.fspath(system))
                take_down(ostree_run, nextroot)
            except OSError as error:
                failures.append(error)

        thread = Thread(target=enter, name="system's mounts")
        thread.start()
        thread.join()
    if failures:
        raise failures[0]


def _mounts(top: Path) -> list[bytes]:
    """Mount points at and below `top`, in the order in which they were mounted."""
    prefix = os.fsencode(top)
    found = []
    for line in _MOUNTS.read_bytes().splitlines():
        target = _unescaped(line.split(b" ")[4])
        if target == prefix or target.startswith(prefix + b"/"):
            found.append(target)
    return found


def _unescaped(field: bytes) -> bytes:
    for code, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, byte)
    return field


def _umount(target: bytes, flags: int) -> bool:
    """Answers whether it failed."""
    return bool(_libc.umount2(target, flags))
