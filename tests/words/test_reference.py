# SPDX-License-Identifier: Apache-2.0
"""References against skopeo's own parser, which is containers/image's."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lashd.words.errors import ErrorName, LashdError
from lashd.words.reference import Reference, parse_reference

D256 = "sha256:" + "a" * 64


def skopeo(text: str) -> str | None:
    """The normalised form that skopeo tries to reach (without a network), or None when it refuses the text."""
    argv = ["unshare", "--net", "skopeo", "--debug", "inspect", f"docker://{text}"]
    output = subprocess.run(argv, capture_output=True, timeout=20, check=False).stderr.decode()
    found = re.search(r'Trying to access \\"([^\\]+)\\"', output)
    if found is None:
        assert "Error parsing image name" in output, output
        return None
    return found[1]


def ours(text: str) -> str | None:
    # With the transport written out no name is short, which is how skopeo takes them all.
    reference = parsed(f"docker://{text}")
    return str(reference) if isinstance(reference, Reference) else None


def parsed(text: str) -> Reference | LashdError:
    try:
        return parse_reference(text, lambda name: f"quay.io/{name}")
    except LashdError as error:
        return error


@pytest.mark.parametrize(
    "text",
    [
        *("busybox", "a/b", "quay.io/a/b", "quay.io/a/b:v1", f"quay.io/a@{D256}", "localhost/x", "localhost:5000/x"),
        *("localhost", "quay.io", "quay.io/", "/x", "a//b", "a/b/", "", ":v", "a:", "a:v:w", "a@", "a@sha256:abc"),
        *("docker.io/x", "index.docker.io/x", "docker.io/a/b", "index.docker.io/library/x", "docker.io/library/x"),
        *("Docker.io/x", "Foo/bar", "foo/Bar", "FOO.io/bar", "registry:5000/a:v", "registry:/a", "registry:x/a"),
        *("[::1]:5000/x", "1.2.3.4/x", "1.2.3.4:80/x:y", "a-.io/x", "-a.io/x", "a..b/x", "-x", "--root=/"),
        *("a.b", "a..b", "a_b", "a__b", "a___b", "a--b", "a-", "a._b", "a.b/c-d__e", ".a", "_a/b", "a/_b"),
        *("a:_v", "a:-v", "a:.v", "a:V1.2-3_4", "a:" + "v" * 128, "a:" + "v" * 129, "a:v+1", "a:v v"),
        *("a" * 64, "a" * 64 + ":v", "x/" + "a" * 64, "a" * 63, "b" * 238, "b" * 239, "quay.io/" + "b" * 247),
        *("quay.io/" + "b" * 248, "a b", "a\tb", "a\n", "é/x", "quay.io/é", "a:é", "quay.io/x:٣"),
        *(f"a@sha384:{'b' * 96}", f"a@sha512:{'b' * 128}", f"a@{D256.upper()}", f"a@{D256}0", f"a@md5:{'b' * 32}"),
        *(f"a@{D256}:v", f"a@{D256}@{D256}", "docker://x", "oci:x"),
    ],
)
def test_as_skopeo(text: str) -> None:
    if text in ("",):
        assert ours(text) is None
    elif text == "oci:x":
        assert ours(text) == "docker.io/library/oci:x"
    else:
        assert ours(text) == skopeo(text)


PART = st.text(st.sampled_from("ab0A.-_:"), max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        lambda parts, tag, digest: "/".join(parts) + tag + digest,
        st.lists(st.one_of(PART, st.sampled_from(["a", "q.io", "localhost", "docker.io"])), min_size=1, max_size=4),
        st.one_of(st.just(""), st.builds(":{}".format, PART)),
        st.sampled_from(["", "", "", f"@{D256}", "@sha256:0"]),
    )
)
def test_any_text_as_skopeo(text: str) -> None:
    mine = ours(text)
    if mine is None or "@" not in text or "@" not in mine or text.partition("@")[0].rfind(":") < 0:
        assert mine == skopeo(text)
    # A tag beside a digest is podman's to ignore and skopeo's to refuse; what is left of it skopeo takes.
    elif skopeo(text) is None:
        assert skopeo(mine) == mine


@given(st.text(max_size=80))
def test_a_normal_form_or_a_sentence(text: str) -> None:
    reference = parsed(text)
    if isinstance(reference, Reference):
        assert parsed(str(reference)) == reference
        assert not str(reference).startswith("-")
    else:
        assert reference.name == ErrorName.BOUND_IMAGE_INVALID
        assert reference.message.endswith(".")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("quay.io/a/b", Reference("quay.io", "a/b", "latest")),
        (f"quay.io/a/b:v1@{D256}", Reference("quay.io", "a/b", "", D256)),
        ("quay.io:443/a:v", Reference("quay.io:443", "a", "v")),
        ("ubi9/podman:1", Reference("registry.example", "ubi/podman", "1")),
        ("docker://ubi9/podman", Reference("docker.io", "ubi9/podman", "latest")),
        (f"hub@{D256}", Reference("docker.io", "library/x", "", D256)),
    ],
)
def test_normal_form(text: str, meant: Reference) -> None:
    aliases = {"ubi9/podman": "registry.example/ubi/podman", "hub": "docker.io/x"}
    assert parse_reference(text, aliases.get) == meant


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("busybox", "write it with its registry, such as docker.io/library/busybox"),
        ("a/b", "such as docker.io/a/b"),
        ("a" * 64, "image id"),
        (D256, "image id"),
        ("oci:/var/x", "'oci:' does not name a registry"),
        ("dir:latest", "'dir:' does not name a registry"),
        ("containers-storage:x", "does not name a registry"),
        ("quay.io/A", "upper-case"),
        ("quay.io/", "no repository"),
        ("quay.io/a:", "'' is not a tag"),
        ("quay.io/a@x", "'x' is not a digest"),
        ("--root=/", "'--root=/' is not a repository name"),
        # skopeo takes this one for a path without any registry, which nothing can be fetched from.
        ("q_.io/a", "'q_.io' is not a registry name"),
        ("x" * 100_000, "…"),
    ],
)
def test_refusals_say_why(text: str, why: str) -> None:
    with pytest.raises(LashdError, match="The image reference ") as caught:
        parse_reference(text)
    assert why in caught.value.message
    assert len(caught.value.message) < 1000


def test_at() -> None:
    assert str(Reference("q.io", "a", "v").at(D256)) == f"q.io/a@{D256}"
    assert Reference("q.io", "a", "v").at(D256).pinned
    assert not Reference("q.io", "a", "v").pinned


def test_a_sentence_stays_short_whatever_it_quotes() -> None:
    for text in ("\U00033b72" * 4000, "quay.io/" + "\x1b" * 4000, "a:" + "\U0010ffff" * 200, "a@" + "\0" * 300):
        refused = parsed(text)
        assert isinstance(refused, LashdError)
        assert len(refused.message) < 750
        assert refused.message.isprintable()
        assert refused.message.endswith(".")


@pytest.mark.parametrize(
    "text",
    [
        "ann:secret@quay.io/a/b:1",
        "docker://ann:secret@quay.io/a/b:1",
        "https://ann:secret@quay.io:5000/a",
        "ann:sec@secret@quay.io/a",
        "ann:/secret/@quay.io/a",
        "ann:secret@registry",
        "secret@quay.io/a",
        f"ann:secret@quay.io/a@{D256}",
        "oci:ann:secret@quay.io/a",
    ],
)
def test_a_password_is_never_told(text: str) -> None:
    """Texts get into the history, the journal and BlockedBy, which everybody may read."""
    error = parsed(text)
    assert isinstance(error, LashdError)
    assert "secret" not in error.message
    assert error.name is ErrorName.BOUND_IMAGE_INVALID
