# SPDX-License-Identifier: Apache-2.0
"""The backend on a sysroot that is not booted; staging, holding and releasing need a booted host (tests/host)."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.things.host import find_host
from lashd.things.inotify import Watcher
from lashd.things.ostree import names
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.ostree.client import Worker
from lashd.things.ostree.lockfile import ASIDE, STAGED
from lashd.words.config import settings_from
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, HostImage, Owed
from lashd.words.progress import ignore
from tests.support.host import ACCEPT_ALL, REJECT_ALL, write_root
from tests.support.images import build, files
from tests.support.registry import Registry
from tests.things.ostree.conftest import Host, needs_root
from tests.things.ostree.images import BASE, file, write_image

pytestmark = needs_root
IN_ORIGIN = "container-image-reference=ostree-unverified-registry"


async def install(host: Host, tag: str, *extra: str) -> Deployment:
    layers = [BASE, *([file(f"usr/{name}", name * 100)] for name in extra)]
    write_image(host.layout, tag, layers, version=tag)
    fetched = await host.backend.fetch(host.image(tag), expected_digest=None, report=ignore)
    return await host.backend.stage(fetched, host.image(tag))


async def test_installed_at_once(host: Host) -> None:
    one = await install(host, "v1", "a")
    write_image(host.layout, "v1", [BASE, [file("usr/a", "a" * 100)]], version="v1")
    again = await host.backend.fetch(host.image("v1"), expected_digest=None, report=ignore)
    assert not again.changed
    assert host.backend.deployments() == (one,)
    two = await install(host, "v2", "b")
    assert [each.key for each in host.backend.deployments()] == [two.key, one.key]
    assert (two.root / "usr/b").exists()
    assert "ostree/boot" in (host.sysroot / "boot/loader/entries").joinpath("ostree-2-default.conf").read_text()


async def test_libostree_prints_what_it_frees(host: Host) -> None:
    """Among the worker's answers that would not be understood."""
    for content in ("a", "b"):
        write_image(host.layout, "v1", [BASE, [file("usr/a", content)]], version="v1")
        fetched = await host.backend.fetch(host.image("v1"), expected_digest=None, report=ignore)
    assert (await host.backend.stage(fetched, host.image("v1"))).digest == fetched.digest


async def test_the_stateroot_that_is_named(host: Host) -> None:
    host.admin("os-init", "one")
    host.admin("os-init", "two")
    with pytest.raises(LashdError, match="one, two") as caught:
        await install(host, "v1")
    assert caught.value.name == ErrorName.INVALID_ARGUMENT
    host_settings = replace(host.settings.host, stateroot="two")
    host.backend = OstreeBackend(replace(host.settings, host=host_settings))
    assert (await install(host, "v1")).stateroot == "two"


async def test_roll_back_and_forth(host: Host) -> None:
    one, two = await install(host, "v1", "a"), await install(host, "v2", "b")
    assert await host.backend.roll_back(one)
    assert [each.key for each in host.backend.deployments()] == [one.key, two.key]
    assert not await host.backend.roll_back(one)
    assert await host.backend.roll_back(two)
    assert [each.key for each in host.backend.deployments()] == [two.key, one.key]


async def test_the_same_commit_in_two_stateroots(host: Host) -> None:
    """Each counts for itself, so both have the same key; what is done to one is not done to the other."""
    one = await install(host, "v1", "a")
    host.admin("os-init", "other")
    host.admin("deploy", "--os=other", one.checksum)
    other = next(each for each in host.backend.deployments() if each.stateroot == "other")
    assert other.key == one.key
    assert [each.stateroot for each in host.backend.deployments()] == ["other", "default"]
    await host.backend.discard(one)
    assert [(each.stateroot, each.key) for each in host.backend.deployments()] == [("other", one.key)]


async def test_discard(host: Host) -> None:
    one, two = await install(host, "v1", "a"), await install(host, "v2", "b")
    host.admin("pin", "1")
    with pytest.raises(LashdError, match="pinned"):
        await host.backend.discard(one)
    host.admin("pin", "--unpin", "1")
    await host.backend.discard(one)
    assert [each.key for each in host.backend.deployments()] == [two.key]
    assert not one.root.exists()
    with pytest.raises(LashdError, match="only deployment"):
        await host.backend.discard(two)
    with pytest.raises(LashdError, match="no deployment"):
        await host.backend.roll_back(one)


