# SPDX-License-Identifier: Apache-2.0
"""References resolved and copied through the real skopeo, from a real registry on a good day and on bad ones."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lashd.things.auth import HOST_FILES
from lashd.things.failures import explain
from lashd.things.platform import architecture
from lashd.things.registry import copy_argv, inspect_argv, resolve
from lashd.words.config import PullSettings, Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import PullOptions
from lashd.words.reference import Reference, parse_reference
from lashd.words.run import Completed, run
from tests.support.faulty import Cut, Faulty, Garble, Reset, Stall, Status
from tests.support.host import REJECT_ALL, write_root
from tests.support.images import build, build_index, digest_of, files, random_bytes
from tests.support.registry import Registry, auth_file

FOREIGN = "s390x" if architecture() != "s390x" else "amd64"
IMAGE = build([files({"usr/bin/agent": "x"}), random_bytes(200_000, seed=1)])
NO_OPTIONS = PullOptions()


def with_(settings: Settings, **pull: Any) -> Settings:
    return replace(settings, pull=PullSettings(**pull))


async def copied(
    reference: Reference, settings: Settings, tmp_path: Path, options: PullOptions = NO_OPTIONS
) -> Completed:
    tmpdir = tmp_path / "downloads"
    tmpdir.mkdir(exist_ok=True)
    return await run(copy_argv(reference, f"dir:{tmp_path}/copy", options, settings, tmpdir=tmpdir), timeout=60)


@pytest.mark.parametrize("kind", ["oci", "docker"])
async def test_by_tag_and_by_digest(registry: Registry, settings: Settings, kind: Any) -> None:
    image = build([{"a": "1"}, {"b": "2"}], kind=kind)
    registry.push("edge/agent", image, "1")
    for text in ("1", image.digest):
        found = await resolve(parse_reference(registry.reference("edge/agent", text)), NO_OPTIONS, settings)
        assert found.digest == image.digest
        assert found.index_digest is None
        assert found.raw == image.manifest
        assert [layer.digest for layer in found.layers] == [layer.digest for layer in image.layers]


async def test_from_an_index(registry: Registry, settings: Settings) -> None:
    here, there = build([b"here"]), build([b"there"], arch=FOREIGN)
    index = build_index([there, here])
    registry.push("edge/agent", index, "all")
    reference = parse_reference(registry.reference("edge/agent", "all"))
    found = await resolve(reference, NO_OPTIONS, settings)
    assert (found.digest, found.index_digest) == (here.digest, index.digest)
    assert found.config_digest == here.config_digest
    found = await resolve(reference, PullOptions(arch=FOREIGN), settings)
    assert (found.digest, found.index_digest) == (there.digest, index.digest)
    found = await resolve(reference.at(index.digest), NO_OPTIONS, settings)
    assert (found.digest, found.index_digest) == (here.digest, index.digest)


async def test_an_index_for_other_machines_only(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    index = build_index([build([b"there"], arch=FOREIGN)])
    registry.push("edge/agent", index, "1")
    reference = parse_reference(registry.reference("edge/agent", "1"))
    with pytest.raises(
        LashdError, match=f"There is no image for linux/{architecture()}.*only for linux/{FOREIGN};"
    ) as e:
        await resolve(reference, NO_OPTIONS, settings)
    assert (e.value.name, e.value.retryable) == (ErrorName.NOT_FOUND, False)
    # skopeo comes to the same verdict.
    done = await copied(reference, settings, tmp_path)
    assert explain("skopeo", done.status, done.stderr, "x").name is ErrorName.NOT_FOUND
    assert (await copied(reference, settings, tmp_path, PullOptions(arch=FOREIGN))).status == 0


async def test_an_index_of_an_index(registry: Registry, settings: Settings) -> None:
    inner = build_index([build([b"x"])])
    registry.push("edge/agent", inner)
    entry = {"mediaType": inner.media_type, "digest": inner.digest, "size": len(inner.manifest)}
    entry["platform"] = {"architecture": architecture(), "os": "linux"}  # type: ignore[assignment]
    outer = json.dumps({"schemaVersion": 2, "mediaType": inner.media_type, "manifests": [entry]}).encode()
    registry.put_manifest("edge/agent", "1", inner.media_type, outer)
    with pytest.raises(LashdError, match="lists another index") as failure:
        await resolve(parse_reference(registry.reference("edge/agent", "1")), NO_OPTIONS, settings)
    assert (failure.value.name, failure.value.retryable) == (ErrorName.PULL_FAILED, False)


@pytest.mark.parametrize("asked", ["pinned", "from an index"])
async def test_other_content_than_the_digest_says(
    registry: Registry, faulty: Faulty, settings: Settings, asked: str
) -> None:
    registry.push("edge/agent", build_index([IMAGE]), "all")
    other = build([b"other"])
    faulty.on(IMAGE.digest, Status(200, body=other.manifest.decode(), content_type=other.media_type))
    reference = faulty.reference("edge/agent", IMAGE.digest if asked == "pinned" else "all")
    with pytest.raises(LashdError, match="damaged or not to be trusted") as failure:
        await resolve(parse_reference(reference), NO_OPTIONS, settings)
    assert failure.value.name is ErrorName.DIGEST_MISMATCH


@pytest.mark.parametrize(
    ("fault", "name", "retryable"),
    [
        (Status(401), ErrorName.AUTHENTICATION_FAILED, False),
        (Status(403), ErrorName.AUTHENTICATION_FAILED, False),
        (Status(404), ErrorName.NOT_FOUND, False),
        (Status(500), ErrorName.PULL_FAILED, True),
        (Status(503, retry_after=9), ErrorName.PULL_FAILED, True),
        (Reset(), ErrorName.PULL_FAILED, True),
        (Cut(10), ErrorName.PULL_FAILED, True),
        (Garble(), ErrorName.PULL_FAILED, True),
        (Stall(10), ErrorName.TIMEOUT, True),
        # skopeo itself waits and tries again, longer than we let it.
        (Status(429), ErrorName.TIMEOUT, True),
    ],
)
async def test_bad_days(
    registry: Registry, faulty: Faulty, settings: Settings, fault: Any, name: ErrorName, retryable: bool
) -> None:
    registry.push("edge/agent", IMAGE, "1")
    faulty.on("/manifests/", fault, method="")
    reference = parse_reference(faulty.reference("edge/agent", "1"))
    started = time.monotonic()
    with pytest.raises(LashdError) as failure:
        await resolve(reference, NO_OPTIONS, with_(settings, stall_seconds=0.7))
    assert time.monotonic() - started < 5
    assert (failure.value.name, failure.value.retryable) == (name, retryable)
    assert str(reference) in failure.value.message
    if name is not ErrorName.TIMEOUT:
        assert faulty.requests("/manifests/") == 1  # no retries here


async def test_unreachable(registry: Registry, settings: Settings) -> None:
    registry.stop()
    with pytest.raises(LashdError, match="cannot be reached") as failure:
        await resolve(parse_reference(registry.reference("edge/agent", "1")), NO_OPTIONS, settings)
    assert (failure.value.name, failure.value.retryable) == (ErrorName.NETWORK_UNAVAILABLE, True)
    with pytest.raises(LashdError, match="cannot be resolved"):
        await resolve(parse_reference("registry.invalid/edge/agent:1"), NO_OPTIONS, settings)


async def test_ended_with_its_task(registry: Registry, faulty: Faulty, settings: Settings) -> None:
    faulty.on("/v2/", Stall(), method="")
    task = asyncio.create_task(resolve(parse_reference(faulty.reference("a/b")), NO_OPTIONS, settings))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task  # conftest.py looks for a skopeo that is left


# Copies


async def test_a_copy(registry: Registry, faulty: Faulty, settings: Settings, tmp_path: Path) -> None:
    registry.push("edge/agent", IMAGE, "1")
    reference = parse_reference(faulty.reference("edge/agent", IMAGE.digest))
    done = await copied(reference, settings, tmp_path)
    assert (done.status, done.stdout, done.stderr) == (0, b"", "")
    assert digest_of((tmp_path / "copy/manifest.json").read_bytes()) == IMAGE.digest
    assert all(faulty.requests(layer.digest) == 1 for layer in IMAGE.layers)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (Garble(), ErrorName.DIGEST_MISMATCH),
        (Cut(1000), ErrorName.PULL_FAILED),
        (Status(404), ErrorName.NOT_FOUND),
    ],
)
async def test_a_copy_that_breaks(
    registry: Registry, faulty: Faulty, settings: Settings, tmp_path: Path, fault: Any, name: ErrorName
) -> None:
    registry.push("edge/agent", IMAGE, "1")
    faulty.on(IMAGE.layers[1].digest, fault)
    done = await copied(parse_reference(faulty.reference("edge/agent", IMAGE.digest)), settings, tmp_path)
    assert explain("skopeo", done.status, done.stderr, "x").name is name


async def test_a_policy_that_rejects(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    registry.push("edge/agent", IMAGE, "1")
    write_root(settings.paths.root, insecure=[registry.address], policy=REJECT_ALL)
    done = await copied(parse_reference(registry.reference("edge/agent", "1")), settings, tmp_path)
    assert explain("skopeo", done.status, done.stderr, "x").name is ErrorName.SIGNATURE_REJECTED


async def test_a_mirror(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    registry.push("mirrored/agent", IMAGE, "1")
    mirrors = {"registry.invalid/edge": f"{registry.address}/mirrored"}
    write_root(settings.paths.root, mirrors=mirrors)
    reference = parse_reference("registry.invalid/edge/agent:1")
    assert (await resolve(reference, NO_OPTIONS, settings)).digest == IMAGE.digest
    assert (await copied(reference.at(IMAGE.digest), settings, tmp_path)).status == 0


def test_nothing_becomes_an_option(settings: Settings, tmp_path: Path) -> None:
    reference = Reference("--policy=", "x", "1")  # no such reference can be parsed; even so
    options = PullOptions("/a", "/c", False, "--arch", "--os", "--variant")
    for argv in (
        inspect_argv(reference, options, settings),
        copy_argv(reference, "dir:/x", options, settings, tmpdir=tmp_path),
    ):
        assert "docker://--policy=/x:1" in argv
        assert not {"--arch", "--os", "--variant", "/a", "/c"} & set(argv)


def test_a_booted_host_has_its_own_files(settings: Settings) -> None:
    paths = replace(settings.paths, root=Path("/"))
    argv = inspect_argv(Reference("r.example", "a", "1"), NO_OPTIONS, replace(settings, paths=paths))
    assert not [each for each in argv if each.startswith(("--policy", "--registries", "--tls"))]


# Credentials and certificates


@pytest.fixture
def guarded() -> Iterator[Registry]:
    with Registry(users={"edge": "secret"}) as registry:
        registry.push("edge/agent", IMAGE, "1")
        yield registry


@pytest.mark.parametrize("name", [*HOST_FILES, "etc/agent/auth.json"])
async def test_credentials_in_each_place(guarded: Registry, settings: Settings, tmp_path: Path, name: str) -> None:
    options = PullOptions(tls_verify=False, auth_file="/etc/agent/auth.json")
    reference = parse_reference(guarded.reference("edge/agent", "1"))
    with pytest.raises(LashdError, match=r"AuthFile .*/etc/agent/auth\.json does not exist") as failure:
        await resolve(reference, options, settings)
    assert failure.value.name is ErrorName.AUTHENTICATION_FAILED
    path = settings.paths.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(auth_file({guarded.address: ("edge", "secret")}))
    assert (await resolve(reference, options, settings)).digest == IMAGE.digest
    assert (await copied(reference, settings, tmp_path, options)).status == 0


async def test_wrong_credentials_first(guarded: Registry, settings: Settings) -> None:
    """What stands further up decides, even if something further down would do."""
    for name, password in ((HOST_FILES[0], "wrong"), (HOST_FILES[1], "secret")):
        path = settings.paths.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(auth_file({guarded.address: ("edge", password)}))
    with pytest.raises(LashdError) as failure:
        await resolve(parse_reference(guarded.reference("edge/agent", "1")), PullOptions(tls_verify=False), settings)
    assert failure.value.name is ErrorName.AUTHENTICATION_FAILED
    assert "wrong" not in failure.value.message


async def test_nothing_of_roots_home(guarded: Registry, settings: Settings, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    (home / ".docker/config.json").write_text(auth_file({guarded.address: ("edge", "secret")}))
    reference = parse_reference(guarded.reference("edge/agent", "1"))
    argv = inspect_argv(reference, PullOptions(tls_verify=False), settings)
    environment = {"HOME": str(home), "DOCKER_CONFIG": str(home / ".docker"), "XDG_RUNTIME_DIR": str(home)}
    (home / "containers").mkdir()
    (home / "containers/auth.json").write_text(auth_file({guarded.address: ("edge", "secret")}))
    assert (await run(argv, timeout=30, env=environment)).status != 0
    without = [each for each in argv if each != "--no-creds"]
    assert (await run(without, timeout=30, env=environment)).status == 0  # else this proves nothing


async def test_certificates(settings: Settings, tmp_path: Path) -> None:
    with Registry(tls=True) as registry:
        registry.push("edge/agent", IMAGE, "1")
        reference = parse_reference(registry.reference("edge/agent", "1"))
        with pytest.raises(LashdError, match="certificate is not accepted") as failure:
            await resolve(reference, NO_OPTIONS, settings)
        assert (failure.value.name, failure.value.retryable) == (ErrorName.NETWORK_UNAVAILABLE, False)
        (settings.paths.root / "etc/certs").symlink_to(registry.certificates)
        options = PullOptions(cert_dir="/etc/certs")
        assert (await resolve(reference, options, settings)).digest == IMAGE.digest
        assert (await copied(reference, settings, tmp_path, options)).status == 0
