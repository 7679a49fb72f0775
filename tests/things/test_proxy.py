# SPDX-License-Identifier: Apache-2.0
"""The client of skopeo's image proxy, against the real one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lashd.things.platform import architecture
from lashd.things.proxy import ImageProxy
from lashd.words.config import PullSettings, Settings, ToolSettings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.run import run
from tests.support.faulty import Cut, Faulty, Garble, Reset, Stall, Status
from tests.support.host import REJECT_ALL, write_root
from tests.support.images import LayerBlob, build, build_index, files, random_bytes
from tests.support.registry import Registry, auth_file

LAYERS = [files({"usr/bin/os": "x"}), *(random_bytes(300_000, seed=seed) for seed in range(3))]
IMAGE = build(LAYERS, labels={"ostree.bootable": "true"})
BIG = LAYERS[1]


def open_files() -> dict[str, str]:
    """What this process has open: descriptor to what it leads to."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[entry.name] = str(entry.readlink())
    return found


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    before = open_files()
    yield
    left = [path for number, path in open_files().items() if number not in before]
    assert not [path for path in left if path.startswith(("pipe:", "/tmp"))], left


@pytest.fixture
def name(registry: Registry, faulty: Faulty) -> str:
    """The name of IMAGE in the registry, by way of the proxy that can break."""
    registry.push("os/base", IMAGE, "1")
    return f"docker://{faulty.reference('os/base', '1')}"


async def read(descriptor: int, size: int = -1) -> bytes:
    """What comes through a blocking pipe, to its end or `size` bytes; short when the pipe ends early."""

    def body() -> bytes:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(size)

    return await asyncio.to_thread(body)


async def fetched(proxy: ImageProxy, image: Any, layer: LayerBlob) -> bytes:
    async with proxy.blob(image, layer.digest, len(layer.blob)) as pipe:
        return await read(pipe)


def impatient(settings: Settings) -> Settings:
    return replace(settings, pull=PullSettings(stall_seconds=0.5))


async def test_all_of_an_image(name: str, faulty: Faulty, settings: Settings) -> None:
    async with ImageProxy(settings) as proxy:
        image = await proxy.open(name)
        assert await proxy.manifest(image) == (IMAGE.digest, IMAGE.manifest)
        config = json.loads(await proxy.config(image))
        assert config["config"]["Labels"] == {"ostree.bootable": "true"}
        assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in LAYERS]
        for layer in LAYERS:
            assert await fetched(proxy, image, layer) == layer.blob
    assert all(faulty.requests(layer.digest) == 1 for layer in LAYERS)


async def test_an_index_and_docker_schema(registry: Registry, settings: Settings) -> None:
    here = build([b"here"], kind="docker")
    there = build([b"there"], kind="docker", arch="s390x" if architecture() != "s390x" else "amd64")
    registry.push("os/base", build_index([there, here], kind="docker"), "1")
    async with ImageProxy(settings) as proxy:
        image = await proxy.open(f"docker://{registry.reference('os/base', '1')}")
        digest, raw = await proxy.manifest(image)
        assert digest == here.digest
        assert json.loads(raw)["layers"][0]["digest"] == here.layers[0].digest
        assert json.loads(raw)["layers"][0]["mediaType"].startswith("application/vnd.oci.")
        assert json.loads(await proxy.config(image))["architecture"] == architecture()


async def test_another_transport(name: str, settings: Settings, tmp_path: Path) -> None:
    conf = settings.paths.root / "etc/containers/registries.conf"
    argv = ["skopeo", f"--registries-conf={conf}", "copy", "--quiet", name, f"oci:{tmp_path}/layout:x"]
    assert (await run(argv, timeout=30)).status == 0
    async with ImageProxy(settings) as proxy:
        image = await proxy.open(f"oci:{tmp_path}/layout:x")
        assert (await proxy.manifest(image))[0] == IMAGE.digest
        assert await fetched(proxy, image, BIG) == BIG.blob


async def test_several_blobs_at_once(name: str, faulty: Faulty, settings: Settings) -> None:
    """All of them are under way before the first has ended, and none is fetched twice."""
    together = asyncio.Barrier(len(LAYERS))

    async def one(layer: LayerBlob) -> bytes:
        async with proxy.blob(image, layer.digest, len(layer.blob)) as pipe:
            await together.wait()
            return await read(pipe)

    async with ImageProxy(settings) as proxy:
        image = await proxy.open(name)
        async with asyncio.timeout(20):
            assert await asyncio.gather(*map(one, LAYERS)) == [layer.blob for layer in LAYERS]
    assert all(faulty.requests(layer.digest) == 1 for layer in LAYERS)


