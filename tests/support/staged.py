# SPDX-License-Identifier: Apache-2.0
"""What only a booted host has, for a sysroot in a directory: a running deployment and a staged one.

Both notes are in ostree's own format, written by GLib.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

from lashd.things.ostree.deployments import OstreeSysroot
from lashd.things.ostree.lockfile import STAGED
from lashd.words.config import Settings
from lashd.words.model import Deployment

_WRITE = """
import sys
from gi.repository import GLib
v = GLib.Variant.parse(GLib.VariantType.new("a{sv}"), sys.argv[2], None, None)
open(sys.argv[1], "wb").write(v.get_data_as_bytes().get_data())
"""


@functools.cache
def variant(text: str) -> bytes:
    """The serialised a{sv} that `text` describes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "variant")
        subprocess.run(["/usr/bin/python3", "-c", _WRITE, path, text], check=True)
        return path.read_bytes()


def backing(root: Path) -> bytes:
    """The note that `root` is the running root (run/ostree-booted), or the next one (nextroot-booted)."""
    found = root.stat()
    return variant(f"{{'backing-root-device-inode': <(uint64 {found.st_dev}, uint64 {found.st_ino})>}}")


def note(name: str, stateroot: str, more: str = "") -> bytes:
    """The note that the deployment `name` is staged; `more` are further entries, as GVariant text."""
    target = f"<{{'name': <'{name}'>, 'osname': <'{stateroot}'>}}>"
    return variant(f"{{'target': {target}{', ' if more else ''}{more}}}")


def play_booted(settings: Settings, deployment: Deployment) -> OstreeSysroot:
    """Let the installed `deployment` be the running one, and a copy of it with the serial 7 be staged."""
    root = settings.paths.root
    (root / "run").mkdir(exist_ok=True)
    (root / "boot").symlink_to(settings.host.sysroot / "boot")
    (root / "run/ostree-booted").write_bytes(backing(deployment.root))
    staged = deployment.root.with_name(f"{deployment.checksum}.7")
    for suffix in ("", ".origin"):
        subprocess.run(["cp", "-a", f"{deployment.root}{suffix}", f"{staged}{suffix}"], check=True)
    (settings.paths.ostree_run / STAGED).write_bytes(note(staged.name, deployment.stateroot))
    sysroot = OstreeSysroot(settings)
    sysroot.booted = True
    return sysroot
