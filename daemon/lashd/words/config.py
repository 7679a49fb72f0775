# SPDX-License-Identifier: Apache-2.0
"""Settings: TOML files `*.toml` in lashd/lashd.d below /usr/lib, /etc and /run, read in that order of weight.

As with systemd's own drop-ins, a file in /run or /etc replaces one of the same name in /usr/lib, and what remains is
read sorted by name, later keys winning.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lashd.words import window
from lashd.words.errors import ErrorName, LashdError

DIRECTORIES = tuple(Path(base, "lashd/lashd.d") for base in ("/usr/lib", "/etc", "/run"))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HostSettings(_Section):
    """Where the host is. `sysroot` other than /sysroot is a sysroot that is not booted: no staging there."""

    backend: Literal["auto", "ostree"] = "auto"
    sysroot: Path = Path("/sysroot")
    stateroot: str = ""  # for a sysroot that is not booted: the stateroot to deploy into, empty for the only one


class PathSettings(_Section):
    state: Path = Path("/var/lib/lashd")  # records, partial downloads; must survive a reboot
    run: Path = Path("/run/lashd")  # what must not survive one
    ostree_run: Path = Path("/run/ostree")
    root: Path = Path("/")  # the running system, whose etc/, run/ and usr/lib are read for credentials and policy


class PullSettings(_Section):
    parallel: int = Field(0, ge=0, le=64)  # images at once; 0: chosen from the number of cores
    attempts: int = Field(6, ge=1, le=100)  # how often one image is tried in one job
    backoff_seconds: float = Field(1.0, gt=0, le=3600)  # before the second attempt; doubles, with jitter
    backoff_limit_seconds: float = Field(60.0, gt=0, le=86400)
    stall_seconds: float = Field(90.0, gt=0, le=3600)  # a transfer without a new byte for so long is ended
    reserve_bytes: int = Field(512 * 1024 * 1024, ge=0)  # free space that a pull never takes


class GateSettings(_Section):
    """`policy`: hold what is not complete back, only `warn`, or `off` (nothing is held, nothing checked)."""

    policy: Literal["hold", "warn", "off"] = "hold"
    restage: bool = True  # stage again what a held reboot or a power cut has lost
    # Forbid reboots and shutdowns while a deployment is held: never, or once reboots were wasted on it.
    inhibit: Literal["never", "wasted"] = "never"
    poll_seconds: float = Field(30.0, gt=0, le=3600)  # how often it is looked without being told to
    retry_seconds: float = Field(30.0, gt=0, le=86400)  # before a bind that failed is tried again; doubles, with jitter
    retry_limit_seconds: float = Field(1800.0, gt=0, le=86400)
    # Names that are not what the booted deployment is bound to: keep their units from being started, or only warn.
    strict_names: bool = False


class RebootSettings(_Section):
    """When lashd starts the reboot by itself, once everything is ready."""

    when: Literal["never", "ready", "window"] = "never"
    # "Sat,Sun 02:00-04:30", "Mon..Fri 23:00-05:00 Europe/Berlin"; without a time zone the host's own.
    windows: tuple[str, ...] = ()
    soft: bool = False  # userspace only, where the host can and the new system allows it
    # A server that hands out the right to reboot, one host at a time: the base address of a FleetLock service.
    fleetlock_url: str = ""
    fleetlock_group: str = "default"
    fleetlock_id: str = ""  # empty: derived from /etc/machine-id
    retry_seconds: float = Field(60.0, gt=0, le=86400)  # before a reboot that somebody blocked is tried again

    @field_validator("windows")
    @classmethod
    def _windows(cls, windows: tuple[str, ...]) -> tuple[str, ...]:
        for each in windows:
            try:
                window.parse(each)
            except LashdError as error:
                raise ValueError(error.message) from error
        return windows

    @field_validator("fleetlock_url")
    @classmethod
    def _address(cls, url: str) -> str:
        # User and password would be shown to everyone who reads the state; the paths are the protocol's.
        if url and not re.fullmatch(r"https?://([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[\w./~%+-]*)?", url, re.ASCII):
            raise ValueError(
                f"'{url}' is not the address of a FleetLock server, such as https://fleet.example.org/lock"
            )
        return url

    @field_validator("fleetlock_group")
    @classmethod
    def _group(cls, group: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9.-]{1,256}", group):
            raise ValueError(f"'{group}' is not the name of a FleetLock group: letters, digits, dots and hyphens")
        return group

    @field_validator("fleetlock_id")
    @classmethod
    def _id(cls, name: str) -> str:
        if len(name) > 256 or not name.isprintable():
            raise ValueError("the host's name at the FleetLock server is printable and has at most 256 characters")
        return name


class CollectSettings(_Section):
    after_boot: bool = True  # once, after the first good boot of a new deployment


class ToolSettings(_Section):
    skopeo: str = "skopeo"
    ostree: str = "ostree"
    python: str = "/usr/bin/python3"  # the interpreter that has python3-gi and libostree's introspection data


class Settings(_Section):
    host: HostSettings = HostSettings()
    paths: PathSettings = PathSettings()
    pull: PullSettings = PullSettings()
    gate: GateSettings = GateSettings()
    reboot: RebootSettings = RebootSettings()
    collect: CollectSettings = CollectSettings()
    tools: ToolSettings = ToolSettings()

    @property
    def booted_sysroot(self) -> bool:
        return self.host.sysroot == Path("/sysroot")

    @property
    def store(self) -> Path:
        """The bound image store; /usr/lib/bootc/storage links here."""
        return self.host.sysroot / "ostree/bootc/storage"

    @property
    def store_run(self) -> Path:
        """The store's run root: bootc's own on a booted host, so that both see the same mounts."""
        return Path("/run/bootc/storage") if self.booted_sysroot else self.paths.run / "storage"


def load(directories: Iterable[Path] = DIRECTORIES) -> Settings:
    """Read and check all settings. Raises InvalidArgument that names the file and the key."""
    merged: dict[str, dict[str, Any]] = {}
    origin: dict[tuple[str, str], Path] = {}
    for path in _files(directories):
        for section, keys in _parse(path).items():
            if not isinstance(keys, dict):
                raise LashdError(
                    ErrorName.INVALID_ARGUMENT, f"{path}: '{section}' must stand in a section such as [pull]."
                )
            for key, value in keys.items():
                merged.setdefault(section, {})[key] = value
                origin[section, key] = path
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise LashdError(ErrorName.INVALID_ARGUMENT, _explain(error, origin)) from error


def _files(directories: Iterable[Path]) -> list[Path]:
    found: dict[str, Path] = {}
    for directory in directories:
        for path in sorted(directory.glob("*.toml")) if directory.is_dir() else ():
            found[path.name] = path
    return [found[name] for name in sorted(found)]


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LashdError(ErrorName.INVALID_ARGUMENT, f"The settings file {path} cannot be read: {error}.") from error


def _explain(error: ValidationError, origin: dict[tuple[str, str], Path]) -> str:
    sentences = []
    for detail in error.errors():
        place = [str(part) for part in detail["loc"]]
        file = origin.get((place[0], place[1])) if len(place) > 1 else None
        sentences.append(f"{os.fspath(file) if file else 'settings'}: '{'.'.join(place)}': {_said(detail['msg'])}.")
    return " ".join(sentences)


def _said(message: str) -> str:
    """pydantic puts two words before what a check of ours said, which may be a whole sentence already."""
    return message.removeprefix("Value error, ").removesuffix(".")
