# SPDX-License-Identifier: Apache-2.0
"""Settings: TOML files `*.toml` in lashd/lashd.d below /usr/lib, /etc and /run, read in that order of weight.

As with systemd's own drop-ins, a file in /run or /etc replaces one of the same name in /usr/lib, and what remains is
read sorted by name, later keys winning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from msgspec import Meta

from lashd.words import shape, window
from lashd.words.errors import ErrorName, LashdError

DIRECTORIES = tuple(Path(base, "lashd/lashd.d") for base in ("/usr/lib", "/etc", "/run"))

_LIMIT = 1024 * 1024  # bytes of one file

_Hour = Annotated[float, Meta(gt=0, le=3600)]  # seconds
_Day = Annotated[float, Meta(gt=0, le=86400)]


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Where the host is. `sysroot` other than /sysroot is a sysroot that is not booted: no staging there."""

    backend: Literal["auto", "ostree", "bootc"] = "auto"  # auto: bootc where it is installed
    sysroot: Path = Path("/sysroot")
    stateroot: str = ""  # for a sysroot that is not booted: the stateroot to deploy into, empty for the only one


@dataclass(frozen=True, slots=True)
class PathSettings:
    state: Path = Path("/var/lib/lashd")  # records, partial downloads; must survive a reboot
    run: Path = Path("/run/lashd")  # what must not survive one
    ostree_run: Path = Path("/run/ostree")
    composefs_run: Path = Path("/run/composefs")
    root: Path = Path("/")  # the running system, whose etc/, run/ and usr/lib are read for credentials and policy


@dataclass(frozen=True, slots=True)
class PullSettings:
    parallel: Annotated[int, Meta(ge=0, le=64)] = 0  # images at once; 0: chosen from the number of cores
    attempts: Annotated[int, Meta(ge=1, le=100)] = 6  # how often one image is tried in one job
    backoff_seconds: _Hour = 1.0  # before the second attempt; doubles, with jitter
    backoff_limit_seconds: _Day = 60.0
    stall_seconds: _Hour = 90.0  # a transfer without a new byte for so long is ended
    reserve_bytes: Annotated[int, Meta(ge=0, le=2**62)] = 512 * 1024 * 1024  # free space that a pull never takes


@dataclass(frozen=True, slots=True)
class GateSettings:
    """`policy`: hold what is not complete back, only `warn`, or `off` (nothing is held, nothing checked)."""

    policy: Literal["hold", "warn", "off"] = "hold"
    restage: bool = True  # stage again what a held reboot or a power cut has lost
    # Forbid reboots and shutdowns while a deployment is held: never, or once reboots were wasted on it.
    inhibit: Literal["never", "wasted"] = "never"
    poll_seconds: _Hour = 30.0  # how often it is looked without being told to
    retry_seconds: _Day = 30.0  # before a bind that failed is tried again; doubles, with jitter
    retry_limit_seconds: _Day = 1800.0
    # Names that are not what the booted deployment is bound to: keep their units from being started, or only warn.
    strict_names: bool = False


@dataclass(frozen=True, slots=True)
class RebootSettings:
    """When lashd starts the reboot by itself, once everything is ready."""

    when: Literal["never", "ready", "window"] = "never"
    # "Sat,Sun 02:00-04:30", "Mon..Fri 23:00-05:00 Europe/Berlin"; without a time zone the host's own.
    windows: tuple[str, ...] = ()
    soft: bool = False  # userspace only, where the host can and the new system allows it
    # A server that hands out the right to reboot, one host at a time: the base address of a FleetLock service.
    fleetlock_url: str = ""
    fleetlock_group: str = "default"
    fleetlock_id: str = ""  # empty: derived from /etc/machine-id
    retry_seconds: _Day = 60.0  # before a reboot that somebody blocked is tried again


@dataclass(frozen=True, slots=True)
class CollectSettings:
    after_boot: bool = True  # once, after the first good boot of a new deployment


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Both below `paths.run`; there is no TCP port."""

    socket: bool = True  # metrics.sock, for root: answers GET /metrics with OpenMetrics
    textfile: bool = False  # metrics/lashd.prom, for node_exporter's textfile collector


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    # With nothing to do, to tell or to guard for so long lashd ends, and is started when it is needed; 0: never.
    idle_exit_seconds: Annotated[float, Meta(ge=0, le=86400)] = 300.0


@dataclass(frozen=True, slots=True)
class ToolSettings:
    skopeo: str = "skopeo"
    ostree: str = "ostree"
    python: str = "/usr/bin/python3"  # the interpreter that has python3-gi and libostree's introspection data


@dataclass(frozen=True, slots=True)
class Settings:
    host: HostSettings = HostSettings()
    paths: PathSettings = PathSettings()
    pull: PullSettings = PullSettings()
    gate: GateSettings = GateSettings()
    reboot: RebootSettings = RebootSettings()
    collect: CollectSettings = CollectSettings()
    metrics: MetricsSettings = MetricsSettings()
    daemon: DaemonSettings = DaemonSettings()
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
    """Read and check all settings. Raises InvalidArgument that names the file, the line and the key."""
    merged: dict[str, dict[str, Any]] = {}
    origin: dict[tuple[str, str], _Place] = {}
    for path in _files(directories):
        text, sections = _parse(path)
        for section, keys in sections.items():
            if not isinstance(keys, dict):
                place = _Place(path, text, section)
                raise LashdError(
                    ErrorName.INVALID_ARGUMENT, f"{place}: '{section}' must stand in a section such as [pull]."
                )
            for key, value in keys.items():
                merged.setdefault(section, {})[key] = value
                origin[section, key] = _Place(path, text, section, key)
    return settings_from(merged, origin)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where something is said; as text, the file and the line."""

    path: Path
    text: str
    section: str
    key: str = ""

    def __str__(self) -> str:
        from lashd.words.toml_lines import line_of  # only for who has made a mistake

        line = line_of(self.text, self.section, self.key)
        return f"{self.path}, line {line}" if line else f"{self.path}"


