#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for bootc on a host of its composefs backend: it does what bootc does there, with its faults.

Not bootc, and not for hosts. As `bootc.py` beside it, whose words it uses, it follows the notes on bootc 1.16; numbers
in brackets are their sections. A root is a directory instead of an EROFS image, and `cfs mount` binds it. On a booted
host an image is fetched by ostree, and finalising deploys it by ostree as well, so that what boots next really boots.

$BOOTC_STAND_IN_ROOT is another root than /, for tests without a host. In etc/bootc-stand-in.json below it may be:
`newest` ({"digest", "root"}: what `image` means, instead of a registry), `no_flag` (the note has none), `no_mount`
(cfs does not know it), `hidden_entries` (they lie where nobody but bootc finds them).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, "/etc/bootc-stand-in")
import bootc
from bootc import Failed

ROOT = Path(os.environ.get("BOOTC_STAND_IN_ROOT", "/"))
BOOTED = "BOOTC_STAND_IN_ROOT" not in os.environ
REPOSITORY = ROOT / "sysroot/composefs"
STATE = ROOT / "sysroot/state/deploy"
RUN = ROOT / "run/composefs"
NOTE = RUN / "staged-deployment"


def main() -> int:
    path = ROOT / "etc/bootc-stand-in.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    options = arguments(config)
    if options.version:
        print("bootc 1.16.9")
        return 0
    try:
        if os.geteuid() != 0:
            raise Failed("This command must be executed as the root user")
        if BOOTED and options.verb != "internals":
            writable()
        Bootc(config, options).run()
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


