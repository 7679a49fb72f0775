# SPDX-License-Identifier: Apache-2.0
"""What is shown, as pure functions: sizes, digests, progress; and nothing odd makes any of it fail."""

from __future__ import annotations

import io
import json
import time
from contextlib import redirect_stdout, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lashd.bus.contract import JOB, MANAGER, ROOT
from lashd.cli import job as jobs
from lashd.cli import jsonout, names, values, walk
from lashd.cli.client import PROPERTIES, News
from lashd.cli.failures import Failure
from lashd.cli.job import Item, Job
from lashd.cli.monitor import Watcher
from lashd.cli.render import progress, status, tables, words
from lashd.words.model import ImageState, UseProblem
from lashd.words.progress import Stage

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB")),
        *((48_100_000, "48.1 MB"), (10**9, "1.0 GB"), (2**64 - 1, "18.4 EB")),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert words.size(count) == shown


def test_sizes_of_two() -> None:
    assert words.of(12_000_000, 48_100_000) == "12.0 of 48.1 MB"
    assert words.of(12_000, 48_100_000) == "12.0 kB of 48.1 MB"
    assert words.of(50, 40) == "40 of 40 B"
    assert (words.of(0, 0), words.of(7, 0)) == ("", "7 B")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"sha256:{HEX}", "sha256:0123456789ab"),
        (f"sha512:{HEX}{HEX}", "sha512:0123456789ab"),
        (HEX, "0123456789ab"),
        ("sha256:short", "sha256:short"),
        ("", ""),
        ("a\x1bb", "a\\x1bb"),
    ],
)
def test_digests(text: str, shown: str) -> None:
    assert words.digest(text) == shown


def test_references_and_deployments() -> None:
    assert words.reference(f"quay.io/a/b:1@sha256:{HEX}") == "quay.io/a/b:1@sha256:0123456789ab"
    assert words.reference("quay.io/a/b:1") == "quay.io/a/b:1"
    assert words.deployment(f"{HEX}.3") == "0123456789ab.3"
    assert words.deployment("odd.key") == "odd.key"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (400_000, "4 d"),
    ],
)
def test_periods(seconds: float, shown: str) -> None:
    assert words.period(seconds) == shown


def test_every_stage_state_and_problem_has_its_words() -> None:
    assert set(progress.STAGES) == {stage.value for stage in Stage}
    assert set(tables.STATE_STYLES) == set(ImageState)
    assert set(tables._PROBLEMS) == set(UseProblem)


def job(stage: str, *items: tuple[str, str], **more: Any) -> Job:
    return Job(f"{ROOT}/job/1", 1, stage=stage, items=tuple(Item(*item, 1, 2) for item in items), **more)


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (None, job("plan"), ["plan: find out what is missing"]),
        (job("plan"), job("plan"), []),
        (job("pull", ("a", "fetching")), job("pull", ("a", "done")), ["  done: a (2 B)"]),
        (job("pull", ("a", "done")), job("pull", ("a", "done")), []),
        # The last news of a stage may be lost in the next one.
        (job("pull", ("a", "fetching")), job("verify"), ["  done: a (2 B)", "verify: verify images"]),
        # The walk starts anew because the host has changed: nothing has been fetched.
        (job("pull", ("a", "fetching")), job("discover"), ["discover: read which images it binds"]),
        (job("pull", ("a", "failed")), job("verify"), ["verify: verify images"]),
        # Layers of the host image are many, and their names tell nobody anything.
        (job("stage", ("sha256:1", "fetching")), job("stage", ("sha256:1", "done")), []),
        (job("pull"), job("pull", ("a", "retrying")), ["  trying again: a"]),
        (job("pull"), job("pull", ("a", "retrying"), item="a", attempt=3), ["  trying again: a (attempt 3)"]),
        (job("pull"), job("pull", ("a", "failed")), ["  failed: a"]),
        (job("pull"), job("pull", state="cancelling"), ["cancelling"]),
        (None, job("later-stage"), ["later-stage: later-stage"]),
    ],
)
def test_news(before: Job | None, after: Job, lines: list[str]) -> None:
    assert progress.news(before, after) == lines


def drawn(renderable: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, height=25, color_system=None, markup=False, emoji=False)
    console.print(renderable)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_many_images_leave_room_for_what_moves() -> None:
    names = [("waiting", f"w{number}") for number in range(50)] + [("fetching", "moving"), ("done", "finished")]
    running = job("pull", *((name, state) for state, name in names), kind="bind", next_attempt=130, attempt=4)
    text = drawn(progress.view(running, rows=10, now=100))
    assert len(text.splitlines()) <= 10
    assert "moving" in text
    assert "finished" not in text
    assert "more" in text
    assert "next attempt in 30 s (attempt 4)" in text


def test_speed_is_that_of_the_last_seconds() -> None:
    speed = progress.Speed()
    assert speed.at(0, 0) == 0
    assert speed.at(2, 200) == 100
    assert speed.at(20, 200) == 0
    assert speed.at(22, 400) == 100


