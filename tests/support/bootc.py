#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for bootc on a booted ostree host: an executable that does what bootc does, with its faults.

Not bootc, and not for hosts: Debian has no bootc, so the tests put this at /usr/bin/bootc. It takes the same arguments
and the same lock, prints the same words, ends with the same statuses and stages real ostree deployments. Numbers in
brackets are the sections of the notes on bootc 1.16 that it follows; docs/bootc.md has what lashd assumes of them.

/etc/bootc-stand-in.json may say: `version`; `images_first` (fetch bound images before staging, as versions after
1.16.9 do); `locked_seconds` (how long it keeps the lock before it does anything); `staging_seconds` (how much longer
than here it takes from the commit to what is staged); `staging_until` (a file that it waits for between the two);
`babble` (so many bytes of progress).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

CONFIG = Path("/etc/bootc-stand-in.json")
STORE = Path("/sysroot/ostree/bootc/storage")
ALIAS = Path("/run/bootc/storage")
STAMP = Path("/ostree/bootc")
BOUND = "usr/lib/bootc/bound-images.d"
_LATER = "_ostree_unshared"  # as bootc's own guard


class Failed(Exception):
    """What ends it with status 1."""


def main() -> int:
    config = json.loads(CONFIG.read_text()) if CONFIG.exists() else {}
    version = config.get("version", "1.16.9")
    options = arguments(tuple(int(part) for part in version.split(".")))
    if options.version:
        print(f"bootc {version}")
        return 0
    try:
        if not Path("/run/ostree-booted").exists():
            if options.verb == "status":
                print(canonical(nothing()))
                return 0
            raise Failed("System not booted via bootc")
        if os.geteuid() != 0:
            raise Failed("This command must be executed as the root user")
        in_own_namespace()
        # [2.1] Exclusive, for the whole life of the process; `status` takes it as well.
        with locked(config.get("locked_seconds", 0)):
            Bootc(config, options).run()
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


def arguments(version: tuple[int, ...]) -> argparse.Namespace:
    """[2.2, 2.3] Ends with 2, as clap does, where an argument is not known."""
    parser = argparse.ArgumentParser(prog="bootc", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    verbs = parser.add_subparsers(dest="verb")
    status = verbs.add_parser("status", allow_abbrev=False)
    status.add_argument("--json", action="store_true")
    status.add_argument("--format", choices=["humanreadable", "yaml", "json"])
    status.add_argument("--format-version", type=int, choices=[0, 1])
    for name, aliases in (("upgrade", ["update"]), ("switch", []), ("rollback", [])):
        verb = verbs.add_parser(name, aliases=aliases, allow_abbrev=False)
        verb.add_argument("--apply", action="store_true")
        if name == "rollback":
            continue
        verb.add_argument("--quiet", action="store_true")
        if version >= (1, 1, 4):
            verb.add_argument("--progress-fd", type=int)
        if name == "switch":
            verb.add_argument("image")
            continue
        verb.add_argument("--check", action="store_true")
        if version >= (1, 12, 0):
            verb.add_argument("--download-only", action="store_true")
            verb.add_argument("--from-downloaded", action="store_true")
    internals = verbs.add_parser("internals").add_subparsers(dest="internal")
    internals.add_parser("cleanup")
    options = parser.parse_args()
    if options.verb == "update":
        options.verb = "upgrade"
    if not options.version and not options.verb:
        parser.error("a verb is needed")
    if getattr(options, "check", False) and (options.apply or getattr(options, "download_only", False)):
        parser.error("the argument '--check' cannot be used with it")
    return options


def in_own_namespace() -> None:
    """[2.1] Only in there is /sysroot writable."""
    if _LATER not in os.environ:
        own = [sys.executable, os.path.realpath(sys.argv[0]), *sys.argv[1:]]
        script = 'mount -o remount,rw /sysroot && exec "$@"'
        words = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "bootc", *own]
        os.execvpe(words[0], words, os.environ | {_LATER: "1"})