def arguments(config: dict[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bootc", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    verbs = parser.add_subparsers(dest="verb")
    verbs.add_parser("status").add_argument("--format", default="json")
    upgrade, switch = (verbs.add_parser(name, allow_abbrev=False) for name in ("upgrade", "switch"))
    for verb in (upgrade, switch):
        verb.add_argument("--quiet", action="store_true")
        verb.add_argument("--progress-fd", type=int)
    upgrade.add_argument("--download-only", action="store_true")
    switch.add_argument("--enforce-container-sigpolicy", action="store_true")
    switch.add_argument("image")
    verbs.add_parser("rollback")
    verbs.add_parser("composefs-finalize-staged")
    verbs.add_parser("delete-deployment").add_argument("id")
    # For tests only: make a state out of the running ostree host, and say at boot which deployment runs.
    verbs.add_parser("stand-in-install")
    verbs.add_parser("stand-in-boot")
    internals = verbs.add_parser("internals").add_subparsers(dest="internal", required=True)
    cfs = internals.add_parser("cfs").add_subparsers(dest="cfs", required=True)
    if not config.get("no_mount"):
        mount = cfs.add_parser("mount")
        mount.add_argument("name")
        mount.add_argument("mountpoint")
    options = parser.parse_args()
    if not options.version and not options.verb:
        parser.error("a verb is needed")
    return options


def writable() -> None:
    """[2.1]"""
    if "_stand_in_unshared" not in os.environ:
        own = [sys.executable, os.path.realpath(sys.argv[0]), *sys.argv[1:]]
        script = 'mount -o remount,rw /sysroot && exec "$@"'
        words = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "bootc", *own]
        os.execvpe(words[0], words, os.environ | {"_stand_in_unshared": "1"})


class Bootc:
    def __init__(self, config: dict[str, Any], options: argparse.Namespace) -> None:
        self.config = config
        self.options = options
        # [4.2] As with systemd-boot: on the EFI system partition.
        place = "boot/hidden/loader" if config.get("hidden_entries") else "boot/efi/loader"
        self.loader = ROOT / place

    def run(self) -> None:
        getattr(self, self.options.verb.replace("-", "_"))()

    # ---- verbs ----

    def status(self) -> None:
        """[3.1]"""
        with self.lock(fcntl.LOCK_SH):
            booted, order, note = self.booted(), self.order(), self.note()
            staged = note["depl_id"] if note else ""
            rollback = next((id for id in order if id != booted), None)
            found = bootc.nothing()
            queued = order[0] != booted
            found["status"] |= {
                "type": "bootcHost",
                "staged": entry(staged) | {"downloadOnly": note["finalization_locked"]} if staged else None,
                "booted": entry(booted),
                "rollback": entry(rollback) if rollback else None,
                "rollbackQueued": queued,
            }
            found["spec"] = {
                "bootOrder": "rollback" if queued else "default",
                "image": entry(staged or booted)["image"]["image"],
            }
            print(bootc.canonical(found))

    def upgrade(self) -> None:
        """[2.5] No bound images; the note is the last thing before the clean-up."""
        note = self.note()
        self.stage(image_of(note["depl_id"] if note else self.booted()), locked=self.options.download_only)

    def switch(self) -> None:
        """[2.3, 2.5]"""
        self.stage(self.options.image)

    def stage(self, image: str, *, locked: bool = False) -> None:
        with self.lock(fcntl.LOCK_SH):
            self.start_service()
            note = self.note()
            digest, root = self.pull(image)
            id = id_of(digest)
            if id in (*self.order(), note and note["depl_id"]):
                print(f"No changes in: {image}" if id == self.booted() else "Staged update present, not changed")
                return
            install(id, image, digest, root)
            kept = [self.booted()]
            self.write_entries("entries.staged", [id, *kept])
            self.write_note(id, locked)
        with self.lock(fcntl.LOCK_EX):
            self.clean_up()
        print(f"Queued for next boot: docker://{image}\n  Digest: {digest}")

    def rollback(self) -> None:
        """[2.3] The first two change places, and what is staged goes without a word."""
        order = self.order()
        if len(order) < 2:
            raise Failed("No rollback available")
        NOTE.unlink(missing_ok=True)
        self.write_entries("entries.staged", [order[1], order[0], *order[2:]])
        self.exchange()
        if BOOTED:
            subprocess.run(["ostree", "admin", "set-default", "1"], check=True, stdout=subprocess.DEVNULL)
        print("Next boot: rollback deployment" if order[1] != self.booted() else "Next boot: current deployment")

    def delete_deployment(self) -> None:
        id = self.options.id
        note = self.note()
        if id == self.booted():
            raise Failed("Cannot delete currently booted deployment")
        if note and note["depl_id"] == id:
            NOTE.unlink()
            shutil.rmtree(self.loader / "entries.staged")
        elif id in self.order():
            self.write_entries("entries.staged", [one for one in self.order() if one != id])
            self.exchange()
        else:
            raise Failed(f"Deployment {id} not found")
        self.clean_up()

    def composefs_finalize_staged(self) -> None:
        """[2.4]"""
        note = self.note()
        if note is None or note.get("finalization_locked"):
            return
        id = note["depl_id"]
        self.exchange()
        if BOOTED:
            commit = (REPOSITORY / "images" / f"{id}.commit").read_text()
            origin = RUN / "origin"
            origin.write_text(f"[origin]\ncontainer-image-reference=ostree-unverified-registry:{image_of(id)}\n")
            subprocess.run(["ostree", "admin", "deploy", f"--origin-file={origin}", commit], check=True)

    def internals(self) -> None:
        """[4.2] `cfs mount`, in whatever namespace it is called."""
        root = REPOSITORY / "images" / self.options.name
        if not root.is_dir():
            raise Failed(f"No such file or directory (os error 2): images/{self.options.name}")
        subprocess.run(["mount", "--bind", "-o", "ro", root, self.options.mountpoint], check=True)

    def stand_in_install(self) -> None:
        if not BOOTED:
            digest, root = self.pull("")
            install(id_of(digest), self.config["image"], digest, root)
            self.write_entries("entries", [id_of(digest)])
            return
        from lashd.things.ostree.deployments import OstreeSysroot
        from lashd.words.config import Settings

        (booted,) = OstreeSysroot(Settings()).deployments()
        assert booted.digest is not None
        assert booted.image is not None
        id = id_of(booted.digest)
        install(id, booted.image.reference, booted.digest, checked_out(booted.checksum))
        self.write_entries("entries", [id])

    def stand_in_boot(self) -> None:
        """What the kernel would have been told."""
        link = next(word[7:] for word in Path("/proc/cmdline").read_text().split() if word.startswith("ostree="))
        commit = Path("/sysroot", link.lstrip("/")).readlink().name.partition(".")[0]
        found = next(path for path in (REPOSITORY / "images").glob("*.commit") if path.read_text() == commit)
        print(f"root=UUID=1 composefs={found.stem} rw")

    # ---- parts ----

    @contextlib.contextmanager
    def lock(self, how: int) -> Iterator[None]:
        """[2.1]"""
        REPOSITORY.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(REPOSITORY, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def start_service(self) -> None:
        if BOOTED:
            subprocess.run(["systemctl", "start", "bootc-finalize-staged.service"], check=True)

    def booted(self) -> str:
        path = Path("/run/elsewhere/proc/cmdline") if BOOTED else ROOT / "proc/cmdline"
        return next(word[10:].lstrip("?") for word in path.read_text().split() if word.startswith("composefs="))

    def note(self) -> dict[str, Any] | None:
        return dict(json.loads(NOTE.read_text())) if NOTE.exists() else None

    def write_note(self, id: str, locked: bool) -> None:
        RUN.mkdir(parents=True, exist_ok=True)
        note = {"depl_id": id} | ({} if self.config.get("no_flag") else {"finalization_locked": locked})
        (RUN / "new").write_text(bootc.canonical(note))
        (RUN / "new").rename(NOTE)

    def order(self) -> list[str]:
        entries = sorted((self.loader / "entries").iterdir(), reverse=True)
        return [path.read_text().partition("composefs=")[2].split()[0] for path in entries]

    def write_entries(self, name: str, ids: list[str]) -> None:
        shutil.rmtree(self.loader / name, ignore_errors=True)
        (self.loader / name).mkdir(parents=True)
        for number, id in enumerate(ids):
            text = f"title Test\nversion {number}\nlinux /x/vmlinuz\noptions rw composefs={id}\n"
            text += f"sort-key bootc-test-{number}\n"
            (self.loader / name / f"bootc_test-1-{9 - number}.conf").write_text(text)

    def exchange(self) -> None:
        if (self.loader / "entries").exists():
            (self.loader / "entries").rename(self.loader / "entries.old")
        (self.loader / "entries.staged").rename(self.loader / "entries")
        shutil.rmtree(self.loader / "entries.old", ignore_errors=True)

    def clean_up(self) -> None:
        """[1.7] What no deployment needs: states, roots, and each image of the store that is no host image."""
        note = self.note()
        kept = {*self.order(), note["depl_id"] if note else ""}
        hosts = {image_of(id) for id in kept if id}
        for path in STATE.iterdir():
            if path.name not in kept:
                shutil.rmtree(path)
        if not BOOTED:
            return
        listed = bootc.podman("list", "--format=json")
        if listed.returncode != 0:
            raise Failed(f"Pruning: Listing images: {listed.stderr.strip()}")
        garbage = [one["Id"] for one in json.loads(listed.stdout) if not hosts & set(one.get("Names") or ())]
        if garbage:
            ended = bootc.podman("rm", *garbage)
            if ended.returncode != 0:
                raise Failed(f"Pruning: Subprocess failed: exit status: {ended.returncode}\n{ended.stderr.strip()}")

    def pull(self, image: str) -> tuple[str, Path]:
        """The digest of what `image` means now, and its root."""
        if not BOOTED:
            return self.config["newest"]["digest"], Path(self.config["newest"]["root"])
        from lashd.things.ostree.backend import OstreeBackend
        from lashd.words.config import Settings
        from lashd.words.errors import LashdError
        from lashd.words.model import HostImage

        progress = bootc.Progress(self.options.progress_fd, 0)
        try:
            backend = OstreeBackend(Settings())
            fetched = asyncio.run(backend.fetch(HostImage(image), expected_digest=None, report=progress.layer))
        except LashdError as error:
            raise Failed(f"Upgrading: Pulling composefs: {error.message}") from None
        return fetched.digest, checked_out(fetched.checksum)


def id_of(digest: str) -> str:
    return hashlib.sha512(digest.encode()).hexdigest()


def image_of(id: str) -> str:
    text = (STATE / id / f"{id}.origin").read_text()
    return text.partition("docker://")[2].split()[0]


def checked_out(commit: str) -> Path:
    """A commit as a root that bootc has made: /etc is where it belongs."""
    root = REPOSITORY / "tmp" / commit
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ostree", "checkout", "--require-hardlinks", commit, root], check=True)
    (root / "etc").rmdir() if (root / "etc").exists() else None
    (root / "usr/etc").rename(root / "etc")
    root.with_suffix(".commit").write_text(commit)
    return root


def install(id: str, image: str, digest: str, root: Path) -> None:
    """[4.2] The root, and its state."""
    place = REPOSITORY / "images" / id
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        if REPOSITORY in root.parents:
            root.rename(place)
            root.with_suffix(".commit").rename(place.with_suffix(".commit"))
        else:
            shutil.copytree(root, place, symlinks=True)
    shutil.rmtree(STATE / id, ignore_errors=True)
    (STATE / id).mkdir(parents=True)
    (ROOT / "sysroot/state/os/default/var").mkdir(parents=True, exist_ok=True)
    (STATE / id / "var").symlink_to("../../os/default/var")
    subprocess.run(["cp", "-a", place / "etc", STATE / id / "etc"], check=True)
    (STATE / id / f"{id}.origin").write_text(
        f"[origin]\ncontainer-image-reference = ostree-unverified-image:docker://{image}\n\n"
        f"[boot]\nboot_type = bls\ndigest = {'5f' * 32}\n\n[image]\nmanifest_digest = {digest}\n"
    )


def entry(id: str) -> dict[str, Any]:
    origin = (STATE / id / f"{id}.origin").read_text()
    return {
        "cachedUpdate": None,
        "composefs": {
            "bootDigest": "5f" * 32,
            "bootType": "Bls",
            "bootloader": "systemd",
            "missingVerityAllowed": False,
            "verity": id,
        },
        "downloadOnly": False,
        "image": {
            "architecture": "amd64",
            "image": {"image": image_of(id), "transport": "registry"},
            "imageDigest": origin.partition("manifest_digest = ")[2].split()[0],
            "timestamp": None,
            "version": None,
        },
        "incompatible": False,
        "ostree": None,
        "pinned": False,
        "softRebootCapable": False,
        "store": None,
    }


if __name__ == "__main__":
    sys.exit(main())
