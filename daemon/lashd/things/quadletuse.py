# SPDX-License-Identifier: Apache-2.0
"""What the options of a unit mean for its image: how it is pulled, and whether it would run from the bound image store.

Options come from keys and from command lines (GlobalArgs=, PodmanArgs=); as on podman's command line, the later wins.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence

from lashd.things.quadlet import Unit
from lashd.things.rootfs import Root, Unreadable
from lashd.things.storageconf import CONFIGURATIONS, is_bound_store, parse_storage
from lashd.words.model import PullOptions, UseProblem

_STORE_OPTIONS = ("imagestore", "additionalimagestore")
_PULLS_IN_SPITE = ("always", "newer", "ifnewer")
_PULLS_ONLY_WHEN_ABSENT = ("missing", "ifmissing", "ifnotpresent", "never")
_AUTO_UPDATE_LABEL = "io.containers.autoupdate"

# Left: other words for an architecture that podman takes. Right: how OCI names it, and its variant.
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "x86": ("386", ""),
    "ppc64-le": ("ppc64le", ""),
}
_TRUE = ("1", "t", "true")
_PRICE = 6  # of a character of TOML (Root.spend)

# Replaces specifiers in a value; raises what the caller wants raised.
Expand = Callable[[str], str]


def pull_options(unit: Unit, expand: Expand) -> PullOptions:
    """How podman would fetch the image of `unit`. `expand` replaces specifiers in what is used.

    Keys are those of an `.image`; a `.container` has only its PodmanArgs=. `Creds=` and `DecryptionKey=` are not taken
    over: no secret of a unit file is passed on.
    """
    said = {"--os": "", "--arch": "", "--variant": "", "--authfile": "", "--cert-dir": ""}
    tls_verify: bool | None = None
    if unit.section == "Image":
        keys = {
            "OS": "--os",
            "Arch": "--arch",
            "Variant": "--variant",
            "AuthFile": "--authfile",
            "CertDir": "--cert-dir",
        }
        said |= {option: unit.value(key) for key, option in keys.items()}
        tls_verify = unit.file.flag(unit.section, "TLSVerify")
    words = unit.words("PodmanArgs")
    said |= {option: values[-1] for option in said if (values := list(option_values(words, option)))}
    for word in words:
        if word == "--tls-verify" or word.startswith("--tls-verify="):
            tls_verify = word == "--tls-verify" or word.partition("=")[2].lower() in _TRUE
    said = {option: expand(value) for option, value in said.items()}
    for platform in option_values(words, "--platform"):
        said["--os"], said["--arch"], said["--variant"] = [*expand(platform).split("/", 2), "", ""][:3]
    arch = said["--arch"].lower()
    arch, variant = _ARCHITECTURES.get(arch, (arch, ""))
    return PullOptions(
        auth_file=_absolute(said["--authfile"]),
        cert_dir=_absolute(said["--cert-dir"]),
        tls_verify=tls_verify,
        arch=arch,
        os=said["--os"].lower(),
        variant=said["--variant"].lower() or variant,
    )


def use_problems(unit: Unit, expand: Expand, *, store_configured: bool) -> set[UseProblem]:
    """Why `unit` would not use the image in the bound store, judged by its files alone.

    `store_configured`: storage.conf of the root names the bound store (`read_names_store`).
    """
    problems = set()
    if not _names_store(unit, expand, store_configured):
        problems.add(UseProblem.STORE_NOT_NAMED)
    if _pulls_always(unit):
        problems.add(UseProblem.PULL_ALWAYS)
    if unit.section == "Container" and _auto_update(unit) in ("registry", "image"):
        problems.add(UseProblem.AUTO_UPDATE)
    return problems


def _names_store(unit: Unit, expand: Expand, store_configured: bool) -> bool:
    words = unit.words("GlobalArgs") + unit.words("PodmanArgs")
    options = list(option_values(words, "--storage-opt"))
    if not options and not list(option_values(words, "--storage-driver")):
        return store_configured
    # Options on the command line replace those of storage.conf, all of them.
    for option in options:
        key, _, stores = expand(option).partition("=")
        if key.rpartition(".")[2].lower() in _STORE_OPTIONS and any(map(is_bound_store, stores.split(","))):
            return True
    return False


def _pulls_always(unit: Unit) -> bool:
    key, option = ("Policy", "--policy") if unit.section == "Image" else ("Pull", "--pull")
    policies = [unit.value(key), *option_values(unit.words("PodmanArgs"), option)]
    policy = policies[-1].lower()
    # 'podman image pull' pulls unless it is told not to; 'podman run' the other way round.
    return policy not in _PULLS_ONLY_WHEN_ABSENT if unit.section == "Image" else policy in _PULLS_IN_SPITE


def _auto_update(unit: Unit) -> str:
    words = unit.words("PodmanArgs")
    labels = [f"{_AUTO_UPDATE_LABEL}={unit.value('AutoUpdate')}"]
    labels += unit.words("Label")
    labels += [label for option in ("--label", "-l") for label in option_values(words, option)]
    return [value for key, _, value in (label.partition("=") for label in labels) if key == _AUTO_UPDATE_LABEL][-1]


def option_values(words: Sequence[str], option: str) -> Iterator[str]:
    """The values of `option` on a command line, written `--option=value` or as two words."""
    following = iter(words)
    for word in following:
        if word == option:
            value = next(following, None)
            if value is not None:
                yield value
        elif word.startswith(option + "="):
            yield word.removeprefix(option + "=")


def read_names_store(root: Root) -> bool:
    """Whether the storage.conf of `root` names the bound image store as an additional one."""
    for path in CONFIGURATIONS:
        try:
            return parse_storage(root.read_text(path, price=_PRICE)).names_bound_store
        except Unreadable as error:
            if not error.absent:
                return False
    return False


def _absolute(path: str) -> str:
    # A service of the system runs in /.
    return posixpath.join("/", path) if path else ""
