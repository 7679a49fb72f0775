# SPDX-License-Identifier: Apache-2.0
"""What a kind of host must offer. Adding a kind of host is adding one module that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lashd.things import composefs
from lashd.things.rootfs import Root
from lashd.words.config import Settings
from lashd.words.model import Deployment, HostImage, Owed
from lashd.words.progress import Report


@dataclass(frozen=True, slots=True)
class Fetched:
    """A host image that lies on this host, ready to be staged.

    `checksum` is its commit, `digest` that of its manifest; `changed` says that it is not what boots next anyway;
    `dropped` lists, ready to be shown, entries of the image that this kind of host cannot hold.
    """

    checksum: str
    digest: str
    changed: bool
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostOutline:
    """A host image in its registry: its `digest`, `version` (empty when it does not say), and compressed bytes."""

    digest: str
    version: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Staging:
    """How a deployment was staged, or installed: the content of its origin file, its kernel arguments (None: none were
    given) and the checksums of initrds that lie over its own."""

    origin: str = ""
    kargs: tuple[str, ...] | None = None
    initrds: tuple[str, ...] = ()


# Hears that the whole content of a host image is on this host, which may be long before it is staged; what it is given
# opens that content to be read, once or never, and raises OSError when it cannot be read any more.
Arrived = Callable[[Callable[[], Root]], None]


def nobody(content: Callable[[], Root]) -> None:
    """A listener for whoever does not care."""


class HostBackend(Protocol):
    """One kind of host. What changes the host needs uid 0 and raises LashdError; what looks at it never does.

    Changes fail with SysrootLocked when another program holds the host's lock for longer than a bounded wait, with
    HostCommandFailed when the host's own tools refuse, with NoSpace when the disk is full.
    """

    kind: str
    # Whether somebody else than lashd removes images from the bound image store by rules of his own.
    pruned: bool

    async def require(self) -> None:
        """Raise UnsupportedHost when something is missing that only the host's own tools can tell; to be asked once."""
        ...

    def deployments(self) -> tuple[Deployment, ...]:
        """In boot order, a staged one first. Read from files: no lock, no process; what cannot be read is left out."""
        ...

    def unlisted(self) -> tuple[Deployment, ...]:
        """Deployments that lie on the disk and that nothing else tells of. Raises StoreDamaged when that is unknown."""
        ...

    def watched(self) -> tuple[Path, ...]:
        """Directories in which something changes when the answer of `deployments` does; they need not exist."""
        ...

    async def make_readable(self) -> None:
        """See to it that the root of each deployment can be read, where that takes more than opening a directory.

        What cannot be done is logged, and tried again at a later call; such a root cannot be read then. Cheap to ask
        again.
        """
        ...

    def staging(self, deployment: Deployment) -> Staging:
        """How `deployment` was staged, or how it boots when it is installed. Read from files."""
        ...

    def holds(self, deployment: Deployment) -> bool:
        """Whether lashd's own hold is set, for just the staged `deployment`; one that is declared ready counts."""
        ...

    def nextroot(self) -> str | None:
        """Name of the deployment that a soft reboot would bring up, None when none is prepared; `unknown` for another.

        Read from files.
        """
        ...

    def take_down(self) -> None:
        """Forget what a soft reboot would bring up: it then starts the running system again. Raises OSError."""
        ...

    async def check(self, image: HostImage) -> str:
        """The manifest digest that `image` means in its registry now."""
        ...

    async def outline(self, image: HostImage) -> HostOutline:
        """What the registry says of `image` before it is fetched. Raises what a registry can answer."""
        ...

    async def fetch(
        self, image: HostImage, *, expected_digest: str | None, report: Report, arrived: Arrived = nobody
    ) -> Fetched:
        """Bring `image` onto the host, only the layers that are not there yet. What has arrived stays when it fails.

        `arrived` is told, perhaps more than once, as soon as it can be read what `image` binds: on a host where this
        stages as well, before it is staged. It is a hint: it may never be told, and what is staged may be another one.
        Raises DigestMismatch when the image is not `expected_digest`, and what a registry can answer.
        """
        ...

    async def stage(self, fetched: Fetched, image: HostImage) -> Deployment:
        """Make it the deployment that boots next, held from its first instant on; it will follow `image`.

        A sysroot that is not booted has no staging: there it is installed at once.
        """
        ...

    async def restage(self, owed: Owed, report: Report) -> Deployment:
        """Stage what was lost once more, as it was staged, and held from its first instant on.

        Needs no network while its commit is here; else the image is fetched, by its digest. Raises Busy when something
        is staged already, NotFound when it is gone and nothing says where it came from, and what `fetch` raises.
        """
        ...

    async def recover(self) -> None:
        """Put right what a daemon that was killed left: a hold of ours on nothing. To be called once, at the start."""
        ...

    async def hold(self, deployment: Deployment) -> None:
        """Forbid the staged `deployment` to be finalised. Raises NothingStaged, DigestMismatch when it is another."""
        ...

    async def release(self, deployment: Deployment) -> None:
        """Declare the staged `deployment` ready: lashd's hold stays until the gate at shutdown has looked itself.

        Raises NothingStaged; DigestMismatch when another one is staged; Held when somebody else holds it.
        """
        ...

    async def discard(self, deployment: Deployment) -> None:
        """Remove a deployment that is neither booted nor pinned."""
        ...

    async def roll_back(self, to: Deployment, *, drop_staged: bool = False) -> bool:
        """Make `to` boot next; answers whether that changed anything.

        Raises WouldDropStaged while one is staged, unless `drop_staged`.
        """
        ...

    async def prune(self, keep: tuple[Fetched, ...] = ()) -> int:
        """Remove layers and images that neither a deployment nor `keep` needs; answers the bytes that were freed."""
        ...

    def space(self) -> int:
        """Free bytes where host images are kept."""
        ...


def find_deployments(settings: Settings) -> tuple[Deployment, ...]:
    """What the backend's `deployments` answers, for who needs no more than that and no time to load the rest.

    Raises UnsupportedHost.
    """
    if settings.booted_sysroot and composefs.is_host(settings):
        from lashd.things.bootc.deployments import ComposefsSysroot

        return ComposefsSysroot(settings).deployments()
    from lashd.things.ostree.deployments import find_sysroot

    return find_sysroot(settings).deployments()


def find_host(settings: Settings) -> HostBackend:
    """The backend for this host. Raises UnsupportedHost."""
    from lashd.things.bootc import is_there

    if settings.booted_sysroot and composefs.is_host(settings):
        from lashd.things.bootc.composefs_backend import ComposefsBackend

        return ComposefsBackend(settings)
    if settings.host.backend == "bootc" or (settings.host.backend == "auto" and is_there(settings)):
        from lashd.things.bootc.backend import BootcBackend

        return BootcBackend(settings)
    from lashd.things.ostree.backend import OstreeBackend

    return OstreeBackend(settings)
