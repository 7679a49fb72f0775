# SPDX-License-Identifier: Apache-2.0
"""What bootc writes to `--progress-fd`, as our own progress events.

JSON lines (bootc's docs/src/progress-v0.schema.json, called experimental there), of which fields come and go between
versions. A line that cannot be understood is passed over: progress is for looking at, never for deciding.
"""

from __future__ import annotations

from dataclasses import dataclass

from lashd.words import shape
from lashd.words.progress import Event, ItemProgress, Report, Stage, StageStarted
from lashd.words.text import one_line

# A line of bootc's has some hundred bytes for each layer of the image, and an image at most a few hundred layers.
_LIMIT = 1024 * 1024
_NAME_LIMIT = 200


@dataclass(frozen=True, slots=True)
class _Subtask:
    id: str = ""
    description: str = ""
    bytes: int = 0
    bytesTotal: int = 0
    completed: bool = False


@dataclass(frozen=True, slots=True)
class _Line:
    type: str = ""
    task: str = ""
    bytesTotal: int = 0
    stepsTotal: int = 0
    subtasks: tuple[_Subtask, ...] = ()


class Progress:
    """Takes bootc's bytes in pieces of any size, and reports what they tell. Never raises."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._rest = b""
        self._skipping = False  # a line without an end
        self._started = False
        self._told: dict[str, Event] = {}

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not self._skipping:
                self._take(line)
            self._skipping = False
        if len(self._rest) > _LIMIT:
            self._rest, self._skipping = b"", True

    def _take(self, content: bytes) -> None:
        try:
            line = shape.from_json(_Line, content)
        except shape.Misfit:
            return
        if line.type == "ProgressBytes":
            if not self._started:
                self._started = True
                self._report(StageStarted(Stage.STAGE, max(line.bytesTotal, 0), max(line.stepsTotal, 0)))
            for one in line.subtasks:
                self._tell_layer(one)
        elif line.type == "ProgressSteps":
            for one in line.subtasks:
                # Of the images that are bound lashd tells itself.
                if one.id and one.id != "bound_images":
                    name = one_line(one.description or one.id)[:_NAME_LIMIT]
                    self._tell(ItemProgress(name, "done" if one.completed else "unpacking"))

    def _tell_layer(self, layer: _Subtask) -> None:
        if not layer.id:
            return
        done, total = max(layer.bytes, 0), max(layer.bytesTotal, 0)
        state = "done" if total and done >= total else "fetching"
        self._tell(ItemProgress(one_line(layer.id)[:_NAME_LIMIT], state, done, total))

    def _tell(self, event: ItemProgress) -> None:
        # Each line repeats all layers that are done.
        if self._told.get(event.item) != event:
            self._told[event.item] = event
            self._report(event)
