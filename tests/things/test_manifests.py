# SPDX-License-Identifier: Apache-2.0
"""Manifests as registries serve them, and which one of an index is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lashd.things import manifests, platform
from lashd.things.manifests import Index, Platform
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Manifest, PullOptions
from tests.support.images import build, build_index, digest_of

D = ["sha256:" + digit * 64 for digit in "0123456789"]


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_image(kind: Any) -> None:
    image = build([{"a": "1"}, {"b": "2"}], kind=kind)
    found = manifests.parse(image.manifest, image.digest, "x")
    assert isinstance(found, Manifest)
    assert found.digest == image.digest
    assert (found.config_digest, found.config_size) == (image.config_digest, len(image.config))
    assert [(each.digest, each.size) for each in found.layers] == [(b.digest, len(b.blob)) for b in image.layers]
    assert found.layers[0].media_type.endswith("gzip")
    assert found.raw == image.manifest


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_index(kind: Any) -> None:
    images = [build([b"1"], arch="amd64", kind=kind), build([b"2"], arch="arm", variant="v7", kind=kind)]
    index = build_index(images, kind=kind)
    found = manifests.parse(index.manifest, index.digest, "x")
    assert found == Index(
        index.digest,
        ((Platform("linux", "amd64"), images[0].digest), (Platform("linux", "arm", "v7"), images[1].digest)),
    )


def descriptor(digest: str = D[1], size: Any = 5, **more: Any) -> dict[str, Any]:
    return {"digest": digest, "size": size, "mediaType": "m", **more}


def document(**changes: Any) -> bytes:
    whole = {"schemaVersion": 2, "config": descriptor(), "layers": [descriptor()]} | changes
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("raw", "retryable", "says"),
    [
        (b"<html>log in</html>", True, "no image manifest"),
        (b"\x84\xff", True, "no image manifest"),
        (b"[]", True, "no image manifest"),
        (document(layers=[descriptor(size=-1)]), True, "no image manifest"),
        (document(schemaVersion=1), False, "schema 1"),
        (document(config=None), False, "no container image"),
        (document(layers=None), False, "no container image"),
        (document(layers=[descriptor("../../etc/passwd")]), False, "no digest"),
        (document(config=descriptor("sha256:12")), False, "no digest"),
    ],
)
def test_what_cannot_be_used(raw: bytes, retryable: bool, says: str) -> None:
    with pytest.raises(LashdError, match=says) as failure:
        manifests.parse(raw, digest_of(raw), "edge/agent:1")
    assert failure.value.name is ErrorName.PULL_FAILED
    assert failure.value.retryable is retryable
    assert "edge/agent:1" in failure.value.message


def test_foreign_layers_and_unknown_keys() -> None:
    foreign = descriptor(urls=["https://example.com/layer"])
    found = manifests.parse(document(layers=[foreign], artifactType="x", subject={"digest": D[2]}), D[0], "x")
    assert isinstance(found, Manifest)


ARM = [("arm", "v5"), ("arm", "v6"), ("arm", "v7"), ("arm", "v8"), ("arm64", ""), ("amd64", "")]


@pytest.mark.parametrize(
    ("options", "offered", "chosen"),
    [
        (PullOptions(arch="arm", variant="v7"), ARM, ("arm", "v7")),
        (PullOptions(arch="arm", variant="v8"), ARM, ("arm", "v8")),
        (PullOptions(arch="arm", variant="v6"), ARM, ("arm", "v6")),
        (PullOptions(arch="arm", variant="v8"), [("arm", "v6"), ("arm", "v7")], ("arm", "v7")),
        (PullOptions(arch="arm", variant="v7"), [("arm", "v5"), ("arm", "")], ("arm", "v5")),
        (PullOptions(arch="arm", variant="v6"), [("arm", "v7")], None),
        (PullOptions(arch="arm"), ARM, ("arm", "v8")),
        (PullOptions(arch="arm"), [("arm", "v6"), ("arm", "")], ("arm", "")),
        (PullOptions(arch="arm64"), [("arm64", "v8")], ("arm64", "v8")),
        (PullOptions(arch="arm64", variant="v8"), [("arm64", "")], ("arm64", "")),
        (PullOptions(arch="arm64"), [("arm", "v8")], None),
        (PullOptions(arch="amd64", variant="v3"), [("amd64", ""), ("amd64", "v3")], ("amd64", "v3")),
        (PullOptions(arch="amd64"), [("amd64", "v3")], None),
        (PullOptions(arch="s390x"), ARM, None),
    ],
)
def test_the_variant(options: PullOptions, offered: list[tuple[str, str]], chosen: tuple[str, str] | None) -> None:
    index = Index(D[9], tuple((Platform("linux", *each), D[number]) for number, each in enumerate(offered)))
    if chosen is None:
        with pytest.raises(LashdError, match="only for linux/") as failure:
            manifests.choose(index, manifests.wanted(options), "edge/agent:1")
        assert failure.value.name is ErrorName.NOT_FOUND
        assert f"linux/{options.arch}" in failure.value.message
    else:
        assert manifests.choose(index, manifests.wanted(options), "x") == D[offered.index(chosen)]


def test_this_machine_and_another_system() -> None:
    here = Platform("linux", platform.architecture(), platform.variant())
    assert manifests.wanted(PullOptions())[0] == here
    assert {each.os for each in manifests.wanted(PullOptions(os="freebsd"))} == {"freebsd"}
    # An attestation that a build tool lists beside the image is no platform.
    index = Index(D[9], ((Platform("unknown", "unknown"), D[0]),))
    with pytest.raises(LashdError, match="only for no platform at all"):
        manifests.choose(index, [here], "x")


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", ("amd64", "")), ("aarch64", ("arm64", "v8")), ("armv7l", ("arm", "v7")), ("s390x", ("s390x", ""))],
)
def test_goarch(machine: str, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: type("U", (), {"machine": machine}))
    assert (platform.architecture(), platform.variant()) == expected


def test_the_digest_has_the_algorithm_of_the_wanted_one() -> None:
    assert manifests.digest_of(b"x") == digest_of(b"x")
    assert manifests.digest_of(b"x", "sha512:" + "0" * 128).startswith("sha512:")
