# SPDX-License-Identifier: Apache-2.0
"""Sysroots that ostree itself wrote, read back; what only a booted host has is written in ostree's own format."""

from __future__ import annotations

import hashlib
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.things.ostree import deployments as module
from lashd.things.ostree import facts
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.things.ostree.lockfile import NOTE, Lock, disown_key, key_is_ours, read_lock, remove_lock, write_lock
from lashd.words.model import Deployment, HostImage, Role
from lashd.words.progress import ignore
from tests.things.ostree.conftest import Host, needs_root
from tests.things.ostree.images import BASE, file, write_image

pytestmark = needs_root

VARIANT = """
import sys
from gi.repository import GLib
v = GLib.Variant.parse(GLib.VariantType.new("a{sv}"), sys.argv[2], None, None)
open(sys.argv[1], "wb").write(v.get_data_as_bytes().get_data())
"""


def write_variant(path: Path, text: str) -> None:
    subprocess.run(["/usr/bin/python3", "-c", VARIANT, str(path), text], check=True)


async def deploy(host: Host, tag: str, version: str) -> Deployment:
    write_image(host.layout, tag, [BASE, [file("usr/version", version)]], version=version)
    fetched = await host.backend.fetch(host.image(tag), expected_digest=None, report=ignore)
    return await host.backend.stage(fetched, host.image(tag))


def as_booted(host: Host, deployment: Deployment) -> OstreeSysroot:
    """A reader for which `deployment` is the running root, as ostree-prepare-root would note it."""
    root = host.settings.paths.root
    (root / "run").mkdir(exist_ok=True)
    found = deployment.root.stat()
    write_variant(
        root / "run/ostree-booted",
        f"{{'backing-root-device-inode': <(uint64 {found.st_dev}, uint64 {found.st_ino})>, 'sysroot-ro': <true>}}",
    )
    if not (root / "boot").exists():
        (root / "boot").symlink_to(host.sysroot / "boot")
    sysroot = OstreeSysroot(host.settings)
    sysroot.booted = True
    return sysroot


def roles(deployments: tuple[Deployment, ...]) -> list[tuple[str | None, set[str]]]:
    return [(one.version, {str(role) for role in one.roles}) for one in deployments]


async def test_an_empty_sysroot(host: Host) -> None:
    assert host.backend.deployments() == ()


async def test_order_and_facts(host: Host) -> None:
    old, new = await deploy(host, "v1", "1"), await deploy(host, "v2", "2")
    digest = write_image(host.layout, "v2", [BASE, [file("usr/version", "2")]], version="2")
    assert roles(host.backend.deployments()) == [("2", set()), ("1", {"rollback"})]
    first = host.backend.deployments()[0]
    assert first == new
    assert first.stateroot == "default"
    assert first.image == HostImage(f"{host.layout}:v2", "oci", "ostree-unverified-image")
    assert first.digest == digest
    assert first.timestamp == 1767323045
    assert (first.root / "usr/version").read_text() == "2"
    assert (first.root / "etc/hostname").read_text() == "host\n"
    # libostree says the same of the order and the names.
    status = host.admin("status")
    assert status.index(new.key) < status.index(old.key)
    # What bootc reads.
    origin = first.root.with_name(first.root.name + ".origin").read_text()
    assert f"container-image-reference=ostree-unverified-image:oci:{host.layout}:v2\n" in origin