def test_json_has_no_number_that_is_none() -> None:
    with redirect_stdout(io.StringIO()) as out:
        jsonout.document({"a": [float("nan"), {"b": float("inf")}], "c": 0.5, "d": b"x"})
    assert json.loads(out.getvalue()) == {"a": [None, {"b": None}], "c": 0.5, "d": "b'x'"}


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def odd_rows(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    states = st.sampled_from([*ImageState, "done", "running", "pull", "verify", "success", "failed", "plan"])
    return st.dictionaries(st.sampled_from(keys), odd | states, max_size=len(keys))


job_rows = odd_rows(
    *("Id", "Uuid", "Kind", "State", "Stage", "Item", "Fraction", "BytesDone", "BytesTotal", "ItemsDone"),
    *("ItemsTotal", "Attempt", "NextAttempt", "Created", "Initiator", "Options", "Result", "ErrorName"),
    *("ErrorMessage", "Details", "Items", "Cancellable"),
)
item_lists = st.lists(st.tuples(st.text(), st.text(), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=4)
details = odd_rows("fetch", "fits", "bytes-to-fetch", "images", "deployment", "newest", "newer", "retryable", "changed")


@settings(max_examples=150, deadline=None)
@given(first=job_rows, second=job_rows, items=item_lists, more=details, path=st.text(max_size=20))
def test_odd_jobs(first: Any, second: Any, items: Any, more: Any, path: str) -> None:
    before = jobs.read(path, first)
    after = jobs.merge(jobs.read(path, second | {"Items": items, "Details": more}), values.row(first))
    for line in progress.news(before, after) + progress.news(None, before):
        assert "\x1b" not in line
    for shown in (before, after):
        drawn(progress.view(shown, rows=8, now=0, speed=1.5, notice="n"), 30)
        drawn(tables.one_job(shown), 30)
        with redirect_stdout(io.StringIO()) as out, suppress(Failure):
            assert walk.ended(shown, json=True) in (0, 77)
        assert "job" in json.loads(out.getvalue())
    drawn(tables.jobs([before, after], width=30), 30)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), width=st.integers(20, 200))
def test_odd_rows(data: st.DataObject, width: int) -> None:
    bound_row = odd_rows(
        "deployment", "unit", "reference", "normalised", "state", "bytes", "use-problems", "error-name"
    )
    deployment_row = odd_rows("key", "roles", "image", "digest", "version", "timestamp", "locked", "ready")
    bound = data.draw(st.lists(bound_row, max_size=3))
    drawn(tables.bound(values.rows(bound), width=width, deployments={"": "x"}), width)
    top = odd_rows("schema", "host", "state", "gate", "blockedBy", "lastError", "activeJob", "deployments", "bound")
    document = data.draw(top) | {"bound": bound, "deployments": data.draw(st.lists(deployment_row, max_size=3))}
    assert "\x1b" not in drawn(status.status(values.row(document)), width)


@settings(max_examples=150, deadline=None)
@given(
    body=st.lists(odd | st.sampled_from([MANAGER, JOB]), max_size=6),
    member=st.sampled_from(["PropertiesChanged", "JobNew", "JobDone", "NameOwnerChanged"]),
    interface=st.sampled_from([PROPERTIES, MANAGER, "org.freedesktop.DBus"]),
    changed=job_rows | odd_rows("State", "Gate", "BlockedBy", "LastError", "Staged"),
)
def test_odd_news(body: list[Any], member: str, interface: str, changed: Any) -> None:
    watcher = Watcher()
    list(watcher.events(News(f"{ROOT}/job/1", interface, member, body)))
    for name in (MANAGER, JOB):
        list(watcher.events(News(f"{ROOT}/job/1", PROPERTIES, "PropertiesChanged", [name, changed, []])))


def shown(**document: Any) -> str:
    """The status screen, on one line."""
    return " ".join(drawn(status.status(values.row(document)), 400).split())


NEW = {"key": f"{HEX}.0", "roles": ["staged"], "digest": f"sha256:{HEX}", "version": "2", "locked": True}
ROW = {"deployment": f"{HEX}.0", "state": "missing", "error-name": "NotFound"}
LACKS = [
    ROW
    | {"unit": f"{name}.container", "normalised": f"a.example/{name}:1"}
    | {"error-message": f"The registry does not have a.example/{name}:1."}
    for name in ("one", "two", "three")
]
MISSING = [["missing", f"{row['normalised']} ({row['unit']}) is not in the store."] for row in LACKS]