async def test_a_child_reads(name: str, settings: Settings) -> None:
    async with ImageProxy(settings) as proxy:
        image = await proxy.open(name)
        async with proxy.blob(image, BIG.digest, len(BIG.blob)) as pipe:
            child = await asyncio.create_subprocess_exec("sha256sum", stdin=pipe, stdout=asyncio.subprocess.PIPE)
            said, _ = await child.communicate()
    assert said.split()[0].decode() == hashlib.sha256(BIG.blob).hexdigest()


async def test_who_stops_early_still_gets_the_digest_checked(name: str, faulty: Faulty, settings: Settings) -> None:
    async with ImageProxy(settings) as proxy:
        image = await proxy.open(name)
        async with proxy.blob(image, BIG.digest, len(BIG.blob)) as pipe:
            assert await read(pipe, 100) == BIG.blob[:100]
        faulty.on(BIG.digest, Garble())
        with pytest.raises(LashdError) as failure:
            async with proxy.blob(image, BIG.digest, len(BIG.blob)) as pipe:
                await read(pipe, 100)
        assert failure.value.name is ErrorName.DIGEST_MISMATCH


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Garble(), ErrorName.DIGEST_MISMATCH),
        (Cut(1000), ErrorName.PULL_FAILED),
        (Reset(), ErrorName.PULL_FAILED),
        (Status(404), ErrorName.NOT_FOUND),
        (Status(403), ErrorName.AUTHENTICATION_FAILED),
        (Status(503), ErrorName.PULL_FAILED),
    ],
)
@pytest.mark.parametrize("reader_fails", [False, True])
async def test_a_blob_that_breaks(
    name: str, faulty: Faulty, settings: Settings, fault: Any, error: ErrorName, reader_fails: bool
) -> None:
    faulty.on(BIG.digest, fault)  # for ever, because newer versions ask once more for what is missing
    async with ImageProxy(settings) as proxy:
        image = await proxy.open(name)

        async def unpack() -> None:
            async with proxy.blob(image, BIG.digest, len(BIG.blob)) as pipe:
                await read(pipe)
                if reader_fails:  # as an unpacker does, when the archive ends too early
                    raise ValueError("short")

        with pytest.raises(LashdError) as failure:
            await unpack()
        assert failure.value.name is error
        faulty.heal()
        assert await fetched(proxy, image, BIG) == BIG.blob  # it goes on, with the same skopeo or another


async def test_a_stall(name: str, faulty: Faulty, settings: Settings) -> None:
    faulty.on(BIG.digest, Stall(1000), times=1)
    async with ImageProxy(impatient(settings)) as proxy:
        image = await proxy.open(name)
        started = time.monotonic()
        with pytest.raises(LashdError) as failure:
            async with proxy.blob(image, BIG.digest, len(BIG.blob)):
                pass
        assert failure.value.name is ErrorName.TIMEOUT
        assert time.monotonic() - started < 8
        assert await fetched(proxy, image, BIG) == BIG.blob


async def test_a_registry_that_never_answers(name: str, faulty: Faulty, settings: Settings) -> None:
    faulty.on("/manifests/", Stall(1), method="")
    async with ImageProxy(impatient(settings)) as proxy:
        with pytest.raises(LashdError, match=r"os/base:1 could not be fetched: .* did not answer") as failure:
            await proxy.manifest(await proxy.open(name))
    assert failure.value.name is ErrorName.TIMEOUT


async def test_a_readers_own_failure_ends_the_transfer(name: str, faulty: Faulty, settings: Settings) -> None:
    # Whoever waited for the rest would wait until the stall is noticed, and tell of that instead.
    faulty.on(BIG.digest, Stall(100_000))
    async with ImageProxy(settings) as proxy:
        image = await proxy.open(name)

        async def unpack() -> None:
            async with proxy.blob(image, BIG.digest, len(BIG.blob)) as pipe:
                await read(pipe, 1000)
                raise ValueError("no space here")

        with pytest.raises(ValueError, match="no space here"):
            await unpack()
        assert await fetched(proxy, image, LAYERS[2]) == LAYERS[2].blob


@pytest.mark.parametrize("reader_reads", [False, True])
async def test_cancelled(name: str, faulty: Faulty, settings: Settings, reader_reads: bool) -> None:
    faulty.on(BIG.digest, Stall(1000))
    begun = asyncio.Event()

    async def fetch() -> None:
        async with ImageProxy(settings) as proxy:
            image = await proxy.open(name)
            async with proxy.blob(image, BIG.digest, len(BIG.blob)) as pipe:
                if reader_reads:
                    await read(pipe, 1000)
                begun.set()
                await asyncio.sleep(60)

    task = asyncio.create_task(fetch())
    await begun.wait()
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 3