DEFAULT = Settings()


def load_or_default(say: Callable[[str], None], directories: Iterable[Path] = DIRECTORIES) -> Settings:
    """The settings, or those that lashd comes with where they cannot be read, and `say` is told why.

    For whatever must not fail over a typing mistake; what comes with lashd is the safe choice everywhere.
    """
    try:
        return load(directories)
    except Exception as error:
        said = str(error) if isinstance(error, LashdError) else f"The settings cannot be read: {error}."
        say(f"{said} The settings that lashd comes with are used instead.")
        return DEFAULT


def without_files() -> Settings:
    """What a daemon goes by whose files cannot be read: what lashd comes with, and nothing is removed unasked."""
    return replace(DEFAULT, collect=CollectSettings(after_boot=False))


def settings_from(
    values: Mapping[str, Mapping[str, Any]], origin: Mapping[tuple[str, str], _Place] | None = None
) -> Settings:
    """Settings from section → key → value; `origin` says where a section's key is from.

    Raises InvalidArgument that names every mistake.
    """
    sections: dict[str, Any] = {}
    mistakes: list[str] = []
    known: dict[str, Any] = {each.name: type(each.default) for each in fields(Settings)}
    for section, keys in values.items():
        if section not in known:
            # Each file once, at the line where it begins with that.
            files = {place.path: place for (where, _), place in (origin or {}).items() if where == section}
            places = sorted(str(_Place(path, place.text, section)) for path, place in files.items())
            mistakes.append(f"{', '.join(places) or 'settings'}: there is no section '{section}'.")
            continue
        kinds = get_type_hints(known[section], include_extras=True)
        found = {}
        for key, value in keys.items():
            try:
                found[key] = _setting(f"{section}.{key}", kinds.get(key), value)
            except ValueError as error:
                place = (origin or {}).get((section, key), "settings")
                mistakes.append(f"{place}: '{section}.{key}': {_for_people(str(error).removesuffix('.'))}.")
        if not mistakes:
            sections[section] = known[section](**found)
    if not mistakes:
        return Settings(**sections)
    raise LashdError(ErrorName.INVALID_ARGUMENT, " ".join(mistakes))


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "greater than", "<": "less than"}


def _for_people(why: str) -> str:
    """What msgspec says of a value that does not fit, in words for who writes settings and no programs."""
    if not why.startswith("Expected "):
        return why
    why = re.sub(r"`(\w+)`", lambda found: _KINDS.get(found[1], found[1]), why.removeprefix("Expected "))
    why = re.sub(r" ([<>]=?) ", lambda found: f", {_BOUNDS[found[1]]} ", why)
    return f"it must be {why.replace(', got ', ', and not ')}"


def _setting(name: str, kind: Any, value: Any) -> Any:
    if kind is None:
        raise ValueError("there is no such setting")
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"it must be one of {', '.join(map(repr, get_args(kind)))}")
    found = shape.shaped(kind, value)
    if name in _CHECKS:
        _CHECKS[name](found)
    return found


def _windows(texts: tuple[str, ...]) -> None:
    for text in texts:
        try:
            window.parse(text)
        except LashdError as error:
            raise ValueError(error.message) from error


def _server(url: str) -> None:
    # User and password would be shown to everyone who reads the state; the paths are the protocol's.
    if url and not re.fullmatch(r"https?://([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[\w./~%+-]*)?", url, re.ASCII):
        raise ValueError(f"'{url}' is not the address of a FleetLock server, such as https://fleet.example.org/lock")


def _group(group: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,256}", group):
        raise ValueError(f"'{group}' is not the name of a FleetLock group: letters, digits, dots and hyphens")


def _id(name: str) -> None:
    if len(name) > 256 or not name.isprintable():
        raise ValueError("the host's name at the FleetLock server is printable and has at most 256 characters")


def _absolute(path: Path) -> None:
    if not path.is_absolute():
        raise ValueError(f"'{path}' is not an absolute path, so it would mean another place for each program")


def _program(name: str) -> None:
    if not name or "\0" in name:
        raise ValueError(f"{name!r} is not the name or the path of a program")


# What a type does not say; each raises ValueError.
_CHECKS: Mapping[str, Callable[[Any], None]] = {
    "host.sysroot": _absolute,
    **{f"paths.{each.name}": _absolute for each in fields(PathSettings)},
    **{f"tools.{each.name}": _program for each in fields(ToolSettings)},
    "reboot.windows": _windows,
    "reboot.fleetlock_url": _server,
    "reboot.fleetlock_group": _group,
    "reboot.fleetlock_id": _id,
}


def _files(directories: Iterable[Path]) -> list[Path]:
    found: dict[str, Path] = {}
    for directory in directories:
        for path in sorted(directory.glob("*.toml")) if directory.is_dir() else ():
            found[path.name] = path
    return [found[name] for name in sorted(found)]


def _parse(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of the file and what it says."""
    import tomllib  # where there is no file, and that is most hosts, it is not needed

    try:
        # Never waits for a FIFO; a link to /dev/null is how a file of /usr/lib is masked.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(_LIMIT + 1)
        if len(content) > _LIMIT:
            raise ValueError(f"it has more than {_LIMIT} bytes")
        text = content.decode("utf-8")
        return text, tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # a number of thousands of digits is no TOMLDecodeError
        raise LashdError(ErrorName.INVALID_ARGUMENT, f"The settings file {path} cannot be read: {error}.") from error
