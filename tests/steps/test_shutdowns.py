# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lashd.steps.shutdowns import Shutdowns, boot_id, owing, restageable, still_owed
from lashd.things.host import Staging
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import Deployment, Order, Owed, Passed, Verdict

VERDICT = Verdict(Passed.HELD, "b" * 32, 17, "a.0", "sha256:1", (("missing", "It is not there."),))
OWED = Owed("a.0", "default", "a", "sha256:1", "[origin]\n", "b", 17, 2)
RELEASE = Order("a.0", "sha256:1", False, 0, "it is gone for good", 18)
ORDER = Order("a.0", "sha256:1", True, 0, "not today", 17)


@pytest.fixture
def shutdowns(tmp_path) -> Shutdowns:
    return Shutdowns(tmp_path / "state", tmp_path / "run")


def test_what_is_written_is_read_by_the_next_one(shutdowns, tmp_path) -> None:
    assert (shutdowns.verdict(), shutdowns.owed(), shutdowns.order()) == (None, None, None)
    shutdowns.owe(None)
    shutdowns.write_verdict(VERDICT)
    shutdowns.owe(OWED)
    shutdowns.give_order(ORDER)
    later = Shutdowns(tmp_path / "state", tmp_path / "run")
    assert (later.verdict(), later.owed(), later.order()) == (VERDICT, OWED, ORDER)
    # The host was rebooted: only a hold is still there.
    assert Shutdowns(tmp_path / "state", tmp_path / "another run").order() == ORDER
    later.give_order(RELEASE)
    assert shutdowns.order() == RELEASE
    assert Shutdowns(tmp_path / "state", tmp_path / "another run").order() is None
    later.give_order(ORDER)
    assert shutdowns.order() == ORDER
    later.owe(None)
    later.give_order(None)
    assert (shutdowns.verdict(), shutdowns.owed(), shutdowns.order()) == (VERDICT, None, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"result": "perhaps"}', b"\xff", b"1" * 2_000_000])
def test_rubbish_counts_as_not_there(shutdowns, tmp_path, content) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "run").mkdir()
    for path in ("state/last-shutdown.json", "state/owed.json", "state/order.json", "run/order.json"):
        (tmp_path / path).write_bytes(content)
    assert (shutdowns.verdict(), shutdowns.owed(), shutdowns.order()) == (None, None, None)
    (tmp_path / "state/owed.json").unlink()
    os.mkfifo(tmp_path / "state/owed.json")
    assert shutdowns.owed() is None


def test_a_state_directory_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LashdError) as caught:
        Shutdowns(tmp_path / "file/state", tmp_path).owe(OWED)
    assert caught.value.name is ErrorName.INTERNAL


def test_this_boot_has_an_id() -> None:
    assert len(boot_id()) == 36


@pytest.mark.parametrize(
    ("key", "digest", "held", "released"),
    [
        (f"{'a' * 64}.0", "sha256:1", True, True),
        (f"{'a' * 64}.1", "sha256:1", True, False),  # staged once more
        (f"{'a' * 64}.0", "sha256:2", False, False),
        (f"{'b' * 64}.0", "sha256:1", False, False),
    ],
)
def test_what_an_order_is_good_for(tmp_path, key, digest, held, released) -> None:
    checksum, _, serial = key.partition(".")
    deployment = Deployment("default", checksum, int(serial), tmp_path, digest=digest)
    for hold, wanted in ((True, held), (False, released)):
        assert Order(f"{'a' * 64}.0", "sha256:1", hold, 0, "", 1).is_for(deployment) is wanted


OLD = Deployment("default", "a" * 64, 0, Path("/"))
RUNS = Staging("[origin]\nrefspec=os/a\n\n[libostree-transient]\npinned=true\n", ("root=a", "quiet", "x=1"))


@pytest.mark.parametrize(
    ("owed", "still"),
    [
        ({"checksum": "b" * 64}, True),
        ({"checksum": "b" * 64, "base": ""}, True),
        ({"checksum": "b" * 64, "base": "c" * 64}, False),  # something else came instead
        ({"base": "c" * 64}, False),  # it runs
        ({"base": ""}, False),
        # The same commit, staged over itself.
        ({}, False),
        ({"kargs": None}, False),
        ({"kargs": ("root=a", "x=1", "ostree=/ostree/boot.1/default/a/0", "quiet")}, False),
        ({"kargs": ("root=a quiet x=1",)}, False),
        ({"kargs": ("root=a", "x=1", "quiet", "debug")}, True),
        ({"kargs": ("root=a", "x=1")}, True),
        ({"kargs": ("root=a", "x=1", "quiet", "quiet")}, True),
        ({"origin": "[origin]\nrefspec=os/b\n"}, True),
        ({"initrds": ("f" * 64,)}, True),
        ({"stateroot": "other"}, True),
    ],
)
def test_what_is_still_owed(owed: dict[str, Any], still: bool) -> None:
    known = replace(
        Owed(f"{OLD.checksum}.1", "default", OLD.checksum, "", "# mine\n[origin]\nrefspec=os/a\n", "b", 17),
        **{"base": OLD.checksum, "kargs": RUNS.kargs} | owed,
    )
    assert still_owed(known, OLD, RUNS) is still


def test_what_is_owed_keeps_what_was_known_of_it() -> None:
    first = owing(OLD, None, RUNS, "boot", 5, None, ("q.io/a:1",))
    assert (first.binds, first.kargs, first.initrds, restageable(first)) == (("q.io/a:1",), RUNS.kargs, (), True)
    # The gate has no time to read it again.
    again = owing(replace(OLD, serial=1), first, Staging("x", initrds=("f",)), "boot", 6, None)
    assert (again.binds, again.since, again.initrds, restageable(again)) == (("q.io/a:1",), 5, ("f",), False)
    assert owing(replace(OLD, checksum="c" * 64), first, RUNS, "boot", 6, None).binds is None
