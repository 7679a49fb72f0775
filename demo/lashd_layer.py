# SPDX-License-Identifier: Apache-2.0
"""lashd as one layer of a host image: where each file of the checkout goes on a host."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from demo.shell import call
from tests.support.images import Content, LayerBlob, Link, Program, files

REPOSITORY = Path(__file__).resolve().parent.parent
_SITE = "usr/lib/python3/dist-packages"
_UNITS = "usr/lib/systemd/system"

# (pattern in the checkout, directory on the host)
_PLACES = (
    ("units/*.service", _UNITS),
    ("units/*.target", _UNITS),
    ("units/*.path", _UNITS),
    ("units/*.socket", _UNITS),
    ("units/*.timer", _UNITS),
    ("units/*.*.d/*.conf", _UNITS),
    ("units/*.preset", "usr/lib/systemd/system-preset"),
    ("units/tmpfiles.d/*.conf", "usr/lib/tmpfiles.d"),
    ("dbus/*.conf", "usr/share/dbus-1/system.d"),
    ("dbus/*.service", "usr/share/dbus-1/system-services"),
    ("dbus/*.xml", "usr/share/dbus-1/interfaces"),
    ("dbus/*.policy", "usr/share/polkit-1/actions"),
    ("dbus/polkit/*.policy", "usr/share/polkit-1/actions"),
    # Its database is made at the first boot, by systemd-journal-catalog-update.service.
    ("packaging/lashd.catalog", "usr/lib/systemd/catalog"),
    ("README.md", "usr/share/doc/lashd"),
    ("docs/*", "usr/share/doc/lashd/docs"),
)
# Programs, by their directory in the checkout, with whatever directories are below it.
_PROGRAMS = (
    ("packaging/libexec", "usr/lib/lashd"),
    ("packaging/greenboot", "usr/lib/greenboot"),
)
# Files that are called otherwise on a host than in the checkout.
_RENAMED = {
    "packaging/completions/lashctl.bash": "usr/share/bash-completion/completions/lashctl",
    "packaging/completions/lashctl.fish": "usr/share/fish/vendor_completions.d/lashctl.fish",
    "packaging/completions/_lashctl": "usr/share/zsh/site-functions/_lashctl",
}
# Each where its module exists.
_COMMANDS = {
    "usr/bin/lashctl": "lashd.cli.main",
    "usr/bin/lashd": "lashd.bus.service",
    "usr/lib/lashd/gate": "lashd.running.gate",
    "usr/lib/lashd/activate": "lashd.running.activate",
}
# -I: nothing of the environment, of the working directory or of root's home is used.
_LAUNCHER = """\
#!/usr/bin/python3 -I
import sys

from {module} import main

sys.exit(main())
"""


def lashd_layer(tree: Path) -> LayerBlob:
    """The layer, for hosts made from `tree`, whose Python compiles the modules."""
    content: dict[str, Content] = {}
    for pattern, place in _PLACES:
        for path in sorted(REPOSITORY.glob(pattern)):
            # Drop-ins keep the directory that names their unit.
            below = f"{path.parent.name}/{path.name}" if path.parent.match("units/*.*.d") else path.name
            content[f"{place}/{below}"] = path.read_bytes()
            if place == _UNITS and path.parent.name == "units":
                content |= _enabled(path)
    for source, place in _PROGRAMS:
        for path in sorted((REPOSITORY / source).rglob("*")):
            if path.is_file():
                content[f"{place}/{path.relative_to(REPOSITORY / source)}"] = Program(path.read_bytes())
    for path, place in _RENAMED.items():
        content[place] = (REPOSITORY / path).read_bytes()
    for name, module in _COMMANDS.items():
        if (REPOSITORY / "daemon" / module.replace(".", "/")).with_suffix(".py").is_file():
            content[name] = Program(_LAUNCHER.format(module=module).encode())
    return files(content | _package(tree))


def _enabled(unit: Path) -> dict[str, Content]:
    """The links that `systemctl enable` would make, from the unit's [Install] section, in /usr."""
    links: dict[str, Content] = {}
    for line in unit.read_text().splitlines():
        key, _, value = line.partition("=")
        kind = {"WantedBy": "wants", "RequiredBy": "requires"}.get(key.strip())
        for other in value.split() if kind else ():
            links[f"{_UNITS}/{other}.{kind}/{unit.name}"] = Link(f"../{unit.name}")
    return links


def _package(tree: Path) -> dict[str, Content]:
    """The Python package with bytecode that is never compared with its source: all files there are from 1970."""
    with tempfile.TemporaryDirectory(prefix="lashd-layer-") as work:
        package = Path(work, "lashd")
        shutil.copytree(REPOSITORY / "daemon/lashd", package, ignore=shutil.ignore_patterns("__pycache__"))
        # In a mount namespace of its own, over a directory that is empty in the tree, so that the tree stays as it is.
        script = (
            'mount --bind "$1" "$0/tmp" && exec chroot "$0" /usr/bin/python3 -m compileall -q '
            f"--invalidation-mode unchecked-hash -s /tmp -p /{_SITE} /tmp/lashd"
        )
        call(["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, tree, work])
        return {
            f"{_SITE}/{path.relative_to(work)}": path.read_bytes()
            for path in sorted(package.rglob("*"))
            if path.is_file()
        }