async def test_prune_keeps_what_a_deployment_or_a_fetch_needs(host: Host) -> None:
    one, two = await install(host, "v1", "a", "shared"), await install(host, "v2", "b", "shared")
    write_image(host.layout, "v3", [BASE, [file("usr/c", "c")]])
    kept = await host.backend.fetch(host.image("v3"), expected_digest=None, report=ignore)
    before = len(host.ostree("refs", "--list", "ostree/container/blob").split())
    assert before == 5
    await host.backend.discard(one)
    await host.backend.prune((kept,))
    assert len(host.ostree("refs", "--list", "ostree/container/blob").split()) == 4
    assert "layout_3A_v1" not in host.ostree("refs")
    assert "layout_3A_v2" in host.ostree("refs")
    assert (await host.backend.stage(kept, host.image("v3"))).checksum == kept.checksum
    await host.backend.discard(two)
    await host.backend.prune()
    assert len(host.ostree("refs", "--list", "ostree/container/blob").split()) == 2
    host.ostree("fsck")
    # What was kept is not fetched again.
    host.fetched.clear()
    await install(host, "v3", "new")
    assert len(host.fetched) == 1


@pytest.mark.parametrize("manifest", ["{", "[]", '{"layers": [1]}', '{"layers": 1}', "[" * 100_000])
async def test_prune_with_a_commit_of_which_the_manifest_is_none(host: Host, manifest: str) -> None:
    one = await install(host, "v1", "a")
    metadata = f"--add-metadata-string={names.META_MANIFEST}={manifest}"
    host.ostree("commit", "--branch=strange", f"--tree=ref={one.checksum}", metadata)
    host.admin("deploy", "--os=default", "strange")
    await host.backend.prune()
    assert len(host.backend.deployments()) == 2
    host.ostree("fsck")


async def test_nothing_is_staged_here(host: Host) -> None:
    deployment = await install(host, "v1")
    for change in (host.backend.hold, host.backend.release):
        with pytest.raises(LashdError) as caught:
            await change(deployment)
        assert caught.value.name == ErrorName.NOTHING_STAGED


HOLDER = """
import sys, time, gi
gi.require_version("OSTree", "1.0")
from gi.repository import Gio, OSTree
sysroot = OSTree.Sysroot.new(Gio.File.new_for_path(sys.argv[1]))
sysroot.lock()
print("held", flush=True)
time.sleep(60)
"""


