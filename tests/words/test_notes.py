# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from lashd.words.errors import ErrorName, LashdError
from lashd.words.notes import read_note, remove_note, write_note


@dataclass(frozen=True)
class Value:
    name: str
    parts: tuple[tuple[str, int], ...] = ()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new/note.json"
    assert read_note(path, Value) is None
    remove_note(path)
    value = Value("größer", (("a", 1), ("b", 2)))
    write_note(path, value, mode=0o600)
    assert read_note(path, Value) == value
    assert path.stat().st_mode & 0o777 == 0o600
    remove_note(path)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"name": 1}', b"\xff", b" " * 2_000_000])
def test_what_cannot_be_understood_is_not_there(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "note.json").write_bytes(content)
    assert read_note(tmp_path / "note.json", Value) is None


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for change in (lambda path: write_note(path, Value("x")), remove_note):
        with pytest.raises(LashdError) as caught:
            change(tmp_path / "file/note.json")
        assert caught.value.name is ErrorName.INTERNAL
        assert "note.json could not be" in caught.value.message