async def test_booted_rollback_staged_and_pinned(host: Host) -> None:
    old, new = await deploy(host, "v1", "1"), await deploy(host, "v2", "2")
    run = host.settings.paths.ostree_run
    # The newer one runs: as usual.
    sysroot = as_booted(host, new)
    assert roles(sysroot.deployments()) == [("2", {"booted"}), ("1", {"rollback"})]
    # The older one runs, the newer one boots next: bootc still calls that one the rollback.
    sysroot = as_booted(host, old)
    assert roles(sysroot.deployments()) == [("2", {"rollback"}), ("1", {"booted"})]
    # A third one is staged: in no boot entry, known from ostree's file only.
    staged = replace(new, serial=7, root=new.root.with_name(f"{new.checksum}.7"))
    staged.root.mkdir()
    new.root.with_name(new.root.name + ".origin").rename(staged.root.with_name(staged.root.name + ".origin"))
    target = f"'target': <{{'name': <'{staged.key}'>, 'osname': <'default'>, 'bootcsum': <'00'>}}>"
    write_variant(run / "staged-deployment", f"{{{target}, 'kargs': <['a', 'b']>}}")
    assert roles(sysroot.deployments()) == [("2", {"staged"}), ("2", {"rollback"}), ("1", {"booted"})]
    assert not sysroot.deployments()[0].locked
    assert sysroot.deployments()[0].root == staged.root
    assert sysroot.deployments()[0].image == HostImage(f"{host.layout}:v2", "oci", "ostree-unverified-image")
    assert sysroot.deployments()[1].image is None
    # Whose local changes it gets is ostree's word, and need not be the booted one.
    assert {one.merges for one in sysroot.deployments()} == {None}
    for source in (old, new):
        merges = f"'merge-deployment': <{{'name': <'{source.key}'>, 'osname': <'default'>, 'bootcsum': <'00'>}}>"
        write_variant(run / "staged-deployment", f"{{{target}, {merges}}}")
        assert [one.merges for one in sysroot.deployments()] == [source.root, None, None]
    write_variant(run / "staged-deployment", f"{{{target}}}")
    # Locked by the file, by the key.
    (run / "staged-deployment-locked").touch()
    assert sysroot.deployments()[0].locked
    (run / "staged-deployment-locked").unlink()
    assert not sysroot.deployments()[0].locked
    write_variant(run / "staged-deployment", f"{{{target}, 'locked': <true>}}")
    assert sysroot.deployments()[0].locked
    # Pinned, as `ostree admin pin` writes it.
    origin = old.root.with_name(old.root.name + ".origin")
    host.admin("pin", "1")
    assert "pinned=true" in origin.read_text()
    assert Role.PINNED in sysroot.deployments()[2].roles
    # A staged deployment whose directory is gone is none.
    staged.root.rmdir()
    sysroot = as_booted(host, old)
    assert [one.version for one in sysroot.deployments()] == ["2", "1"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff" * 400,
        "{'target': <'x'>}",
        "{'target': <{'name': <'../../etc.0'>, 'osname': <'default'>}>}",
        "{'target': <{'name': <'" + "0" * 64 + ".0'>, 'osname': <'..'>}>}",
        "{'target': <{'name': <uint32 1>, 'osname': <'default'>}>}",
        "{'target': <{'name': <'" + "0" * 64 + ".0'>, 'osname': <'default'>}>, "
        "'merge-deployment': <{'name': <'../../etc.0'>, 'osname': <'default'>}>}",
    ],
)
async def test_a_damaged_staged_file_is_no_staged_deployment(host: Host, content: bytes | str) -> None:
    deployment = await deploy(host, "v1", "1")
    sysroot = as_booted(host, deployment)
    path = host.settings.paths.ostree_run / "staged-deployment"
    path.write_bytes(content) if isinstance(content, bytes) else write_variant(path, content)
    assert roles(sysroot.deployments()) == [("1", {"booted"})]


async def test_missing_pieces_make_fewer_facts(host: Host) -> None:
    old, new = await deploy(host, "v1", "1"), await deploy(host, "v2", "2")
    new.root.with_name(new.root.name + ".origin").write_bytes(b"\xff[[broken\n=")
    commit = host.sysroot / "ostree/repo/objects" / new.checksum[:2] / f"{new.checksum[2:]}.commit"
    commit.write_bytes(commit.read_bytes()[:-3])
    (host.sysroot / "boot/loader/entries/ostree-9-bad.conf").write_text("version 9\noptions ostree=/etc/passwd\n")
    (host.sysroot / "boot/loader/entries/ostree-8-bad.conf").write_bytes(b"\xff\0\n")
    found = OstreeSysroot(host.settings).deployments()
    assert [(one.key, one.version, one.digest, one.image) for one in found] == [
        (new.key, None, None, None),
        (old.key, "1", old.digest, old.image),
    ]


async def test_a_second_look_costs_next_to_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for tag in ("1", "2", "3"):
        await deploy(host, tag, tag)
    sysroot = as_booted(host, host.backend.deployments()[0])
    first = sysroot.deployments()
    reads: list[Path] = []
    original = module.read
    monkeypatch.setattr(module, "read", lambda path: reads.append(path) or original(path))
    start = time.perf_counter()
    for _ in range(20):
        assert sysroot.deployments() is first
    assert (time.perf_counter() - start) / 20 < 0.001
    assert reads == []
    # And every kind of change is seen.
    host.admin("undeploy", "1")
    assert sysroot.deployments() != first


async def test_no_list_of_earlier_is_given_after_one_that_failed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await deploy(host, "1", "1")
    sysroot = OstreeSysroot(host.settings)
    assert len(sysroot.deployments()) == 1
    await deploy(host, "2", "2")
    original = module.boot_entries

    def broken(entries: Path) -> list[facts.BootEntry]:
        raise TypeError("unforeseen")

    monkeypatch.setattr(module, "boot_entries", broken)
    for _ in range(3):
        with pytest.raises(TypeError):
            sysroot.deployments()
    monkeypatch.setattr(module, "boot_entries", original)
    assert len(sysroot.deployments()) == 2


