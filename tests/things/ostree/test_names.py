# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things.ostree.names import (
    escape,
    format_origin_image,
    image_ref,
    layer_ref,
    parse_origin_image,
    unescape,
)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("localhost:5000/foo:latest", "localhost_3A_5000/foo_3A_latest"),
        ("registry:quay.io/coreos/fedora:latest", "registry_3A_quay_2E_io/coreos/fedora_3A_latest"),
        ("docker://quay.io/a_b", "docker_3A__2F__2F_quay_2E_io/a__b"),
        ("/foo/", "_2F_foo_2F_"),
        ("a//b", "a/_2F_b"),
        ("fedora/x86_64/coreos", "fedora/x86__64/coreos"),
        ("ü", "_FC_"),
    ],
)
def test_escapes_as_bootc_does(text: str, escaped: str) -> None:
    assert escape(text) == escaped
    assert unescape(escaped) == text


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_escaping_can_be_undone(text: str) -> None:
    assert unescape(escape(text)) == text


@pytest.mark.parametrize("text", ["", "a.b", "_", "_zz_", "_110000_", "a_b"])
def test_unescape_refuses_what_escape_cannot_make(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        unescape(text)


def test_refs() -> None:
    assert layer_ref("sha256:ab") == "ostree/container/blob/sha256_3A_ab"
    assert image_ref("registry", "quay.io/a/b:v1") == "ostree/container/image/docker_3A__2F__2F_quay_2E_io/a/b_3A_v1"


@pytest.mark.parametrize(
    ("text", "parsed", "canonical"),
    [
        ("ostree-unverified-registry:q.io/a:1", ("q.io/a:1", "registry", "ostree-unverified-registry"), None),
        (
            "ostree-unverified-image:docker://q.io/a:1",
            ("q.io/a:1", "registry", "ostree-unverified-image"),
            "ostree-unverified-registry:q.io/a:1",
        ),
        (
            "ostree-unverified-image:registry:q.io/a:1",
            ("q.io/a:1", "registry", "ostree-unverified-image"),
            "ostree-unverified-registry:q.io/a:1",
        ),
        ("ostree-unverified-image:oci:/var/i:t", ("/var/i:t", "oci", "ostree-unverified-image"), None),
        ("ostree-image-signed:docker://q.io/a", ("q.io/a", "registry", "ostree-image-signed"), None),
        (
            "ostree-image-signed:registry:q.io/a",
            ("q.io/a", "registry", "ostree-image-signed"),
            "ostree-image-signed:docker://q.io/a",
        ),
        (
            "ostree-image-signed:containers-storage:localhost/x",
            ("localhost/x", "containers-storage", "ostree-image-signed"),
            None,
        ),
        (
            "ostree-remote-registry:fedora:q.io/a:1",
            ("q.io/a:1", "registry", "ostree-remote-registry:fedora"),
            "ostree-remote-image:fedora:docker://q.io/a:1",
        ),
        (
            "ostree-remote-image:fedora:oci-archive:/a.tar",
            ("/a.tar", "oci-archive", "ostree-remote-image:fedora"),
            None,
        ),
    ],
)
def test_origins(text: str, parsed: tuple[str, str, str], canonical: str | None) -> None:
    assert parse_origin_image(text) == parsed
    assert format_origin_image(*parsed) == (canonical or text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "quay.io/a",
        "ostree-unverified-registry:",
        "ostree-unverified-image:ftp:x",
        "ostree-image-signed:docker:x",
        "x:y:z",
        "ostree-remote-image:r",
    ],
)
def test_refuses_origins_it_does_not_know(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_origin_image(text)
