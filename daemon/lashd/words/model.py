# SPDX-License-Identifier: Apache-2.0
"""The values that the steps of the walk hand to each other. All frozen; digests are always `sha256:<hex>` strings."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from lashd.words.errors import LashdError
from lashd.words.reference import Reference


class Role(StrEnum):
    """What a deployment is at this moment; one deployment may have several roles."""

    BOOTED = "booted"
    STAGED = "staged"
    ROLLBACK = "rollback"
    PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class HostImage:
    """The image a deployment follows, from its origin file.

    `reference` is the image as the origin names it, without transport; `transport` is `registry`, `oci`, `dir`, …;
    `signature` is the origin's verification word (`ostree-unverified-registry`, `ostree-image-signed`, …).
    """

    reference: str
    transport: str = "registry"
    signature: str = "ostree-unverified-registry"


@dataclass(frozen=True, slots=True)
class Deployment:
    """One installed root. `root` is its checkout on disk; `digest` the manifest digest its commit was made from."""

    stateroot: str
    checksum: str
    serial: int
    root: Path
    roles: frozenset[Role] = frozenset()
    image: HostImage | None = None
    digest: str | None = None
    version: str | None = None
    timestamp: int | None = None  # seconds since the epoch, of the commit
    # The rest is about a staged deployment only.
    locked: bool = False  # it is held: a shutdown now would not finalise it, whatever the gate finds
    declared: bool = False  # verified and declared ready: only the gate's own look at shutdown is still to come
    foreign_lock: bool = False  # somebody else than lashd forbids that it is finalised
    key_locked: bool = False  # so does a lock of lashd's in the host's own note, which only the daemon takes away
    merges: Path | None = None  # root of the deployment whose local changes of /etc it will get; None: of none

    @property
    def key(self) -> str:
        """Stable name on the bus and in records: `<checksum>.<serial>`, as ostree names the directory."""
        return f"{self.checksum}.{self.serial}"

    @property
    def name(self) -> str:
        """`<stateroot>/<key>`, which no two have in common: each stateroot counts its deployments itself."""
        return f"{self.stateroot}/{self.key}"


class UseProblem(StrEnum):
    """Why a bound unit would not really run from the bound image store (its value is the code on the bus)."""

    STORE_NOT_NAMED = "store-not-named"  # neither GlobalArgs nor PodmanArgs name the additional image store
    PULL_ALWAYS = "pull-always"  # Pull= / Policy= is always or newer; an .image without Policy= pulls always
    AUTO_UPDATE = "auto-update"  # AutoUpdate=registry
    SHADOWED = "shadowed"  # the primary store has another image under the same name


@dataclass(frozen=True, slots=True)
class PullOptions:
    """What a unit file says about how its image is fetched; empty means the host's defaults.

    `auth_file` and `cert_dir` are absolute paths on the running system. `arch` and `variant` are as OCI names them.
    """

    auth_file: str = ""
    cert_dir: str = ""
    tls_verify: bool | None = None
    arch: str = ""
    os: str = ""
    variant: str = ""


@dataclass(frozen=True, slots=True)
class BoundImage:
    """One bound image of one deployment: the link's name, the image as written, and what it means."""

    unit: str  # name of the link in bound-images.d: agent.container
    text: str  # the image as the unit file writes it
    reference: Reference
    pull: PullOptions = PullOptions()
    use_problems: tuple[UseProblem, ...] = ()
    names: tuple[Reference, ...] = ()  # further names the unit looks for (ImageTag=)
    service: str = ""  # what Quadlet makes of the unit, which need not be called like the link: agent.service

    @property
    def usable(self) -> bool:
        return not self.use_problems


@dataclass(frozen=True, slots=True)
class BadEntry:
    """An entry of bound-images.d that cannot be used; `problem` is a whole sentence."""

    unit: str
    problem: str