async def test_entries_are_sorted_as_libostree_does(tmp_path: Path) -> None:
    entries = {"a": "9", "b": "10", "c": "", "d": "2"}
    for name, version in entries.items():
        line = f"version {version}\n" if version else ""
        (tmp_path / f"ostree-{name}.conf").write_text(f"title x\n{line}options a=b ostree=/{name} quiet\n")
    (tmp_path / "other.conf").write_text("version 99\noptions ostree=/other\n")
    assert [entry.link for entry in facts.boot_entries(tmp_path)] == ["/b", "/a", "/d", "/c"]
    assert facts.boot_entries(tmp_path / "nothing") == []


async def test_how_a_deployment_was_staged_or_boots(host: Host) -> None:
    """Kernel arguments, initrds over its own and origin: of what is installed by its boot entry, else by the note."""
    old = await deploy(host, "v1", "1")
    layer = host.layout.with_name("over.img")
    layer.write_bytes(b"an initrd")
    host.admin(
        "deploy", "--os=default", "--karg-append=x=1", "--karg-append=x=2", f"--overlay-initrd={layer}", old.checksum
    )
    new, first = host.backend.deployments()
    assert (new.checksum, first.key) == (old.checksum, old.key)
    before, after = host.backend.staging(first), host.backend.staging(new)
    assert (before.kargs, before.initrds) == ((), ())
    assert after.kargs == ("x=1", "x=2")
    assert after.initrds == (hashlib.sha256(b"an initrd").hexdigest(),)
    assert before.origin == old.root.with_name(f"{old.key}.origin").read_text()
    # Nothing boots it.
    assert host.backend.staging(replace(new, stateroot="x", root=Path("/x"))).kargs == ()
    target = f"'target': <{{'name': <'{new.key}'>, 'osname': <'default'>}}>"
    more = "'kargs': <['a', 'b']>, 'overlay-initrds': <['f', 'e']>"
    write_variant(host.settings.paths.ostree_run / "staged-deployment", f"{{{target}, {more}}}")
    staged = host.backend.staging(replace(new, roles=frozenset({Role.STAGED})))
    assert (staged.kargs, staged.initrds) == (("a", "b"), ("f", "e"))
    assert facts.staged_initrds(b"rubbish") == ()


async def test_the_key_that_a_killed_worker_set_is_known_as_ours(host: Host) -> None:
    """libostree removes the lock file late; a worker that is killed just then could not set it again."""
    deployment = await deploy(host, "v1", "1")
    run = host.settings.paths.ostree_run
    staged = replace(deployment, serial=7, root=deployment.root.with_name(f"{deployment.checksum}.7"))
    staged.root.mkdir()
    backend = host.backend
    backend._sysroot = as_booted(host, deployment)
    target = f"'target': <{{'name': <'{staged.key}'>, 'osname': <'default'>}}>"
    write_variant(run / "staged-deployment", f"{{{target}, 'locked': <true>}}")
    # Of another commit: somebody else's.
    (run / NOTE).write_text("0" * 64)
    await backend.recover()
    assert backend.deployments()[0].foreign_lock
    for lock in (None, Lock(staged.key)):  # and what a hold in between wrote does not say it either
        disown_key(run)
        remove_lock(run)
        (run / NOTE).write_text(staged.checksum)
        if lock is not None:
            write_lock(run, lock)
        # Whoever looks before the daemon is back (the gate, at a reboot) knows it, too.
        found = backend.deployments()[0]
        assert (found.locked, found.foreign_lock) == (True, False)
        await backend.recover()
        assert key_is_ours(run)
        assert read_lock(run) == Lock(staged.key)
        assert not backend.deployments()[0].foreign_lock
        assert not (run / NOTE).exists()
    # Whoever takes the lock file away, and whoever sets it again: the key is ours.
    remove_lock(run)
    for _ in range(2):
        held = backend.deployments()[0]
        assert (held.locked, held.foreign_lock) == (True, False)
        await backend.hold(held)
    # It was killed when the key was gone already: nothing is said of one that somebody sets now.
    write_variant(run / "anew", f"{{{target}}}")
    (run / "anew").rename(run / "staged-deployment")
    (run / NOTE).write_text(staged.checksum)
    assert not backend.deployments()[0].key_locked
    await backend.recover()
    assert (key_is_ours(run), (run / NOTE).exists(), backend.deployments()[0].foreign_lock) == (False, False, False)
    # The same once more, but written by somebody else.
    write_variant(run / "anew", f"{{{target}, 'locked': <true>}}")
    (run / "anew").rename(run / "staged-deployment")
    assert backend.deployments()[0].foreign_lock
    await backend.recover()
    assert backend.deployments()[0].foreign_lock
    (run / "staged-deployment").unlink()
    await backend.recover()
    assert [path.name for path in run.iterdir()] == []
