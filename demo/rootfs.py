# SPDX-License-Identifier: Apache-2.0
"""The root filesystem of the throwaway host: Debian trixie, made once by mmdebstrap and kept in the cache."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "host"

SUITE = "trixie"
PACKAGES = (
    # the host itself
    *("systemd", "systemd-sysv", "dbus", "dbus-daemon", "polkitd", "libnss-systemd"),
    *("iproute2", "procps", "util-linux", "nftables"),
    # images: how they come, where they lie, how they run
    *("ostree", "ostree-boot", "skopeo", "podman", "crun", "netavark"),
    # what lashd needs at run time
    *("python3", "python3-gi", "gir1.2-ostree-1.0", "python3-dbus-next"),
    *("python3-pydantic", "python3-msgspec", "python3-systemd", "python3-rich"),
    # the application inside the container images
    "busybox-static",
)
OPTIONS = (
    "--variant=minbase",
    "--components=main",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/bash-completion/*",
)
# mmdebstrap does not read the machine's own apt settings; these are the ones that decide whether a mirror is reachable.
PASSED_ON = ("Acquire::http", "Acquire::https", "Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::Retries")


def key() -> str:
    """Short hash of everything that decides what the root filesystem contains."""
    recipe = json.dumps([SUITE, PACKAGES, OPTIONS])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def path() -> Path:
    """Where the root filesystem is, or will be."""
    return CACHE / f"rootfs-{key()}"


def ensure() -> Path:
    """Returns the unpacked root filesystem, built first (about 40 s) when it is missing. Read-only to callers.

    Several callers may ask at once: one builds, the others wait. Raises CalledProcessError when mmdebstrap fails.
    """
    with locked("rootfs"):
        root = path()
        if not root.is_dir():
            build(root)
        return root


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the cache's lock called `name`; other processes wait."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(root: Path) -> None:
    if os.geteuid() != 0:
        raise PermissionError("The throwaway host is built by mmdebstrap with real owners and modes: run this as root.")
    half = root.with_name(root.name + ".half")
    if half.exists():
        shutil.rmtree(half)
    # It mounts /proc, /sys and more below. Ended half way, that would stay for whoever then removes the checkout.
    argv = ["unshare", "--mount", "--propagation", "private", "--", "mmdebstrap"]
    argv += [*OPTIONS, f"--include={','.join(PACKAGES)}"]
    argv += [f"--aptopt={line}" for line in apt_settings()]
    argv += [SUITE, str(half), mirror()]
    print(
        f"building the {SUITE} root filesystem from {argv[-1]} (once, it is kept in {CACHE})",
        file=sys.stderr,
        flush=True,
    )
    log = CACHE / f"{root.name}.log"
    with open(log, "wb") as output:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"mmdebstrap ended with status {done.returncode}. The whole log is {log}; its end:\n{tail}")
    half.rename(root)


def mirror() -> str:
    """The Debian mirror the machine's apt uses, or Debian's own; $LASHD_DEBIAN_MIRROR decides over both."""
    chosen = os.environ.get("LASHD_DEBIAN_MIRROR")
    if chosen:
        return chosen
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=False
    )
    for uri in listing.stdout.split():
        if uri.startswith(("http://", "https://")) and uri.rstrip("/").endswith("/debian"):
            return uri
    return "http://deb.debian.org/debian"


def apt_settings() -> list[str]:
    """The machine's apt settings about reaching mirrors, as apt.conf lines."""
    dump = subprocess.run(["apt-config", "dump", *PASSED_ON], capture_output=True, text=True, check=False)
    return [line for line in dump.stdout.splitlines() if line.endswith(";") and not line.endswith(' "";')]