def skopeos() -> list[int]:
    """Process ids of the skopeos that are our children."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"experimental-image-proxy" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


async def test_skopeo_dies(name: str, faulty: Faulty, settings: Settings) -> None:
    faulty.on(BIG.digest, Stall(1000), times=1)
    async with ImageProxy(settings) as proxy, asyncio.timeout(20):
        image = await proxy.open(name)

        async def unpack() -> None:
            async with proxy.blob(image, BIG.digest, len(BIG.blob)) as pipe:
                await read(pipe, 1000)
                os.kill(*skopeos(), signal.SIGKILL)
                await read(pipe)

        with pytest.raises(LashdError, match="signal 9") as failure:
            await unpack()
        assert (failure.value.name, failure.value.retryable) == (ErrorName.PULL_FAILED, True)
        assert await fetched(proxy, image, BIG) == BIG.blob
        os.kill(*skopeos(), signal.SIGKILL)
        with pytest.raises(LashdError, match="could not be fetched"):
            await proxy.manifest(image)
        assert (await proxy.manifest(image))[0] == IMAGE.digest


async def test_what_is_not_there(registry: Registry, faulty: Faulty, settings: Settings, name: str) -> None:
    async with ImageProxy(settings) as proxy:
        with pytest.raises(LashdError, match="os/none") as failure:
            await proxy.open(f"docker://{faulty.reference('os/none', '1')}")
        assert failure.value.name is ErrorName.NOT_FOUND
        registry.stop()
        with pytest.raises(LashdError) as failure:
            await proxy.open(f"docker://{registry.reference('os/base', '1')}")
        assert failure.value.name is ErrorName.NETWORK_UNAVAILABLE


async def test_credentials_of_the_host(settings: Settings) -> None:
    with Registry(users={"edge": "secret"}) as registry:
        registry.push("os/base", IMAGE, "1")
        write_root(settings.paths.root, insecure=[registry.address])
        name = f"docker://{registry.reference('os/base', '1')}"
        async with ImageProxy(settings) as proxy:
            with pytest.raises(LashdError) as failure:
                await proxy.open(name)
        assert failure.value.name is ErrorName.AUTHENTICATION_FAILED
        path = settings.paths.root / "etc/ostree/auth.json"
        path.parent.mkdir(parents=True)
        path.write_text(auth_file({registry.address: ("edge", "secret")}))
        async with ImageProxy(settings) as proxy:
            assert (await proxy.manifest(await proxy.open(name)))[0] == IMAGE.digest


async def test_a_policy_that_rejects(registry: Registry, faulty: Faulty, settings: Settings, name: str) -> None:
    addresses = [registry.address, faulty.address]
    write_root(settings.paths.root, insecure=addresses, policy=REJECT_ALL)
    async with ImageProxy(settings) as proxy:
        with pytest.raises(LashdError, match="polic") as failure:
            await proxy.open(name)
    assert failure.value.name is ErrorName.SIGNATURE_REJECTED


async def test_a_skopeo_that_is_none(settings: Settings, tmp_path: Path) -> None:
    for program, says in ((str(tmp_path / "none"), "not installed"), ("false", "status 1")):
        with pytest.raises(LashdError, match=says):
            async with ImageProxy(replace(settings, tools=ToolSettings(skopeo=program))):
                pass


async def test_another_protocol(settings: Settings, tmp_path: Path) -> None:
    for version, accepted in (("0.2.3", True), ("0.2.8", True), ("0.2.1", False), ("0.3.0", False), ("x", False)):
        program = tmp_path / "skopeo"
        program.write_text(
            "#!/usr/bin/python3\nimport json, socket, sys\n"
            "number = int([a for a in sys.argv if a.startswith('--sockfd=')][0][9:])\n"
            "peer = socket.socket(fileno=number)\npeer.recv(4096)\n"
            f"peer.send(json.dumps({{'success': True, 'value': '{version}', 'pipeid': 0, 'error': ''}}).encode())\n"
            "peer.recv(4096)\n"
        )
        program.chmod(0o755)
        changed = replace(settings, tools=ToolSettings(skopeo=str(program)))
        if accepted:
            async with ImageProxy(changed):
                pass
        else:
            with pytest.raises(LashdError, match=f"version {version}") as failure:
                async with ImageProxy(changed):
                    pass
            assert failure.value.name is ErrorName.UNSUPPORTED_HOST