async def test_a_lock_of_another_program(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = await install(host, "v1")
    monkeypatch.setattr("lashd.things.ostree.client.LOCK_SECONDS", 0.5)
    holder = subprocess.Popen(["/usr/bin/python3", "-c", HOLDER, str(host.sysroot)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        # Looking and fetching do not need it.
        assert host.backend.deployments() == (deployment,)
        write_image(host.layout, "v2", [BASE])
        await host.backend.fetch(host.image("v2"), expected_digest=None, report=ignore)
        with pytest.raises(LashdError) as caught:
            await host.backend.roll_back(deployment)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    assert caught.value.name == ErrorName.SYSROOT_LOCKED
    assert caught.value.retryable


def test_no_ostree(tmp_path: Path) -> None:
    with pytest.raises(LashdError) as caught:
        find_host(settings_from({"host": {"sysroot": tmp_path}}))
    assert caught.value.name == ErrorName.UNSUPPORTED_HOST


@pytest.mark.parametrize(
    ("note", "sentence"),
    [
        (None, "Nothing is staged now."),
        ('{"depl_id":"%s","finalization_locked":false}' % ("a1" * 64), "held by nobody before the shutdown."),
        ('{"depl_id":"%s","finalization_locked":true}' % ("a1" * 64), "held by somebody else than lashd."),
        ("{", "cannot be understood"),
    ],
)
def test_a_composefs_host(tmp_path: Path, note: str | None, sentence: str) -> None:
    """It is told what is so there, and how an operator lets something through."""
    for name in ("proc", "run/composefs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/cmdline").write_text(f"composefs={'b2' * 64} rw\n")
    if note is not None:
        (tmp_path / "run/composefs/staged-deployment").write_text(note)
    settings = settings_from({"paths": {"root": tmp_path, "composefs_run": tmp_path / "run/composefs"}})
    with pytest.raises(LashdError, match=sentence) as caught:
        find_host(settings)
    assert caught.value.name == ErrorName.UNSUPPORTED_HOST
    assert "There is no " in caught.value.message
    assert "held back at shutdown" in caught.value.message
    assert note == "{" or "/usr/lib/lashd/gate release" in caught.value.message
    assert caught.value.message.endswith(".")


async def test_what_is_watched(host: Host) -> None:
    """Also what bootc tells by; none of it need exist."""
    watched = host.backend.watched()
    assert {host.settings.paths.composefs_run, host.sysroot / "ostree/bootc"} <= set(watched)
    assert not (host.sysroot / "ostree/bootc").exists()
    told = asyncio.Event()
    watcher = Watcher(watched, told.set)
    watcher.start()
    try:
        for change in ((host.sysroot / "ostree/bootc").mkdir, lambda: os.utime(host.sysroot / "ostree/bootc")):
            told.clear()
            change()
            await asyncio.wait_for(told.wait(), 5)
    finally:
        watcher.close()


async def test_what_a_killed_gate_left_aside_comes_back(host: Host) -> None:
    """A soft reboot keeps it. What was staged since is what counts."""
    run = host.settings.paths.ostree_run
    run.mkdir(parents=True, exist_ok=True)
    (run / ASIDE).write_bytes(b"note")
    await host.backend.recover()
    assert (run / STAGED).read_bytes() == b"note"
    (run / ASIDE).write_bytes(b"older")
    await host.backend.recover()
    assert (run / STAGED).read_bytes() == b"note"
    assert not (run / ASIDE).exists()


async def test_an_interpreter_without_the_bindings(host: Host, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nexec /usr/bin/python3 -S "$@"\n')
    python.chmod(0o755)
    tools = replace(host.settings.tools, python=str(python))
    worker = Worker(replace(host.settings, tools=tools), booted=False)
    with pytest.raises(LashdError, match="python3-gi") as caught:
        await worker.change("prune", keep=[])
    assert caught.value.name == ErrorName.UNSUPPORTED_HOST


async def test_a_worker_that_dies(host: Host) -> None:
    tools = replace(host.settings.tools, python="/bin/false")
    worker = Worker(replace(host.settings, tools=tools), booted=False)
    with pytest.raises(LashdError, match="without an answer"):
        await worker.change("prune", keep=[])


@pytest.mark.parametrize(
    ("signature", "policy", "error"),
    [
        ("ostree-image-signed", ACCEPT_ALL, ErrorName.SIGNATURE_REJECTED),
        ("ostree-image-signed", {}, ErrorName.SIGNATURE_REJECTED),
        ("ostree-unverified-image", REJECT_ALL, ErrorName.SIGNATURE_REJECTED),
        ("ostree-remote-image:fedora", ACCEPT_ALL, ErrorName.UNSUPPORTED_HOST),
    ],
)
async def test_signatures(host: Host, signature: str, policy: dict[str, object], error: ErrorName) -> None:
    write_image(host.layout, "v1", [BASE])
    write_root(host.settings.paths.root, policy=policy)
    image = HostImage(f"{host.layout}:v1", "oci", signature)
    with pytest.raises(LashdError) as caught:
        await host.backend.check(image)
    assert caught.value.name == error
    with pytest.raises(LashdError):
        await host.backend.fetch(image, expected_digest=None, report=ignore)
    assert host.fetched == []


async def test_check(host: Host) -> None:
    digest = write_image(host.layout, "v1", [BASE])
    assert await host.backend.check(host.image("v1")) == digest
    assert host.backend.space() > 0
    assert host.backend.kind == "ostree"


async def test_what_was_lost_is_fetched_by_its_digest(host: Host, registry: Registry) -> None:
    """Its commit is gone and its tag means another image by now."""
    kernel = {"usr/lib/modules/1/vmlinuz": b"kernel", "usr/lib/modules/1/initramfs.img": b"initramfs"}
    first, second = (build([files({"usr/version": text.encode(), **kernel})]) for text in ("1", "2"))
    write_root(host.settings.paths.root, insecure=[registry.address])
    registry.push("host", first, "stable")
    registry.push("host", second, "stable")
    image = f"{registry.address}/host:stable"
    owed = Owed("x.0", "default", "0" * 64, first.digest, f"[origin]\n{IN_ORIGIN}:{image}\n", "boot", 1)
    commit = await host.backend._fetch_again(owed, ignore)
    assert host.ostree("cat", commit, "/usr/version") == "1"
    for lost, name in (
        (replace(owed, origin="[origin]\nrefspec=os/x\n"), ErrorName.NOT_FOUND),
        (replace(owed, digest="sha256:" + "1" * 64), ErrorName.NOT_FOUND),
    ):
        with pytest.raises(LashdError) as caught:
            await host.backend._fetch_again(lost, ignore)
        assert caught.value.name is name
