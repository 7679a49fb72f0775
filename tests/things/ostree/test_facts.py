# SPDX-License-Identifier: Apache-2.0
"""What commits and files of a host say that were made by others, in whatever way: fewer facts, never an error."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things.ostree import facts, names

DIGEST = f"sha256:{'a' * 64}"


def commit(**metadata: tuple[str, bytes]) -> bytes:
    """A commit object in GVariant's format, its metadata given as (type, serialised value)."""
    entries: list[bytes] = []
    for key, (kind, value) in metadata.items():
        variant = value + b"\0" + kind.encode()
        text = key.encode() + b"\0"
        padded = text + b"\0" * (-len(text) % 8)
        width = _width(len(padded) + len(variant))
        entries.append(padded + variant + len(text).to_bytes(width, "little"))
    ends, content = [], b""
    for entry in entries:
        content += b"\0" * (-len(content) % 8) + entry
        ends.append(len(content))
    width = _width(len(content), len(ends))
    metadata_end = content + b"".join(end.to_bytes(width, "little") for end in ends)
    # Parent, related, subject and body are empty; then the time, and the two checksums.
    data = metadata_end
    offsets = [len(data), len(data), len(data)]
    for text in (b"\0", b"\0"):
        data += text
        offsets.append(len(data))
    data += b"\0" * (-len(data) % 8) + struct.pack(">Q", 1_700_000_000)
    offsets.append(len(data))
    width = _width(len(data), len(offsets))
    return data + b"".join(end.to_bytes(width, "little") for end in reversed(offsets))


def _width(size: int, offsets: int = 1) -> int:
    return next(width for width in (1, 2, 4, 8) if size + width * offsets < 1 << (8 * width))


def text(value: str) -> tuple[str, bytes]:
    return "s", value.encode() + b"\0"


DEEP = '{"x":' + "[" * 60_000


def test_what_a_commit_says() -> None:
    found = facts.commit_facts(commit(**{names.META_DIGEST: text(DIGEST), names.META_VERSION: text("3")}))
    assert (found.digest, found.version, found.timestamp) == (DIGEST, "3", 1_700_000_000)


@pytest.mark.parametrize(
    "metadata",
    [
        {names.META_DROPPED: ("u", struct.pack("=I", 5))},
        {names.META_DROPPED: text("a")},
        {names.META_DROPPED: ("b", b"\1")},
        {names.META_CONFIG: text(DEEP)},
        {names.META_CONFIG: text('{"config": ' + "9" * 5000 + "}")},
        {names.META_CONFIG: text('{"config": []}')},
        {names.META_MANIFEST: text(DEEP)},
        {names.META_MANIFEST: text('{"layers": [[]]}')},
        {names.META_MANIFEST: ("u", struct.pack("=I", 5))},
    ],
)
def test_metadata_of_another_kind_is_none(metadata: dict[str, tuple[str, bytes]]) -> None:
    found = facts.commit_facts(commit(**{names.META_DIGEST: text(DIGEST)}, **metadata))
    assert (found.digest, found.timestamp) == (DIGEST, 1_700_000_000)
    assert (found.version, found.layers, found.dropped) == (None, (), ())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["config", "Labels", "layers", "digest", "version", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_JSON, _JSON)
def test_any_document_will_do(config: object, manifest: object) -> None:
    import json

    found = facts.commit_facts(
        commit(**{names.META_CONFIG: text(json.dumps(config)), names.META_MANIFEST: text(json.dumps(manifest))})
    )
    assert found.timestamp == 1_700_000_000
    assert all(isinstance(layer, str) for layer in found.layers)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ostree-1.conf")
    (tmp_path / "ostree-2.conf").write_text("version 2\noptions ostree=/two\n")
    assert facts.read(tmp_path / "ostree-1.conf") == b""
    assert facts.read(tmp_path) == b""
    assert [entry.link for entry in facts.boot_entries(tmp_path)] == ["/two", ""]
