# SPDX-License-Identifier: Apache-2.0
"""The backend for bootc's composefs backend, with a stand-in for bootc in a directory.

tests/host/test_composefs.py has the booted host.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lashd.running.gate import Gate
from lashd.steps.discover import discover
from lashd.steps.shutdowns import owing
from lashd.things.bootc.composefs_backend import SERVICE, ComposefsBackend
from lashd.things.bootc.deployments import READY, STATUS
from lashd.things.bootc.status import read_status
from lashd.things.host import find_deployments, find_host
from lashd.words.config import Settings, settings_from
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage, Owed, Passed, Role
from lashd.words.progress import ignore
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts roots: root only")

IMAGE = HostImage("registry.example/os:1", "registry", "ostree-unverified-image")
DIGESTS = [f"sha256:{letter * 64}" for letter in "123"]
IDS = [hashlib.sha512(digest.encode()).hexdigest() for digest in DIGESTS]  # as the stand-in makes them
UNIT = "[Container]\nImage={image}\nGlobalArgs=--storage-opt=additionalimagestore=/usr/lib/bootc/storage\n"


@dataclass
class Host:
    path: Path
    settings: Settings
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.settings.paths.root

    def version(self, number: int, *binds: str, links: str = "/usr/share/containers/systemd") -> None:
        """Let `number` be what the image means from now on; it binds `binds`."""
        root = self.path / f"v{number}"
        for place in ("usr/lib/bootc/bound-images.d", "usr/share/containers/systemd", "etc/containers/systemd"):
            (root / place).mkdir(parents=True)
        (root / "usr/lib/os-release").write_text(f"VERSION_ID={number}\n")
        (root / "etc/large").write_bytes(b"")
        os.truncate(root / "etc/large", 3_000_000)
        for name in binds:
            (root / links[1:] / f"{name}.container").write_text(UNIT.format(image=f"q.example/{name}:{number}"))
            (root / "usr/lib/bootc/bound-images.d" / f"{name}.container").symlink_to(f"{links}/{name}.container")
        self.say(newest={"digest": DIGESTS[number - 1], "root": str(root)})

    def say(self, **config: Any) -> None:
        self.config |= config
        (self.root / "etc/bootc-stand-in.json").write_text(json.dumps(self.config | {"image": IMAGE.reference}))

    def bootc(self, *words: str, status: int = 0) -> str:
        done = subprocess.run([self.root / "usr/bin/bootc", *words], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done.stdout

    def run(self, number: int) -> None:
        """Let `number` be what is booted: its files are there."""
        (self.root / "proc/cmdline").write_text(f"root=UUID=1 composefs={IDS[number - 1]} rw\n")
        for place in ("usr/lib", "usr/share"):
            shutil.rmtree(self.root / place, ignore_errors=True)
            shutil.copytree(self.path / f"v{number}" / place, self.root / place, symlinks=True)
        (self.root / "usr/lib/systemd/system").mkdir(parents=True)
        (self.root / "usr/lib/systemd/system" / SERVICE).touch()

    def backend(self) -> ComposefsBackend:
        return ComposefsBackend(self.settings)

    def note(self) -> dict[str, Any]:
        return dict(json.loads((self.settings.paths.composefs_run / "staged-deployment").read_text()))

    def of(self, role: Role) -> Deployment:
        return next(one for one in self.backend().deployments() if role in one.roles)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    root = tmp_path / "root"
    paths = {"root": root, "state": tmp_path / "state", "run": tmp_path / "run"}
    paths |= {"ostree_run": tmp_path / "ostree", "composefs_run": root / "run/composefs"}
    for place in ("usr/bin", "proc", "etc/containers/systemd", "run"):
        (root / place).mkdir(parents=True)
    (tmp_path / "run").mkdir()
    script = f"#!/bin/sh\nexport BOOTC_STAND_IN_ROOT={root}\nexport PYTHONPATH={REPOSITORY}/daemon\n"
    script += f'exec {sys.executable} {REPOSITORY}/tests/support/bootc_composefs.py "$@"\n'
    (root / "usr/bin/bootc").write_text(script)
    (root / "usr/bin/bootc").chmod(0o755)
    settings = settings_from({"paths": paths, "host": {"sysroot": root / "sysroot"}})
    made = Host(tmp_path, settings)
    made.version(1, "app")
    made.bootc("stand-in-install")
    made.run(1)
    return made


def roles(backend: ComposefsBackend) -> list[tuple[str, set[str]]]:
    return [(one.version or "?", set(one.roles)) for one in backend.deployments()]


async def upgrade(backend: ComposefsBackend, number: int) -> Deployment:
    fetched = await backend.fetch(IMAGE, expected_digest=DIGESTS[number - 1], report=ignore)
    assert (fetched.checksum, fetched.digest, fetched.changed) == (IDS[number - 1], DIGESTS[number - 1], True)
    return await backend.stage(fetched, IMAGE)


def test_the_stand_in(host: Host) -> None:
    """It stages beside the entries, finalises what is not locked and nothing else, and drops it with a rollback."""
    entries = host.root / "boot/efi/loader/entries"

    def order() -> list[str]:
        said = read_status(host.bootc("status", "--format=json").encode())
        return [one.composefs.verity for one in said.installed if one.composefs]

    host.version(2)
    assert "Queued for next boot" in host.bootc("upgrade", "--download-only")
    assert host.note() == {"depl_id": IDS[1], "finalization_locked": True}
    assert "Staged update present" in host.bootc("upgrade")
    host.bootc("composefs-finalize-staged")
    assert (order(), len(list(entries.iterdir()))) == (IDS[:1], 1)
    host.bootc("delete-deployment", IDS[1])
    host.bootc("delete-deployment", IDS[0], status=1)
    host.bootc("rollback", status=1)
    host.bootc("upgrade")
    host.bootc("composefs-finalize-staged")
    host.run(2)
    (host.settings.paths.composefs_run / "staged-deployment").unlink()
    assert order() == [IDS[1], IDS[0]]
    host.version(3)
    host.bootc("upgrade")
    host.bootc("rollback")
    assert order() == [IDS[0], IDS[1]]
    assert not (host.settings.paths.composefs_run / "staged-deployment").exists()
    with pytest.raises(AssertionError, match="No such file"):
        host.bootc("internals", "cfs", "mount", "c" * 128, "/nowhere")


async def test_one_after_the_other(host: Host) -> None:
    """What there is, from files; what it binds, from copies that stay; each change by bootc."""
    backend = host.backend()
    await backend.require()
    await backend.recover()
    (booted,) = backend.deployments()
    assert (booted.key, booted.root, booted.image, booted.digest) == (f"{IDS[0]}.0", host.root, IMAGE, DIGESTS[0])
    assert (booted.stateroot, booted.roles, booted.version) == ("default", {Role.BOOTED}, "1")

    host.version(2, "app", "more")
    await backend.fetch(IMAGE, expected_digest=DIGESTS[1], report=ignore)
    assert backend.holds(host.of(Role.STAGED)), "from its first instant on"
    staged = await upgrade(backend, 2)
    assert roles(backend) == [("2", {"staged"}), ("1", {"booted"})]
    assert (staged.locked, staged.declared, staged.foreign_lock, backend.holds(staged)) == (True, False, False, True)
    found = discover(staged.root, staged.merges)
    assert [str(image.reference) for image in found.images] == ["q.example/app:2", "q.example/more:2"]
    assert all(image.usable for image in found.images)
    assert found.bad == ()
    # Its copy is there for good, whatever becomes of the rest.
    assert (staged.root / "usr/etc/large").stat().st_size == 3_000_000
    assert (staged.root / "usr/etc/large").stat().st_blocks == 0

    await backend.release(staged)
    now = host.of(Role.STAGED)
    assert (now.locked, now.declared, backend.holds(now)) == (False, True, True)
    assert host.note()["finalization_locked"] is True, "until the gate has looked"
    await backend.hold(now)
    assert host.of(Role.STAGED).locked

    host.bootc("composefs-finalize-staged")
    assert host.of(Role.STAGED), "a flag holds"
    (host.settings.paths.composefs_run / "staged-deployment").write_text(json.dumps({"depl_id": IDS[1]}))
    host.bootc("composefs-finalize-staged")
    (host.settings.paths.composefs_run / "staged-deployment").unlink()
    host.run(2)
    backend = host.backend()
    await backend.recover()
    assert roles(backend) == [("2", {"booted"}), ("1", {"rollback"})]
    rollback = host.of(Role.ROLLBACK)
    assert [str(image.reference) for image in discover(rollback.root).images] == ["q.example/app:1"]
    assert sorted(path.name for path in rollback.root.parent.iterdir()) == [f"{IDS[0]}.installed"]

    assert await backend.roll_back(rollback) is True
    assert roles(backend) == [("1", {"rollback"}), ("2", {"booted"})]
    assert await backend.roll_back(rollback) is False
    assert await backend.roll_back(host.of(Role.BOOTED)) is True
    assert roles(backend)[0] == ("2", {"booted"})


async def test_local_changes_of_etc_count(host: Host) -> None:
    """What was added, changed and removed in the running /etc, as bootc merges it when it finalises."""
    (host.path / "v1/etc/containers/systemd/gone.container").write_text(UNIT.format(image="q.example/gone:1"))
    shutil.rmtree(host.root / "sysroot/composefs/images")
    host.bootc("stand-in-install")
    backend = host.backend()
    host.version(2, "app", "gone", links="/etc/containers/systemd")
    # Removed: the image brings it again. Changed: nobody has it but this host.
    (host.root / "etc/containers/systemd/app.container").write_text(UNIT.format(image="q.example/local:1"))
    staged = await upgrade(backend, 2)
    found = discover(staged.root, staged.merges)
    assert [str(image.reference) for image in found.images] == ["q.example/local:1"]
    assert [entry.unit for entry in found.bad] == ["gone.container"]


async def test_links_out_of_the_way_are_followed(host: Host) -> None:
    host.version(2)
    root = host.path / "v2"
    (root / "opt/units/deep").mkdir(parents=True)
    (root / "opt/units/deep/app.container").write_text(UNIT.format(image="q.example/far:1"))
    (root / "opt/units/deep/app.container.d").mkdir()
    (root / "opt/units/deep/app.container.d/1.conf").write_text("[Container]\nAutoUpdate=registry\n")
    (root / "opt/here").symlink_to("units/../units")
    (root / "usr/share/containers/systemd/app.container").symlink_to("../../../../opt/here/deep/app.container")
    (root / "usr/lib/bootc/bound-images.d/app.container").symlink_to("/usr/share/containers/systemd/app.container")
    expected = discover(root)
    assert [str(image.reference) for image in expected.images] == ["q.example/far:1"]
    staged = await upgrade(host.backend(), 2)
    assert discover(staged.root, staged.merges) == expected


async def test_where_only_bootc_knows_the_order(host: Host) -> None:
    """It is asked, and what it said counts also for who cannot ask; but not while it is at work."""
    loader = host.root / "boot/efi/loader"
    host.say(hidden_entries=True)
    (host.root / "boot/hidden").mkdir()
    loader.rename(host.root / "boot/hidden/loader")
    host.version(2, "app")
    backend = host.backend()
    await upgrade(backend, 2)
    (host.settings.paths.composefs_run / "staged-deployment").write_text(json.dumps({"depl_id": IDS[1]}))
    host.bootc("composefs-finalize-staged")
    (host.settings.paths.composefs_run / "staged-deployment").unlink()
    host.run(2)
    backend = host.backend()
    (host.settings.paths.run / STATUS).unlink()  # as a reboot does
    with _locked(host):
        await backend.make_readable()
        assert roles(backend) == [("2", {"booted"})]
    await backend.make_readable()
    assert roles(backend) == [("2", {"booted"}), ("1", {"rollback"})]
    assert await backend.roll_back(host.of(Role.ROLLBACK)) is True
    assert roles(host.backend())[0] == ("1", {"rollback"})
    assert [one.checksum for one in find_deployments(_booted(host))] == [IDS[0], IDS[1]]


async def test_an_order_that_bootc_tells_wrongly(host: Host) -> None:
    """Of unified kernel images with systemd-boot, where the entries cannot be read: nothing is done by such a word."""
    entries = host.root / "boot/efi/loader/entries"
    said = json.loads((Path(__file__).parent / "status/composefs-1.16.json").read_text())
    said["status"]["rollbackQueued"] = True
    for name, id in (("booted", IDS[0]), ("rollback", IDS[1])):
        said["status"][name]["composefs"] |= {"verity": id, "bootType": "Uki"}
    (host.settings.paths.run / STATUS).write_text(json.dumps(said))
    entries.rename(entries.with_name("elsewhere"))
    backend = host.backend()
    assert [one.checksum for one in backend.deployments()] == IDS[:2]
    with pytest.raises(LashdError, match="not mounted"):
        await backend.roll_back(host.of(Role.ROLLBACK))
    # The same entries, read.
    entries.mkdir()
    for number, id in enumerate((IDS[1], IDS[0])):
        text = f"sort-key bootc-x-{number}\nefi /EFI/Linux/bootc/bootc_composefs-{id}.efi\n"
        (entries / f"{number}.conf").write_text(text)
    assert [one.checksum for one in backend.deployments()] == [IDS[1], IDS[0]]
    shutil.rmtree(entries)
    menu = "".join(f'menuentry "x" {{\n  chainloader /EFI/Linux/bootc/{id}.efi\n}}\n' for id in IDS[:2])
    (host.root / "boot/grub2").mkdir()
    (host.root / "boot/grub2/user.cfg").write_text(menu)
    assert [one.checksum for one in backend.deployments()] == IDS[:2]


async def test_notes_of_old_versions(host: Host) -> None:
    """Without a digest in the origin: that of the manifest beside it."""
    place = host.root / "sysroot/state/deploy" / IDS[0]
    origin = place / f"{IDS[0]}.origin"
    origin.write_text(origin.read_text().partition("[image]")[0])
    backend = host.backend()
    assert [one.digest for one in backend.deployments()] == [None]
    manifest = b'{"schemaVersion":2,"config":{}}'
    (place / f"{IDS[0]}.imginfo").write_bytes(b'{"config":{},"manifest":%s}' % manifest)
    assert [one.digest for one in backend.deployments()] == [f"sha256:{hashlib.sha256(manifest).hexdigest()}"]
    origin.write_text("nonsense")
    assert [one.image for one in backend.deployments()] == [None]


def _booted(host: Host) -> Settings:
    """As the settings of a booted host, for what looks at nothing below /sysroot."""
    names = ("root", "run", "composefs_run")
    return settings_from({"paths": {name: getattr(host.settings.paths, name) for name in names}})


@contextlib.contextmanager
def _locked(host: Host) -> Iterator[None]:
    """bootc's own lock, as its clean-up holds it."""
    descriptor = os.open(host.root / "sysroot/composefs", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


async def test_what_is_refused(host: Host) -> None:
    backend = host.backend()
    (booted,), other = backend.deployments(), HostImage("/srv/other", transport="oci")
    cases: list[tuple[Any, ErrorName]] = [
        (backend.hold(booted), ErrorName.NOTHING_STAGED),
        (backend.release(booted), ErrorName.NOTHING_STAGED),
        (backend.discard(booted), ErrorName.INVALID_ARGUMENT),
        (backend.fetch(other, expected_digest=None, report=ignore), ErrorName.UNSUPPORTED_HOST),
    ]
    for call, name in cases:
        with pytest.raises(LashdError) as caught:
            await call
        assert caught.value.name is name
    host.version(2)
    staged = await upgrade(backend, 2)
    for call, name in (
        (backend.hold(booted), ErrorName.DIGEST_MISMATCH),
        (backend.roll_back(booted), ErrorName.WOULD_DROP_STAGED),
    ):
        with pytest.raises(LashdError) as caught:
            await call
        assert caught.value.name is name
    # Locked by somebody else: bootc's own, which writes the same words.
    (host.settings.paths.composefs_run / "staged-deployment").unlink()
    host.bootc("upgrade", "--download-only")
    assert host.of(Role.STAGED).foreign_lock
    with pytest.raises(LashdError, match="--from-downloaded"):
        await backend.release(staged)
    assert await backend.roll_back(booted, drop_staged=True) is True
    assert roles(backend) == [("1", {"booted"})]
    with pytest.raises(LashdError, match="No deployment is staged"):
        await backend.hold(staged)


async def test_dropped_and_staged_again(host: Host) -> None:
    backend = host.backend()
    (booted,) = backend.deployments()
    host.version(2)
    staged = await upgrade(backend, 2)
    await backend.release(staged)
    owed = owing(staged, None, backend.staging(staged), "boot", 1, booted)
    await backend.discard(staged)
    assert roles(backend) == [("1", {"booted"})]
    assert not (host.settings.paths.run / READY).exists()

    async def newest(image: HostImage) -> str:
        return host.config["newest"]["digest"]

    backend.check = newest  # type: ignore[method-assign]
    again = await backend.restage(owed, ignore)
    assert (again.key, again.locked) == (staged.key, True)
    with pytest.raises(LashdError, match="staged already"):
        await backend.restage(owed, ignore)
    await backend.discard(again)
    host.version(3)
    with pytest.raises(LashdError, match="not the newest"):
        await backend.restage(owed, ignore)
    assert roles(backend) == [("1", {"booted"})]
    assert isinstance(owed, Owed)


async def test_what_cannot_be_held_is_said(host: Host) -> None:
    host.say(no_flag=True)
    host.version(2)
    with pytest.raises(LashdError, match="finalization_locked") as caught:
        await upgrade(host.backend(), 2)
    assert caught.value.name is ErrorName.UNSUPPORTED_HOST


@pytest.mark.parametrize("lacks", ["bootc", "service", "cmdline", "mount"])
async def test_a_host_that_lacks_something(host: Host, lacks: str) -> None:
    match lacks:
        case "bootc":
            (host.root / "usr/bin/bootc").unlink()
        case "service":
            (host.root / "usr/lib/systemd/system" / SERVICE).unlink()
        case "cmdline":
            (host.root / "proc/cmdline").write_text("composefs=nothing rw\n")
        case _:
            host.say(no_mount=True)
    with pytest.raises(LashdError) as caught:
        await find_host(_booted(host)).require()
    assert caught.value.name is ErrorName.UNSUPPORTED_HOST
    assert "held back at shutdown" in caught.value.message


async def test_a_root_that_cannot_be_mounted_is_unknown(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    backend = host.backend()
    host.version(2, "app")
    host.bootc("upgrade")
    shutil.rmtree(host.root / "sysroot/composefs/images" / IDS[1])
    with caplog.at_level(logging.WARNING):
        await backend.make_readable()
        await backend.make_readable()
    assert sum("could not mount" in line for line in caplog.messages) == 1, "not tried over and over"
    staged = host.of(Role.STAGED)
    with pytest.raises(LashdError) as caught:
        discover(staged.root, staged.merges)
    assert caught.value.name is ErrorName.BOUND_IMAGE_INVALID


async def test_a_mount_that_is_none_is_no_empty_root(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Which would bind nothing, and pass. So it is where bootc mounts it in a mount namespace of its own."""
    backend = host.backend()
    host.version(2, "app")
    host.bootc("upgrade")
    bootc = host.root / "usr/bin/bootc"
    bootc.rename(bootc.with_name("real"))
    bootc.write_text(f'#!/bin/sh\nexec unshare --mount {bootc.with_name("real")} "$@"\n')
    bootc.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        await backend.make_readable()
    assert "nothing is mounted" in caplog.text
    assert not host.of(Role.STAGED).root.exists()
    verdict = Gate(host.settings, since=0, nextroot=host.path / "nextroot").shut_down()
    assert verdict.result is Passed.HELD


@pytest.mark.parametrize(("binds", "passes"), [((), True), (("app",), False)])
async def test_the_gate_reads_the_copy(host: Host, binds: tuple[str, ...], passes: bool) -> None:
    """Nothing bound: nothing to wait for. Something: it is not in a store that is not there."""
    backend = host.backend()
    host.version(2, *binds)
    await upgrade(backend, 2)
    (host.root / "usr/bin/bootc").unlink()  # nothing is asked of it any more
    nextroot = host.path / "nextroot"
    verdict = Gate(host.settings, since=0, nextroot=nextroot).shut_down()
    assert (verdict.result is Passed.RELEASED) is passes, verdict
    assert verdict.deployment == f"{IDS[1]}.0"
    assert verdict.digest == DIGESTS[1]
    assert host.note()["finalization_locked"] is not passes


async def test_the_gate_tells_of_what_boots_instead(host: Host) -> None:
    """A rollback that is queued, and lacks its image: the order is bootc's, so it is only told."""
    backend = host.backend()
    host.version(2)
    await upgrade(backend, 2)
    (host.settings.paths.composefs_run / "staged-deployment").write_text(json.dumps({"depl_id": IDS[1]}))
    host.bootc("composefs-finalize-staged")
    (host.settings.paths.composefs_run / "staged-deployment").unlink()
    host.run(2)
    backend = host.backend()
    await backend.make_readable()
    host.bootc("rollback")
    verdict = Gate(host.settings, since=0, nextroot=host.path / "nextroot").shut_down()
    codes = [code for code, _ in verdict.reasons]
    assert (verdict.result, verdict.deployment) == (Passed.NOTHING, f"{IDS[0]}.0")
    assert codes[-1] == "boot-order-not-restored"
    assert "bootc rollback" in verdict.reasons[-1][1]