def test_status_says_each_thing_once() -> None:
    error = {"name": "NotFound", "message": f"3 images could not be fetched. {LACKS[0]['error-message']}"}
    waits = [*MISSING, ["waiting", "It waits."], ["next-try", "The next try is soon."]]
    text = shown(
        gate="held",
        deployments=[NEW],
        bound=LACKS,
        blockedBy=waits,
        nextTry=1_790_000_000,
        lastError=error,
        policy="hold",
    )
    assert "Missing: 3 images: The registry does not have …." in text
    for name in ("one", "two", "three"):
        assert text.count(f"a.example/{name}:1") == 1
    assert "Waiting for: • 3 bound images, as told above • It waits." in text
    assert "The next try is soon" not in text
    assert "Next try: 2026" in text
    assert "Last error" not in text
    assert "Policy" not in text
    # With nothing staged nothing waits.
    assert "Needs attention: • A mistake." in shown(blockedBy=[["settings", "A mistake."]])
    assert text.endswith("'lashctl release sha256:0123456789ab' lets it through without; 'lashctl discard' drops it")
    other = shown(gate="held", deployments=[NEW], bound=LACKS, lastError={"name": "NoSpace", "message": "Full."})
    assert "Last error: NoSpace: Full." in other


ORDER = {"hold": False, "uid": 1000, "reason": "that\x1b registry is gone", "given": 1_790_000_000}
WITHOUT = "the next boot starts it, without the containers of 3 images that are not there"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"gate": "released", "order": ORDER},
            r"by user 1000 at 2026-09-21 14:13:20 UTC (that\x1b registry is gone): ",
        ),
        ({"gate": "released", "order": ORDER}, WITHOUT),
        ({"gate": "held", "order": ORDER | {"hold": True}}, "held: the next boot does not start it"),
        ({"gate": "open", "policy": "off"}, f"Policy: off Staged: {HEX[:12]}.0 Version: 2"),
        ({"gate": "open", "policy": "off"}, f"gate.policy is off: {WITHOUT}"),
        ({"gate": "open", "policy": "warn"}, f"gate.policy is warn: {WITHOUT}"),
        ({"gate": "held", "policy": "off"}, "held: the next boot does not start it"),
        ({"gate": "released", "policy": "warn", "bound": []}, "ready: the next boot starts it"),
        (
            {"lastShutdown": {"result": "released", "deployment": f"{HEX}.0", "reasons": MISSING[:1]}},
            f"Last shutdown: it let {HEX[:12]}.0 through all the same • {MISSING[0][1]}",
        ),
    ],
)
def test_status_says_what_the_next_boot_does(more: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert says in shown(**{"deployments": [NEW], "bound": LACKS} | more)


@pytest.mark.parametrize(
    ("kind", "result", "told", "says", "hides"),
    [
        ("bind", "unchanged", {"held": "It stays held."}, "every bound image is present.\nIt stays held.\n", "Held:"),
        ("upgrade", "success", {"held": "It stays held."}, "It stays held.", "systemctl reboot"),
        ("upgrade", "unchanged", {"staged": True}, "is staged already; reboot to start it", "up to date"),
        ("upgrade", "unchanged", {}, "the host is up to date", "staged"),
        ("reboot", "success", {"state": "started", "missing": ["a lacks."]}, "begun.\nWarning: a lacks.", "State"),
        ("reboot", "unchanged", {"state": "nothing", "when": "never"}, "nobody has asked", "never"),
        (
            *("plan", "unchanged", {"newer": True, "newest": f"sha256:{HEX}", "bytes-to-fetch": 0, "bytes-free": 5}),
            *("There is a newer host image: sha256:0123456789ab. What it binds is known only", "0 B"),
        ),
        ("plan", "unchanged", {"newer": True, "bytes-to-fetch": 2000}, "To fetch: 2.0 kB", "Newest"),
        (
            *("plan", "unchanged", {"newer": True, "newest": HEX, "newest-version": "42", "newest-bytes": 2000}),
            *("host image: version 42, 0123456789ab, 2.0 kB with what is here of it already.", "Newest"),
        ),
    ],
)
def test_what_a_job_came_to(
    kind: str, result: str, told: dict[str, Any], says: str, hides: str, capsys: pytest.CaptureFixture[str]
) -> None:
    walk.ended(Job(f"{ROOT}/job/1", 1, kind=kind, state="done", result=result, details=told), json=False)
    out = capsys.readouterr().out
    assert says in out
    assert hides not in out


@pytest.mark.parametrize("given", ["sha256:0123456789ab", "0123456789ab", HEX, f"sha256:{HEX}"])
async def test_what_is_shown_is_accepted(given: str) -> None:
    class Known:
        async def deployments(self) -> list[dict[str, Any]]:
            return [NEW, {"key": f"{HEX[:12]}{'f' * 52}.0", "roles": ["booted"], "digest": "sha256:" + "f" * 64}]

    client: Any = Known()
    assert await names.whole_digest(client, given) == f"sha256:{HEX}"
    for vague in ("0123", "f" * 64, "latest", "", None):
        assert await names.whole_digest(client, vague) == vague
    assert await names.whole_key(client, f"{HEX[:13]}.0") == f"{HEX}.0"
    for other in (f"{HEX[:12]}.0", f"{HEX[:12]}.1", "staged", "all", None, f"{HEX}.7"):
        assert await names.whole_key(client, other) == other
