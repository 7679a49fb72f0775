# SPDX-License-Identifier: Apache-2.0
"""The catalog of the journal's entries: systemd takes it, and it says something of every id there is."""

from __future__ import annotations

import re
import subprocess
import uuid

import pytest

from lashd.words.events import FIELDS, MessageId, fields
from tests.conftest import REPOSITORY

CATALOG = REPOSITORY / "packaging/lashd.catalog"
PAGE = (REPOSITORY / "docs/observability.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What journalctl makes of the file, in a root of its own: id → (subject, all of the entry)."""
    root = tmp_path_factory.mktemp("root")
    place = root / "usr/lib/systemd/catalog/lashd.catalog"
    place.parent.mkdir(parents=True)
    place.write_bytes(CATALOG.read_bytes())
    made = subprocess.run(["journalctl", f"--root={root}", "--update-catalog"], capture_output=True, text=True)
    # It complains of a line that it cannot understand, and leaves the file out.
    assert (made.returncode, made.stderr) == (0, "")
    dump = subprocess.run(
        ["journalctl", f"--root={root}", "--dump-catalog"], capture_output=True, text=True, check=True
    )
    found = re.split(r"^-- ([0-9a-f]{32})\n", dump.stdout, flags=re.MULTILINE)[1:]
    return {
        key: (re.findall(r"^Subject: (.+)$", entry, re.MULTILINE)[0], entry)
        for key, entry in zip(found[::2], found[1::2], strict=True)
    }


def test_systemd_reads_an_entry_for_each_id_and_no_other(dumped: dict[str, tuple[str, str]]) -> None:
    assert set(dumped) == {each.value for each in MessageId}
    assert CATALOG.read_text().count("\n-- ") == len(dumped), "none is there twice"


def test_an_entry_says_what_it_means_where_more_is_and_names_fields_that_there_are(
    dumped: dict[str, tuple[str, str]],
) -> None:
    for _, entry in dumped.values():
        header, _, text = entry.partition("\n\n")
        pages = re.findall(r"^Documentation: file:/usr/share/doc/lashd/(.+)$", header, re.MULTILINE)
        assert [(REPOSITORY / page).is_file() for page in pages] == [True]
        assert "Defined-By: lashd" in header
        assert len(text.split()) > 5
        assert set(re.findall(r"@(\w+)@", entry)) <= set(FIELDS)


def test_ids_are_random_128_bit_numbers() -> None:
    for each in MessageId:
        assert re.fullmatch("[0-9a-f]{32}", each)
        assert (uuid.UUID(each).version, uuid.UUID(each).variant) == (4, uuid.RFC_4122)
    assert len(set(MessageId)) == len(MessageId.__members__), "an alias would be the same id"


def test_each_id_is_used() -> None:
    code = "".join(path.read_text() for path in (REPOSITORY / "daemon").rglob("*.py") if path.name != "events.py")
    assert [each.name for each in MessageId if f"MessageId.{each.name}" not in code] == []


def test_the_page_names_every_id_and_every_field() -> None:
    rows = re.findall(r"^\| `([0-9a-f]{32})` \| (\w+) \|", PAGE, re.MULTILINE)
    assert rows == [(each.value, each.name) for each in MessageId]
    assert re.findall(r"^\| `(LASHD_\w+)` \|", PAGE, re.MULTILINE) == list(FIELDS)


def test_fields_that_are_not_known_are_left_out() -> None:
    assert fields(MessageId.FORCED, deployment="ab.0", digest=None, uid=0, retryable=False) == {
        "MESSAGE_ID": MessageId.FORCED.value,
        "LASHD_DEPLOYMENT": "ab.0",
        "LASHD_UID": "0",
        "LASHD_RETRYABLE": "no",
    }
    everything = fields(
        MessageId.HELD,
        job="1",
        kind="2",
        result="3",
        error="4",
        deployment="5",
        digest="6",
        reference="7",
        retryable=True,
        uid=8,
    )
    assert set(everything) == {"MESSAGE_ID", *FIELDS}
