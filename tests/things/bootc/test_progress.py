# SPDX-License-Identifier: Apache-2.0
"""bootc's progress lines as events, whatever comes down the pipe."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things.bootc.progress import Progress
from lashd.words.progress import Event, ItemProgress, Stage, StageStarted

START = {"type": "Start", "version": "0.1.0"}


def layer(name: str, done: int, total: int) -> dict[str, Any]:
    return {
        "subtask": "layer",
        "description": f"layer: {name}",
        "id": name,
        "bytesCached": 0,
        "bytes": done,
        "bytesTotal": total,
    }


def pulling(*layers: dict[str, Any], total: int = 300, steps: int = 2) -> dict[str, Any]:
    head = {"type": "ProgressBytes", "task": "pulling", "description": "Pulling Image", "id": "sha256:1"}
    counts = {"bytesCached": 5, "bytes": 1, "bytesTotal": total, "stepsCached": 1, "steps": 0, "stepsTotal": steps}
    return head | counts | {"subtasks": list(layers)}


def staging(*names: str) -> dict[str, Any]:
    subtasks = [
        {"subtask": name, "description": f"Doing {name}", "id": name, "completed": name != names[-1]} for name in names
    ]
    head = {"type": "ProgressSteps", "task": "staging", "description": "Deploying Image", "id": "sha256:1"}
    return head | {"stepsCached": 0, "steps": len(names) - 1, "stepsTotal": 3, "subtasks": subtasks}


def lines(*events: Any) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def told(*pieces: bytes) -> list[Event]:
    found: list[Event] = []
    progress = Progress(found.append)
    for piece in pieces:
        progress.feed(piece)
    return found


WHOLE = lines(
    START,
    pulling(layer("aa", 10, 100)),
    pulling(layer("aa", 100, 100), layer("bb", 0, 200)),
    pulling(layer("aa", 100, 100), layer("bb", 200, 200)),
    staging("merging", "deploying"),
    staging("merging", "deploying", "bound_images", "cleanup"),
)
EXPECTED = [
    StageStarted(Stage.STAGE, 300, 2),
    ItemProgress("aa", "fetching", 10, 100),
    ItemProgress("aa", "done", 100, 100),
    ItemProgress("bb", "fetching", 0, 200),
    ItemProgress("bb", "done", 200, 200),
    ItemProgress("Doing merging", "done"),
    ItemProgress("Doing deploying", "unpacking"),
    ItemProgress("Doing deploying", "done"),
    ItemProgress("Doing cleanup", "unpacking"),
]


def test_layers_in_bytes_and_then_steps() -> None:
    assert told(WHOLE) == EXPECTED


@given(st.lists(st.integers(0, len(WHOLE)), max_size=20))
def test_in_pieces_of_any_size(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(WHOLE)]
    assert told(*(WHOLE[one:two] for one, two in itertools.pairwise(places))) == EXPECTED


@given(st.binary(max_size=200))
def test_what_is_not_understood_is_passed_over(noise: bytes) -> None:
    found = told(noise + b"\n", WHOLE)
    assert [event for event in found if event in EXPECTED] == EXPECTED


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"type": "ProgressBytes"}',
        b'{"type": "ProgressBytes", "subtasks": [{}]}',
        b'{"type": "ProgressBytes", "subtasks": [{"id": "aa", "bytes": "1"}]}',
        b'{"type": "ProgressSteps", "subtasks": [{"id": 1}]}',
        b'{"type": "New", "subtasks": [{"id": "aa", "bytes": 1}]}',
        b"[" * 100_000,
    ],
)
def test_other_versions_and_nonsense(line: bytes) -> None:
    assert [event for event in told(line + b"\n", WHOLE) if isinstance(event, ItemProgress)] == EXPECTED[1:]


def test_unknown_totals_and_strange_numbers() -> None:
    found = told(lines(pulling(layer("aa", 7, 0), layer("bb", -1, -1), total=-1, steps=0)))
    assert found == [
        StageStarted(Stage.STAGE, 0, 0),
        ItemProgress("aa", "fetching", 7, 0),
        ItemProgress("bb", "fetching", 0, 0),
    ]


def test_names_are_fit_to_be_shown() -> None:
    (_, event) = told(lines(pulling(layer("a\x1b[2J\n" + "b" * 1000, 1, 2))))
    assert isinstance(event, ItemProgress)
    assert event.item.isprintable()
    assert len(event.item) <= 200


def test_a_line_without_an_end_takes_no_memory() -> None:
    found: list[Event] = []
    progress = Progress(found.append)
    for _ in range(64):
        progress.feed(b"x" * 100_000)
    assert len(progress._rest) <= 1024 * 1024 + 100_000
    progress.feed(b"\n" + WHOLE)
    assert found == EXPECTED