@dataclass(frozen=True, slots=True)
class Discovery:
    """What one deployment binds. With a bad entry it is never released, but the good ones are bound all the same."""

    images: tuple[BoundImage, ...] = ()
    bad: tuple[BadEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as a manifest names it: digest of the compressed blob, and its size in bytes."""

    digest: str
    size: int
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest for one platform. `digest` is its own; `index_digest` that of the index it came from."""

    digest: str
    config_digest: str
    layers: tuple[Layer, ...]
    config_size: int = 0
    index_digest: str | None = None
    raw: bytes = field(default=b"", repr=False, compare=False)


class ImageState(StrEnum):
    """State of a bound image in the store, as `ListBound` shows it."""

    PRESENT = "present"  # complete, with the wanted digest, vouched for by a record
    UNVERIFIED = "unverified"  # complete by the index, but no record vouches for its layers
    UNKNOWN = "unknown"  # the store's index cannot be read
    MISSING = "missing"
    INCOMPLETE = "incomplete"  # the index names it, but a layer is not complete or not there
    DRIFTED = "drifted"  # the name means another digest than the record says
    PULLING = "pulling"
    FAILED = "failed"
    INVALID = "invalid"  # a bad entry


@dataclass(frozen=True, slots=True)
class RecordedImage:
    """One image of a record: the normalised reference, the digest it was bound by and the layers it stands on."""

    reference: str
    digest: str  # digest of the platform's manifest
    image_id: str  # 64 hex digits, as in the store's index
    layers: tuple[str, ...] = ()  # layer ids in the store, topmost first
    units: tuple[str, ...] = ()
    index_digest: str | None = None
    stamps: tuple[str, ...] = ()  # when each of `layers` was put into the store: the same id later is another copy


@dataclass(frozen=True, slots=True)
class Record:
    """Which digests a deployment is bound to. Written durably, only after the store was synced."""

    deployment: str  # Deployment.key
    host_digest: str | None
    images: tuple[RecordedImage, ...]
    created: int  # seconds since the epoch
    adopted: bool = False  # taken from a host that was already running, not bound by us

    def image(self, reference: str) -> RecordedImage | None:
        return next((image for image in self.images if image.reference == reference), None)


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image of a plan: fetch `reference` by `digest`, unless it is `present`; `missing` are the layers to fetch.

    Several bound images that name the same content are one planned image; `bound` lists them all.
    """

    reference: Reference
    digest: str  # the wanted manifest digest, of the platform's manifest
    bound: tuple[BoundImage, ...]
    present: bool
    manifest: Manifest | None = None  # None when it is present: the registry was not asked
    missing: tuple[Layer, ...] = ()
    index_digest: str | None = None

    @property
    def bytes_to_fetch(self) -> int:
        return sum(layer.size for layer in self.missing)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a bind would do. All sizes in bytes; layers shared between images count once."""

    images: tuple[PlannedImage, ...] = ()
    bytes_to_fetch: int = 0
    bytes_on_disk: int = 0  # an estimate: compressed bytes while they are unpacked, plus what they unpack to
    bytes_free: int = 0
    reserve: int = 0
    # One error for all images whose meaning could not be found out; `images` then lacks them.
    unresolved: LashdError | None = field(default=None, compare=False)

    @property
    def fits(self) -> bool:
        return self.bytes_on_disk + self.reserve <= self.bytes_free or not self.bytes_to_fetch

    @property
    def absent(self) -> tuple[PlannedImage, ...]:
        return tuple(image for image in self.images if not image.present)


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator said about one staged deployment: keep it back (`hold`), or let it through as it is.

    Good for just this deployment and digest, until it is finalised, replaced or ordered otherwise. To keep it back is
    meant for its content, however often a reboot loses it and it is staged again; to let it through is not.
    """

    deployment: str  # Deployment.key
    digest: str  # Deployment.digest, "" when it has none
    hold: bool
    uid: int
    reason: str
    given: int  # seconds since the epoch

    def is_for(self, deployment: Deployment) -> bool:
        same = self.deployment == deployment.key
        if self.hold:
            same = self.deployment.partition(".")[0] == deployment.checksum
        return same and self.digest == (deployment.digest or "")


class Passed(StrEnum):
    """What a shutdown came to."""

    NOTHING = "nothing"  # nothing was staged, and the boot order was as it should be
    RELEASED = "released"  # the staged deployment was let through
    HELD = "held"  # the staged deployment was not let through
    RESTORED = "restored"  # the booted deployment was put back in front of one whose images were not complete


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate decided at a shutdown, written before it ended."""

    result: Passed
    boot: str  # id of the boot that ended
    decided: int  # seconds since the epoch
    deployment: str = ""  # key of the deployment that it was about
    digest: str = ""
    reasons: tuple[tuple[str, str], ...] = ()  # (code, sentence)
    stays: str = ""  # Deployment.name of what ran and was to come up again; empty when something else may


@dataclass(frozen=True, slots=True)
class Owed:
    """A staged deployment that was seen and not yet booted: all that is needed to stage it again.

    A staged deployment lies in /run, so a reboot that is held, or a power cut, loses it.
    """

    deployment: str  # Deployment.key
    stateroot: str
    checksum: str
    digest: str
    origin: str  # the content of its origin file
    boot: str  # id of the boot in which it was staged, last
    since: int  # seconds since the epoch: when it was first seen
    wasted: int = 0  # reboots in a row that did not bring it up
    counted: str = ""  # id of the boot in which its loss was last counted
    kargs: tuple[str, ...] | None = None  # kernel arguments it was staged with; None: those of the booted one
    base: str = ""  # checksum of the system that ran when it was staged: it is owed to that one only
    initrds: tuple[str, ...] = ()  # checksums of the initrds that were staged to lie over its own
    binds: tuple[str, ...] | None = None  # names of the images that it binds; None: they were not read
