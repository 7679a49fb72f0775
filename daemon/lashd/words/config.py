# SPDX-License-Identifier: Apache-2.0
"""Settings: TOML files `*.toml` in lashd/lashd.d below /usr/lib, /etc and /run, read in that order of weight.

As with systemd's own drop-ins, a file in /run or /etc replaces one of the same name in /usr/lib, and what remains is
read sorted by name, later keys winning.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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


class ToolSettings(_Section):
    skopeo: str = "skopeo"
    ostree: str = "ostree"
    python: str = "/usr/bin/python3"  # the interpreter that has python3-gi and libostree's introspection data


class Settings(_Section):
    host: HostSettings = HostSettings()
    paths: PathSettings = PathSettings()
    pull: PullSettings = PullSettings()
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
        sentences.append(f"{os.fspath(file) if file else 'settings'}: '{'.'.join(place)}': {detail['msg']}.")
    return " ".join(sentences)
