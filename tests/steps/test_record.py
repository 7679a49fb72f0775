# SPDX-License-Identifier: Apache-2.0
"""Records survive, whole or not at all, and never say more than was written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.steps.record import Records, parse_record, print_record
from lashd.things.store import StoredLayer
from lashd.words import files
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Record, RecordedImage

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
DIGEST = HEX.map(lambda text: f"sha256:{text}")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
IMAGES = st.lists(HEX, max_size=4).flatmap(
    lambda layers: st.builds(
        RecordedImage,
        reference=TEXT,
        digest=DIGEST,
        image_id=HEX,
        layers=st.just(tuple(layers)),
        units=st.lists(TEXT, max_size=3).map(tuple),
        index_digest=st.none() | DIGEST,
        stamps=st.tuples(*[TEXT] * len(layers)),
    )
)
RECORDS = st.builds(
    Record,
    deployment=TEXT,
    host_digest=st.none() | TEXT,
    images=st.lists(IMAGES, max_size=3).map(tuple),
    created=st.integers(0, 2**40),
    adopted=st.booleans(),
)

KEY = "a" * 64 + ".0"
IMAGE = RecordedImage(
    "quay.io/edge/agent:v1",
    f"sha256:{'1' * 64}",
    "2" * 64,
    ("3" * 64, "4" * 64),
    ("agent.container",),
    None,
    ("x", "y"),
)
RECORD = Record(KEY, None, (IMAGE,), 1_700_000_000)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state/records"


@given(RECORDS)
def test_what_was_written_is_read(record: Record) -> None:
    assert parse_record(print_record(record)) == record


def test_a_record_is_there_for_everyone_until_it_is_removed(directory: Path) -> None:
    records = Records(directory)
    assert (records.load_all(), records.get(KEY), records.vouched(), records.problems()) == ({}, None, frozenset(), ())
    records.write(RECORD)
    other = replace(RECORD, deployment="b" * 64 + ".1", images=(replace(IMAGE, layers=("5" * 64,), stamps=("z",)),))
    records.write(other)
    for reader in (records, Records(directory)):
        assert reader.load_all() == {KEY: RECORD, other.deployment: other}
        assert reader.vouched() == {"3" * 64, "4" * 64, "5" * 64}
    Records(directory).remove(KEY)
    assert records.get(KEY) is None
    assert records.vouched() == {"5" * 64}
    records.remove(KEY)


def test_a_record_is_replaced_whole_and_read_again(directory: Path) -> None:
    records = Records(directory)
    records.write(RECORD)
    first = records.get(KEY)
    assert records.get(KEY) is first, "not read again"
    Records(directory).write(replace(RECORD, created=1))
    assert records.get(KEY) == replace(RECORD, created=1)
    assert [path.name for path in directory.iterdir()] == [f"{KEY}.json"]


def test_a_record_is_durable_before_write_returns(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    Records(directory).write(RECORD)
    assert done == [str(directory.parent), str(directory / f".{KEY}.json.new"), str(directory)]


def layer(layer_id: str, created: str) -> StoredLayer:
    return StoredLayer(layer_id, None, None, 0, None, 0, None, incomplete=False, created=created)


@pytest.mark.parametrize(
    ("in_store", "vouched"),
    [
        ({"3" * 64: "x", "4" * 64: "y"}, {"3" * 64, "4" * 64}),
        ({"3" * 64: "x", "4" * 64: "later"}, {"3" * 64}),
        ({"3" * 64: "x"}, {"3" * 64}),
        ({}, set()),
    ],
)
def test_a_layer_that_was_fetched_again_is_not_vouched_for(
    in_store: dict[str, str], vouched: set[str], directory: Path
) -> None:
    records = Records(directory)
    records.write(RECORD)
    assert records.vouched({key: layer(key, created) for key, created in in_store.items()}) == vouched


def test_what_was_found_damaged_is_vouched_for_by_no_record_any_more(directory: Path) -> None:
    records = Records(directory)
    records.write(RECORD)
    other = replace(RECORD, deployment="b" * 64 + ".0")
    records.write(other)
    three, four = "3" * 64, "4" * 64
    here = {three: layer(three, "x"), four: layer(four, "y")}
    assert not records.distrust([layer(three, "another copy"), layer("5" * 64, "x")])
    assert records.vouched(here) == {three, four}
    assert records.distrust([here[three]])
    # For whoever reads the files anew, too: it is on disk.
    for each in (records, Records(directory)):
        assert each.vouched(here) == {four}
        assert each.vouched() == {four}
        assert each.distrusted(here) == {three}
        assert each.distrusted({three: layer(three, "later")}) == set(), "another copy of it"
        assert each.problems() == ()
    assert not records.distrust([here[three]])
    # Read again and found sound: one record is enough.
    records.write(RECORD)
    assert records.vouched(here) == {three, four}


def change(edit: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def act(content: bytes) -> bytes:
        value = json.loads(content)
        edit(value)
        return json.dumps(value).encode()

    return act


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: b"",
        lambda content: content[:-40],
        lambda content: b"\0" * len(content),
        lambda content: b"[]",
        change(lambda value: value.update(version=2)),
        change(lambda value: value.pop("version")),
        change(lambda value: value.update(deployment="other")),
        change(lambda value: value.pop("images")),
        change(lambda value: value["images"][0].update(digest="sha256:short")),
        change(lambda value: value["images"][0].update(digest=f"sha256:{'1' * 64}\n")),
        change(lambda value: value["images"][0].update(layers=["../../x"])),
    ],
)
def test_a_damaged_record_is_as_if_absent_and_told(harm: Callable[[bytes], bytes], directory: Path) -> None:
    records = Records(directory)
    records.write(RECORD)
    path = directory / f"{KEY}.json"
    path.write_bytes(harm(path.read_bytes()))
    assert records.get(KEY) is None
    assert records.vouched() == frozenset()
    (problem,) = records.problems()
    assert str(path) in problem
    records.write(RECORD)
    assert (records.get(KEY), records.problems()) == (RECORD, ())


def test_what_a_later_version_adds_is_ignored(directory: Path) -> None:
    records = Records(directory)
    records.write(RECORD)
    path = directory / f"{KEY}.json"
    path.write_bytes(change(lambda value: value.update(more={"a": 1}))(path.read_bytes()))
    assert records.get(KEY) == RECORD


def test_other_files_are_no_records(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name in (f".{KEY}.json.new", "README", f"{KEY}.json.bak", ".json"):
        (directory / name).write_text("{")
    (directory / "directory.json").mkdir()
    records = Records(directory)
    assert records.load_all() == {}
    assert len(records.problems()) == 1, "a directory with the name of a record"


@pytest.mark.parametrize("key", ["", ".", "../x", "a/b", ".hidden", "a\n", "x" * 300])
def test_a_key_is_never_a_path(key: str, directory: Path) -> None:
    records = Records(directory)
    for action in (lambda: records.write(replace(RECORD, deployment=key)), lambda: records.remove(key)):
        with pytest.raises(LashdError) as caught:
            action()
        assert caught.value.name is ErrorName.INVALID_ARGUMENT
    assert not directory.exists()


@pytest.mark.parametrize(("number", "name"), [(28, ErrorName.NO_SPACE), (30, ErrorName.INTERNAL)])
def test_a_record_that_cannot_be_written_leaves_the_old_one(
    number: int, name: ErrorName, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(directory)
    records.write(RECORD)

    def full(path: Path, content: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "write_durably", full)
    with pytest.raises(LashdError) as caught:
        records.write(replace(RECORD, created=1))
    assert caught.value.name is name
    assert records.get(KEY) == RECORD


@pytest.mark.parametrize("kind", ["fifo", "link", "huge"])
def test_what_is_no_plain_file_is_no_record_and_never_waited_for(directory: Path, kind: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{'a' * 64}.0.json"
    if kind == "fifo":
        os.mkfifo(path)
        # With a writer there, whoever opens it gets in, and then waits for content that never comes.
        held = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    records = Records(directory)
    assert records.load_all() == {}
    assert len(records.problems()) == 1
    if kind == "fifo":
        os.close(held)