@contextlib.contextmanager
def locked(seconds: float) -> Iterator[None]:
    with open("/sysroot/ostree/lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for sysroot lock...", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(seconds)
        yield


class Bootc:
    def __init__(self, config: dict[str, Any], options: argparse.Namespace) -> None:
        import gi

        gi.require_version("OSTree", "1.0")
        from gi.repository import Gio, GLib, OSTree

        self.Gio, self.GLib, self.OSTree = Gio, GLib, OSTree
        self.options = options
        self.images_first = config.get("images_first", False)
        self.staging_seconds = config.get("staging_seconds", 0)
        self.staging_until = config.get("staging_until", "/")
        self.sysroot = OSTree.Sysroot.new_default()
        self.sysroot.set_mount_namespace_in_use()
        self.sysroot.load(None)
        self.booted = self.sysroot.require_booted_deployment()
        self.progress = Progress(getattr(options, "progress_fd", None), config.get("babble", 0))

    def run(self) -> None:
        if self.options.verb == "internals":
            self.prune()
        else:
            getattr(self, self.options.verb)()

    # ---- verbs ----

    def status(self) -> None:
        """[3.1]"""
        found = nothing()
        staged = self.sysroot.get_staged_deployment()
        order = [one for one in self.sysroot.get_deployments() if not one.is_staged()]
        rollback = next((one for one in order if not same(one, self.booted)), None)
        # The rollback goes before what is booted.
        queued = rollback is not None and same(order[0], rollback)
        found["status"] |= {
            "type": "bootcHost",
            "staged": staged and self.entry(staged),
            "booted": self.entry(self.booted),
            "rollback": rollback and self.entry(rollback),
            "rollbackQueued": queued,
        }
        found["spec"] = {
            "bootOrder": "rollback" if queued else "default",
            "image": self.entry(staged or self.booted)["image"]["image"],
        }
        print(canonical(found))

    def upgrade(self) -> None:
        """[2.2]"""
        options = self.options
        staged = self.sysroot.get_staged_deployment()
        image = image_of(staged or self.booted)
        if getattr(options, "from_downloaded", False):
            if staged is None:
                raise Failed("Upgrading: No staged deployment found")
            if staged.is_finalization_locked():
                self.sysroot.change_finalization(staged)
                print("Staged deployment will now be applied on reboot")
            self.apply()
            return
        if options.check:
            digest = skopeo_inspect(image, "--format={{.Digest}}")
            if digest == self.digest(self.booted):
                print(f"No changes in: {image}")
            else:
                print(f"Update available for: docker://{image}\n  Digest: {digest}")
            STAMP.touch()
            return
        commit, digest = self.pull(image)
        if staged is not None and digest == self.digest(staged):
            self.toggle(staged)
        elif digest == self.digest(self.booted):
            print("No update available.")
        else:
            self.stage(image, commit, digest, "Upgrading", locked=getattr(options, "download_only", False))
            STAMP.touch()
        self.apply()

    def switch(self) -> None:
        """[2.3]"""
        image = self.options.image
        if image == image_of(self.sysroot.get_staged_deployment() or self.booted):
            print("Image specification is unchanged.")
            return
        commit, digest = self.pull(image)
        self.stage(image, commit, digest, "Switching")
        STAMP.touch()
        self.apply()

    def rollback(self) -> None:
        """[2.3] What is staged goes without a word; done twice it is undone."""
        order = [one for one in self.sysroot.get_deployments() if not one.is_staged()]
        if len(order) < 2:
            raise Failed("Rolling back: No rollback available")
        order[0], order[1] = order[1], order[0]
        self.sysroot.write_deployments(order, None)
        print("Next boot: rollback deployment" if not same(order[0], self.booted) else "Next boot: current deployment")
        reboot_required(self.digest(order[0]))
        STAMP.touch()
        self.apply()

    def apply(self) -> None:
        """[2.2.7] A second later, so that whoever called has the answer; there is no look at anything."""
        if self.options.apply:
            subprocess.run(["systemd-run", "--quiet", "--", "systemctl", "reboot"], check=True)
            time.sleep(600)

    # ---- parts ----

    def toggle(self, staged: Any) -> None:
        """[2.2.5] Of a lock only the key in ostree's note is looked at, not the file."""
        if staged.is_finalization_locked() == getattr(self.options, "download_only", False):
            print("Staged update present, not changed")
            return
        self.sysroot.change_finalization(staged)
        print("Staged deployment will now be applied on reboot")

    def pull(self, image: str) -> tuple[str, str]:
        """[2.2.4] The host image into ostree; (commit, digest)."""
        from lashd.things.ostree.backend import OstreeBackend
        from lashd.words.config import settings_from
        from lashd.words.errors import LashdError
        from lashd.words.model import HostImage

        # What lashd leaves free, bootc takes.
        backend = OstreeBackend(settings_from({"pull": {"reserve_bytes": 0}}))
        self.preflight(image)
        try:
            fetched = asyncio.run(backend.fetch(HostImage(image), expected_digest=None, report=self.progress.layer))
        except LashdError as error:
            verb = "Upgrading" if self.options.verb == "upgrade" else "Switching"
            raise Failed(f"{verb}: Pulling: Creating importer: {error.message}") from None
        self.progress.steps("importing", ["importing"], 1)
        return fetched.checksum, fetched.digest

    def preflight(self, image: str) -> None:
        """[2.2.4] The layers that are to be fetched against what is free; bound images do not count."""
        there = json.loads(self.metadata(self.booted, "ostree.manifest") or "{}").get("layers", ())
        layers = json.loads(skopeo_inspect(image, "--raw")).get("layers", ())
        needed = sum(layer["size"] for layer in layers if layer["digest"] not in {one["digest"] for one in there})
        free = os.statvfs("/sysroot")
        if needed > (available := free.f_bavail * free.f_frsize):
            raise Failed(
                f"Upgrading: Pulling: Insufficient free space for {image} (available: {available} bytes required: "
                f"{needed} bytes)"
            )

    def stage(self, image: str, commit: str, digest: str, verb: str, *, locked: bool = False) -> None:
        """[2.2.6] Staged, and only then the bound images; who fails there leaves what is staged as it is."""
        done: list[str] = []

        def step(name: str) -> None:
            done.append(name)
            self.progress.steps("staging", done, 3)

        step("merging")
        if self.images_first:
            step("bound_images")
            self.pull_bound(self.checkout(commit), verb)
        step("deploying")
        time.sleep(self.staging_seconds)
        while not Path(self.staging_until).exists():
            time.sleep(0.05)
        origin = self.GLib.KeyFile.new()
        origin.set_string("origin", "container-image-reference", f"ostree-unverified-registry:{image}")
        options = self.OSTree.SysrootDeployTreeOpts()
        options.locked = locked
        merge = self.sysroot.get_merge_deployment(self.booted.get_osname())
        _, new = self.sysroot.stage_tree_with_options(self.booted.get_osname(), commit, origin, merge, options, None)
        if not self.images_first:
            step("bound_images")
            self.pull_bound(root_of(new), verb)
        step("cleanup")
        self.sysroot.load(None)
        self.prune()
        print(f"Queued for next boot: docker://{image}\n  Digest: {digest}")
        step("cleanup")
        reboot_required(digest)

    def checkout(self, commit: str) -> Path:
        """What of a commit tells which images it binds. There is no /etc in it: links there lead nowhere."""
        root = Path("/run/bootc-stand-in/root")
        subprocess.run(["rm", "-rf", root], check=True)
        for name in ("usr/lib/bootc", "usr/share/containers"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            command = ["ostree", "checkout", "--user-mode", f"--subpath=/{name}", commit, root / name]
            subprocess.run(command, check=False, capture_output=True)
        return root

    def pull_bound(self, root: Path, verb: str) -> None:
        """[1.3] One after the other, none that is there by its name; no try but the first."""
        try:
            images = bound_images(root)
        except Failed as failure:
            raise Failed(f"{verb}: Staging: Pulling bound images: Querying bound images: {failure}") from None
        for image in images:
            if podman("exists", image).returncode == 0:
                continue
            print(f"Fetching bound image: {image}", file=sys.stderr)
            ended = podman("pull", image)
            if ended.returncode != 0:
                raise Failed(
                    f"{verb}: Staging: Pulling bound images: Pulling bound images: Failed to pull image: Subprocess "
                    f"failed: ExitStatus(unix_wait_status({ended.returncode << 8}))\n{ended.stderr.strip()}"
                )
        print(f"Bound images stored: {len(images)}")

    def prune(self) -> None:
        """[1.7] Whatever no deployment names byte for byte, with a single `podman image rm`."""
        roots: set[str] = set()
        for deployment in self.sysroot.get_deployments():
            roots.update(bound_images(root_of(deployment)))
            roots.add(image_of(deployment))
        listed = podman("list", "--format=json")
        if listed.returncode != 0:
            raise Failed(f"Pruning: Listing images: {listed.stderr.strip()}")
        garbage = [one["Id"] for one in json.loads(listed.stdout) if not roots & set(one.get("Names") or ())]
        for first in range(0, len(garbage), 100):
            ended = podman("rm", *garbage[first : first + 100])
            if ended.returncode != 0:
                raise Failed(f"Pruning: Subprocess failed: exit status: {ended.returncode}\n{ended.stderr.strip()}")

    def digest(self, deployment: Any) -> str:
        return self.metadata(deployment, "ostree.manifest-digest")

    def metadata(self, deployment: Any, key: str) -> str:
        _, commit, _ = self.sysroot.repo().load_commit(deployment.get_csum())
        found = commit.get_child_value(0).lookup_value(key, self.GLib.VariantType("s"))
        return found.get_string() if found is not None else ""

    def entry(self, deployment: Any) -> dict[str, Any]:
        image = {"image": image_of(deployment), "transport": "registry"}
        return {
            "cachedUpdate": None,
            "composefs": None,
            "downloadOnly": deployment.is_staged() and deployment.is_finalization_locked(),
            "image": {
                "architecture": "amd64",
                "image": image,
                "imageDigest": self.digest(deployment),
                "timestamp": None,
                "version": None,
            },
            "incompatible": False,
            "ostree": {
                "checksum": deployment.get_csum(),
                "deploySerial": deployment.get_deployserial(),
                "stateroot": deployment.get_osname(),
            },
            "pinned": deployment.is_pinned(),
            "softRebootCapable": False,
            "store": "ostreeContainer",
        }


class Progress:
    """[3.2] JSON lines; those with bytes at most five times a second."""

    def __init__(self, descriptor: int | None, babble: int) -> None:
        if descriptor is not None and descriptor <= 2:
            raise Failed(f"Cannot use fd {descriptor} for progress JSON")
        self._descriptor = descriptor
        self._layers: dict[str, Any] = {}
        self._total = (0, 0)
        self._written = 0.0
        if descriptor is not None:
            self._write({"type": "Start", "version": "0.1.0"})
            # As a long download does: a pipe that nobody reads is full after 64 KiB, and then this waits.
            for _ in range(0, babble, 1000):
                self._write({"type": "ProgressBytes", "task": "pulling", "description": "x" * 1000, "subtasks": []})

    def layer(self, event: Any) -> None:
        from lashd.words.progress import StageStarted

        if isinstance(event, StageStarted):
            self._total = (event.bytes_total, event.items_total)
            return
        before = self._layers.get(event.item)
        self._layers[event.item] = event
        done = event.state == "done" and (before is None or before.state != "done")
        if not done and time.monotonic() - self._written < 0.2:
            return
        self._written = time.monotonic()
        layers = self._layers.values()
        self._write(
            {
                "type": "ProgressBytes",
                "task": "pulling",
                "description": "Pulling Image",
                "id": "pulling",
                "bytesCached": 0,
                "bytes": sum(one.bytes_done for one in layers),
                "bytesTotal": self._total[0],
                "stepsCached": 0,
                "steps": sum(one.state == "done" for one in layers),
                "stepsTotal": self._total[1],
                "subtasks": [
                    {
                        "subtask": "layer",
                        "description": f"layer: {one.item[7:28]}",
                        "id": one.item[7:28],
                        "bytesCached": 0,
                        "bytes": one.bytes_done,
                        "bytesTotal": one.bytes_total,
                    }
                    for one in layers
                ],
            }
        )

    def steps(self, task: str, names: list[str], total: int) -> None:
        last = len(names) - 1
        self._write(
            {
                "type": "ProgressSteps",
                "task": task,
                "description": task,
                "id": task,
                "stepsCached": 0,
                "steps": min(last, total),
                "stepsTotal": total,
                "subtasks": [
                    {"subtask": name, "description": name, "id": name, "completed": number < last}
                    for number, name in enumerate(names)
                ],
            }
        )

    def _write(self, event: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, f"{canonical(event)}\n".encode())
        except OSError as error:
            print(f"Failed to write to jsonl: {error}", file=sys.stderr)
            self._descriptor = None


def nothing() -> dict[str, Any]:
    return {
        "apiVersion": "org.containers.bootc/v1",
        "kind": "BootcHost",
        "metadata": {"name": "host"},
        "spec": {"bootOrder": "default", "image": None},
        "status": {
            "booted": None,
            "readOnly": False,
            "rollback": None,
            "rollbackQueued": False,
            "staged": None,
            "type": None,
            "usrOverlay": None,
        },
    }


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def bound_images(root: Path) -> list[str]:
    """[1.1, 1.2] The first bad entry is the end of it all."""
    found = []
    # In whatever order the directory has them.
    for link in (root / BOUND).iterdir() if (root / BOUND).is_dir() else ():
        name = link.name
        if not link.is_symlink():
            raise Failed(f"Not a symlink: {name}")
        try:
            text = in_root(root, link).read_text()
        except FileNotFoundError:
            raise Failed("No such file or directory (os error 2)") from None
        sections = {".image": "Image", ".container": "Container"}
        if link.suffix not in sections:
            raise Failed(f"Invalid file extension: {name}")
        values = ini(text).get(sections[link.suffix], {})
        if "Image" not in values:
            raise Failed(f"Parsing {BOUND}/{name}: Missing Image field")
        if link.suffix == ".image" and "AuthFile" in values:
            raise Failed(f"Parsing {BOUND}/{name}: AuthFile is not supported by bound bootc images")
        if re.search(r"(?<!%)(%%)*%(?!%)", values["Image"]):
            raise Failed("Invalid image value: Systemd specifiers are not supported by bound bootc images")
        found.append(values["Image"].replace("%%", "%"))
    return found


def ini(text: str) -> dict[str, dict[str, str]]:
    """[1.2] As the parser tini has it: comments anywhere, no continuation lines, the last of two keys counts."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for number, line in enumerate(text.splitlines()):
        line = re.split("[#;]", line, maxsplit=1)[0].strip()
        if not line:
            continue
        if line.startswith("["):
            if not line.endswith("]"):
                fail(f"Parse to ini: IncorrectSection({number})")
            section = line[1:-1]
        elif "=" not in line:
            fail(f"Parse to ini: IncorrectSyntax({number})")
        else:
            key, _, value = line.partition("=")
            found.setdefault(section, {})[key.strip()] = value.strip()
    return found


def fail(message: str) -> NoReturn:
    raise Failed(message)


def in_root(root: Path, link: Path) -> Path:
    """Where `link` leads below `root`; absolute targets start there."""
    for _ in range(40):
        if not link.is_symlink():
            return link
        target = str(link.readlink())
        link = root / target.lstrip("/") if target.startswith("/") else link.parent / target
    raise Failed("Too many levels of symbolic links (os error 40)")


def podman(*words: str) -> subprocess.CompletedProcess[str]:
    """[1.3] `podman` of PATH, on the store under its alias, with its run directory as descriptor 3."""
    if os.environ.get("LISTEN_FDS"):
        # `podman system service` of unified storage would take that very descriptor for its socket.
        raise Failed("Podman API service exited")
    ALIAS.mkdir(parents=True, exist_ok=True)
    script = f'exec 3<{ALIAS}; mount --bind {STORE} {ALIAS}; exec podman --root {ALIAS} --runroot /proc/self/fd/3 "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "podman", "image", *words]
    with open("/tmp/bootc-auth", "w") as auth:
        auth.write("{}")
    for place in ("/run/ostree/auth.json", "/etc/ostree/auth.json", "/usr/lib/ostree/auth.json"):
        if Path(place).exists():
            Path("/tmp/bootc-auth").write_bytes(Path(place).read_bytes())
            break
    environment = os.environ | {"REGISTRY_AUTH_FILE": "/tmp/bootc-auth"}
    return subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)


def skopeo_inspect(image: str, *words: str) -> str:
    argv = ["skopeo", "inspect", "--no-tags", *words, f"docker://{image}"]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise Failed(
            f"Upgrading: Pulling: Creating importer: failed to invoke method OpenImage: {ended.stderr.strip()}"
        )
    return ended.stdout.strip()


def image_of(deployment: Any) -> str:
    origin = deployment.get_origin().get_string("origin", "container-image-reference")
    return re.sub(r"^ostree-[a-z-]+:(registry:)?(docker://)?", "", origin)


def root_of(deployment: Any) -> Path:
    name = f"{deployment.get_csum()}.{deployment.get_deployserial()}"
    return Path("/sysroot/ostree/deploy", deployment.get_osname(), "deploy", name)


def same(one: Any, other: Any) -> bool:
    return root_of(one) == root_of(other)


def reboot_required(digest: str) -> None:
    """[2.2.6] For kured; also for what is held."""
    Path("/run/reboot-required").write_text(f"bootc: Reboot required for image: {digest}")


if __name__ == "__main__":
    sys.exit(main())
