# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.bus import options, rows
from lashd.running.jobs import Initiator, Jobs, Outcome
from lashd.running.rows import blank_row, entry_row, job_row, set_row
from lashd.running.view import deployment_row
from lashd.running.walk import plan_facts
from lashd.things.history_rows import JobEntry, SetEntry
from lashd.words.model import Deployment, Plan


@pytest.mark.parametrize("library", ["dbus_next", "dbus_fast"])
@pytest.mark.parametrize(
    ("signature", "value", "wanted"),
    [
        ("s", None, ""),
        ("s", "a\0b\udc80", "a�b?"),
        ("b", None, False),
        ("b", 1, True),
        ("d", None, 0.0),
        ("t", -1, 0),
        ("t", 2**70, 2**64 - 1),
        ("u", 2**40, 2**32 - 1),
        ("x", -(2**70), -(2**63)),
        ("o", None, "/"),
        ("o", "/a/b_2e", "/a/b_2e"),
        ("as", None, []),
        ("as", ("x", "y"), ["x", "y"]),
        ("ao", ["/a"], ["/a"]),
        ("(ss)", ("a", None), ["a", ""]),
        ("(ss)", None, ["", ""]),
        ("a(ss)", [("a", "b")], [["a", "b"]]),
        ("a(sstt)", [("a", "b", 1, -2)], [["a", "b", 1, 0]]),
        ("a{sv}", None, {}),
    ],
)
def test_values(library, signature, value, wanted) -> None:
    made = rows.to_dbus(signature, value)
    assert made == wanted
    module = importlib.import_module(library)
    # The library takes it, and the wire keeps it.
    message = module.Message(path="/a", interface="a.b", member="C", signature=signature, body=[made], serial=1)
    assert message._marshall(False)


@pytest.mark.parametrize(("signature", "value"), [("o", "no path"), ("o", "/a/"), ("(ss)", ("a",)), ("h", 1)])
def test_what_cannot_be_mended(signature, value) -> None:
    with pytest.raises(ValueError, match=r"."):
        rows.to_dbus(signature, value)


@given(st.text(), st.integers(), st.floats(allow_nan=False))
def test_any_value_fits_its_signature(text, number, fraction) -> None:
    row = rows.to_row({"name": text, "serial": number, "attempt": number, "fraction": fraction, "locked": number})
    assert {key: variant.signature for key, variant in row.items()} == {
        "name": "s",
        "serial": "t",
        "attempt": "u",
        "fraction": "d",
        "locked": "b",
    }


def test_an_unknown_key_is_left_out_and_said_once(caplog) -> None:
    for _ in range(2):
        assert rows.to_row({"colour-of-the-sea": "blue"}) == {}
    assert len(caplog.records) == 1


async def test_every_key_of_the_service_has_a_type() -> None:
    async def work(job: object) -> Outcome:
        return Outcome(False)

    job, _joined = Jobs().start("plan", work, Initiator(0), {}, slot=False)
    await job.wait(1)
    deployment = Deployment("default", "0" * 64, 0, Path("/"))
    shown = [
        job_row(job),
        job.details,
        blank_row(deployment, "a"),
        deployment_row(deployment, ready=True, next_boot=True),
        plan_facts(Plan()),
    ]
    asks = ("Wait", "GetHistory")  # whose options no job shows
    shown += [dict.fromkeys(table) for name, table in options.METHODS.items() if name not in asks]
    shown += [entry_row(JobEntry(1, "u", "bind", True, "b", 1, 0)), {"interrupted": True, "continues": 1}]
    shown.append(set_row(SetEntry(1, "b", "k", "i", "d", "v", (), True, 1, 2), "b"))
    shown.append({"object": "/", "retryable": True, "joined": True, "uid": 0, "unit": "", "name": ""})
    keys = {key for row in shown for key in row}
    assert keys <= rows.KEYS.keys()
    # Details that only come up on a real host: found in the source of the walk.
    walk = inspect.getsource(importlib.import_module("lashd.running.walk"))
    service = inspect.getsource(importlib.import_module("lashd.running.service"))
    more = ("newest-version", "newest-bytes", "held", "staged", "missing")
    for key in ("newest", "newer", "fetch", "digest", "image", "version", "deployment", *more):
        assert key in rows.KEYS or f'"{key}"' not in walk + service


@pytest.mark.parametrize("row", [{"images": "many"}, {"fetch": 5}, {"details": {"fetch": 3}}, {"bound": [["a"]]}])
def test_a_value_of_another_kind_hides_nothing_but_itself(row, caplog, monkeypatch) -> None:
    """The history has rows that other versions have written."""
    monkeypatch.setattr(rows, "_unfit", set())
    shown = rows.to_row({"name": "x"} | row)
    assert shown["name"].value == "x"
    assert "is not shown" in caplog.text
