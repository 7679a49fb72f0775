# SPDX-License-Identifier: Apache-2.0
"""upgrade, bind, rollback, plan: jobs that are asked for, followed, and told about."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import pytest

from lashd.words.errors import ERRORS, ErrorName, LashdError
from tests.cli.conftest import DIGEST, STAGED, FakeLashd, Lashctl, finish, line_with, no_traceback

IMAGES = ("registry.example/app/web:1", f"docker.io/library/postgres@{DIGEST}")


def walks(lashd: FakeLashd, *, pause: float = 0.03) -> None:
    """Every job goes through a short walk with two images."""

    def images(*states: tuple[str, int]) -> list[tuple[str, str, int, int]]:
        return [(name, state, done, 40_000_000) for name, (state, done) in zip(IMAGES, states, strict=True)]

    steps: list[dict[str, Any]] = [
        {"Stage": "discover"},
        {"Stage": "plan"},
        {"Stage": "pull", "BytesTotal": 80_000_000, "ItemsTotal": 2, "Items": images(("waiting", 0), ("waiting", 0))},
        {"BytesDone": 20_000_000, "Fraction": 0.25, "Items": images(("fetching", 20_000_000), ("waiting", 0))},
        {"BytesDone": 50_000_000, "Fraction": 0.6, "ItemsDone": 1, "Attempt": 2, "Item": IMAGES[1]}
        | {"Items": images(("done", 40_000_000), ("retrying", 10_000_000))},
        {"BytesDone": 70_000_000, "Fraction": 0.9, "Items": images(("done", 40_000_000), ("fetching", 30_000_000))},
        {"Stage": "verify", "Items": []},
        {"Stage": "record"},
    ]

    async def walk(number: int) -> None:
        for step in steps:
            await asyncio.sleep(pause)
            lashd.change(number, **step)
        await asyncio.sleep(pause)
        lashd.end(number, "success", changed=True)

    def start(method: str, number: int) -> None:
        lashd.tasks.append(asyncio.ensure_future(walk(number)))

    lashd.on_start = start


async def test_lines_when_it_is_no_terminal(lashd: FakeLashd, lashctl: Lashctl) -> None:
    walks(lashd)
    ran = await lashctl("bind")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "bind (job 7)",
        "discover: read which images it binds",
        "plan: find out what is missing",
        "pull: fetch images (2 images, 80.0 MB)",
        "  done: registry.example/app/web:1 (40.0 MB)",
        "  trying again: docker.io/library/postgres@sha256:0123456789ab (attempt 2)",
        "  done: docker.io/library/postgres@sha256:0123456789ab (40.0 MB)",
        "verify: verify images",
        "record: record what is bound",
        "Done: bind (job 7).",
    ]


async def test_bars_on_a_terminal(lashd: FakeLashd, lashctl: Lashctl) -> None:
    walks(lashd, pause=0.2)
    ran = await lashctl.on_terminal("upgrade")
    assert ran.status == 0
    for part in ("━━━━", "fetch images", "• docker.io", "60%", "50.0 of 80.0 MB", "fetching", "retrying"):
        assert part in ran.out
    # What stays: the finished images and the end; the cursor is shown again.
    assert "done: registry.example/app/web:1 (40.0 MB)" in ran.out
    assert ran.out.split("\r\n")[-3].endswith("Done: upgrade (job 7).")
    assert ran.out.endswith("Reboot to start it: systemctl reboot\r\n")
    assert ran.out.rindex("\x1b[?25h") > ran.out.rindex("\x1b[?25l")


async def test_a_terminal_that_cannot_move_its_cursor_gets_lines(lashd: FakeLashd, lashctl: Lashctl) -> None:
    walks(lashd)
    ran = await lashctl.on_terminal("upgrade", TERM="dumb")
    assert "\x1b" not in ran.out
    assert "verify: verify images" in ran.out


async def test_bars_without_colours(lashd: FakeLashd, lashctl: Lashctl) -> None:
    walks(lashd)
    ran = await lashctl.on_terminal("upgrade", NO_COLOR="1", columns=40, lines=6)
    assert ran.status == 0
    assert "\x1b[3" not in ran.out.replace("\x1b[?25", "")


async def test_json_tells_only_the_end(lashd: FakeLashd, lashctl: Lashctl) -> None:
    walks(lashd)
    ran = await lashctl("bind", "--json")
    assert ran.err == ""
    job = json.loads(ran.out)["job"]
    assert (job["result"], job["details"], job["path"]) == ("success", {"changed": True}, "/io/github/lashd1/job/7")


@pytest.mark.parametrize(
    ("arguments", "method", "options"),
    [
        (("upgrade",), "Upgrade", {}),
        (("upgrade", "--expected-digest", DIGEST), "Upgrade", {"expected-digest": DIGEST}),
        (("upgrade", "--reason", "patch day"), "Upgrade", {"reason": "patch day"}),
        (("bind",), "Bind", {}),
        (("bind", STAGED), "Bind", {"deployment": STAGED}),
        (("rollback",), "Rollback", {}),
        (("rollback", "--drop-staged"), "Rollback", {"drop-staged": True}),
        (("check",), "Check", {}),
        (("switch", "quay.io/edge/os:2"), "Switch", {"image": "quay.io/edge/os:2"}),
        (
            ("switch", "quay.io/edge/os", "--reboot", "window"),
            "Switch",
            {"image": "quay.io/edge/os", "reboot": "window"},
        ),
        (("plan",), "Plan", {"kind": "upgrade"}),
        (("plan", "bind", "--deployment", "booted"), "Plan", {"kind": "bind", "deployment": "booted"}),
    ],
)
async def test_what_is_asked_for(
    arguments: tuple[str, ...], method: str, options: dict[str, Any], lashd: FakeLashd, lashctl: Lashctl
) -> None:
    # The job has ended before its path is answered: all the news of it came too early.
    lashd.ends_with("success", changed=True)
    ran = await lashctl(*arguments)
    no_traceback(ran)
    assert ran.status == 0
    assert lashd.asked == [(method, {"initiator": "lashctl", **options}, False)]


async def test_a_person_may_be_asked_for_a_password(lashd: FakeLashd, lashctl: Lashctl) -> None:
    lashd.ends_with("success", changed=True)
    await lashctl.on_terminal("bind")
    assert lashd.asked[0][2] is True


@pytest.mark.parametrize("command", ["upgrade", "bind", "rollback", "plan", "check"])
async def test_nothing_to_do(command: str, lashd: FakeLashd, lashctl: Lashctl) -> None:
    lashd.ends_with("unchanged", changed=False)
    ran = await lashctl(command)
    assert ran.status == 77
    assert "Nothing to do: " in ran.out
    assert ran.err == ""
    ran = await lashctl(command, "--json")
    assert (ran.status, json.loads(ran.out)["job"]["result"]) == (77, "unchanged")


@pytest.mark.parametrize("name", ErrorName)
async def test_every_error_has_its_status(name: ErrorName, lashd: FakeLashd, lashctl: Lashctl) -> None:
    result = "cancelled" if name is ErrorName.CANCELLED else "failed"
    lashd.ends_with(result, (name.value, "What happened, and what to do."), changed=False, retryable=True)
    ran = await lashctl("bind", "--json")
    assert ran.status == ERRORS[name].exit_status
    assert ran.err.startswith("lashctl: What happened, and what to do.\n")
    document = json.loads(ran.out)
    assert document["error"]["name"] == name.value
    assert document["error"]["exit-status"] == ran.status
    assert document["job"]["error-name"] == name.value
    no_traceback(ran)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (("verify",), "'lashctl list' shows which."),
        (("verify", "booted"), "'lashctl list' shows which."),
        (("verify", "staged"), "'lashctl list --deployment staged' shows which."),
        (("bind",), "'lashctl list --deployment staged' shows which."),
        (("bind", "rollback"), "'lashctl list --deployment rollback' shows which."),
    ],
)
async def test_the_hint_names_the_deployment(argv, hint: str, lashd: FakeLashd, lashctl: Lashctl) -> None:
    lashd.ends_with("failed", (ErrorName.BOUND_IMAGE_MISSING.value, "1 of 1 is missing."), changed=False)
    ran = await lashctl(*argv)
    assert ran.err.splitlines()[-1] == f"hint: {hint}"


@pytest.mark.parametrize("name", [ErrorName.BUSY, ErrorName.NOT_AUTHORIZED, ErrorName.NOTHING_STAGED])
async def test_refused_before_there_is_a_job(name: ErrorName, lashd: FakeLashd, lashctl: Lashctl) -> None:
    def refuse(method: str, number: int) -> None:
        raise LashdError(name, "Not now.")

    lashd.on_start = refuse
    ran = await lashctl("upgrade", "--json")
    assert ran.status == ERRORS[name].exit_status
    assert "lashctl: Not now." in ran.err
    assert json.loads(ran.out) == {
        "error": {
            "name": name.value,
            "message": "Not now.",
            "retryable": ERRORS[name].retryable,
            "exit-status": ran.status,
        }
    }


async def test_an_error_of_a_later_lashd(lashd: FakeLashd, lashctl: Lashctl) -> None:
    lashd.ends_with("failed", ("SomethingNew", "It is something new."))
    ran = await lashctl("bind")
    assert ran.status == 76
    assert "It is something new." in ran.err
    lashd.ends_with("surprising")
    ran = await lashctl("bind")
    assert ran.status == 76
    no_traceback(ran)


async def test_a_plan_and_its_figures(lashd: FakeLashd, lashctl: Lashctl) -> None:
    figures = {"bytes-to-fetch": 48_100_000, "bytes-free": 10**9, "images": 3, "images-to-fetch": 1, "fits": True}
    fetch = [f"registry.example/web@{DIGEST} 48100000"]
    lashd.ends_with("unchanged", changed=False, fetch=fetch, deployment=STAGED, **figures)
    ran = await lashctl("plan")
    # A plan changes nothing, but there is something to do.
    assert ran.status == 0
    for part in ("To fetch: 48.1 MB", "registry.example/web@sha256:0123456789ab (48.1 MB)", "Free on disk: 1.0 GB"):
        assert part in ran.out
    lashd.ends_with("unchanged", changed=False, fetch=fetch, **figures | {"fits": False})
    ran = await lashctl("plan", "bind")
    assert ran.status == ERRORS[ErrorName.NO_SPACE].exit_status
    assert "does not fit" in ran.err
    lashd.ends_with("unchanged", changed=False, **figures | {"bytes-to-fetch": 0, "images-to-fetch": 0})
    assert (await lashctl("plan")).status == 77


async def test_what_is_newer(lashd: FakeLashd, lashctl: Lashctl) -> None:
    host = {"newer": True, "newest": f"sha256:{'2' * 64}", "newest-version": "42", "newest-bytes": 48_100_000}
    lashd.ends_with("unchanged", changed=False, deployment=STAGED, moved=[], unknown=[], **host)
    ran = await lashctl("check")
    assert ran.status == 0
    assert "There is a newer host image: version 42, sha256:222222222222, 48.1 MB" in ran.out
    assert "Newest" not in ran.out
    moved = ["registry.example/web:1"]
    lashd.ends_with("unchanged", changed=False, deployment=STAGED, newer=False, newest=DIGEST, moved=moved, unknown=[])
    ran = await lashctl("check")
    assert ran.status == 0
    assert "There is no newer host image." in ran.out
    assert "Moved: registry.example/web:1" in ran.out
    lashd.ends_with("unchanged", changed=False, deployment=STAGED, newer=False, newest=DIGEST, moved=[], unknown=[])
    assert (await lashctl("check")).status == 77


async def test_no_wait(lashd: FakeLashd, lashctl: Lashctl) -> None:
    ran = await lashctl("upgrade", "--no-wait")
    assert (ran.status, ran.out) == (0, "Started upgrade (job 7); 'lashctl jobs --follow 7' follows it.\n")
    ran = await lashctl("bind", "--no-wait", "--json")
    assert (json.loads(ran.out)["job"]["id"], json.loads(ran.out)["job"]["state"]) == (8, "running")


@pytest.mark.parametrize("arguments", [("upgrade", "--expected-digest", "sha256:12"), ("bind", "a\nb")])
async def test_arguments_that_cannot_be(arguments: tuple[str, ...], lashd: FakeLashd, lashctl: Lashctl) -> None:
    ran = await lashctl(*arguments)
    assert ran.status == 2
    assert ran.err.startswith("lashctl: ")
    assert not lashd.asked


async def test_following_a_job_of_somebody_else(lashd: FakeLashd, lashctl: Lashctl) -> None:
    number = lashd.new_job("bind", Stage="plan")
    process = await lashctl.begin("jobs", "--follow", str(number))
    await line_with(process, "plan:")
    lashd.end(number, "failed", ("NoSpace", "The disk is full."))
    assert (await finish(process)).status == ERRORS[ErrorName.NO_SPACE].exit_status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_interrupted(number: signal.Signals, status: int, lashd: FakeLashd, lashctl: Lashctl) -> None:
    process = await lashctl.begin("upgrade")
    await line_with(process, "upgrade (job 7)")
    process.send_signal(number)
    ran = await finish(process)
    assert ran.status == status
    assert "upgrade (job 7) goes on in the background" in ran.err
    assert "lashctl jobs --cancel 7" in ran.err
    assert lashd.jobs[7]["State"] == "running"
    no_traceback(ran)


async def test_ctrl_c_on_a_terminal(lashd: FakeLashd, lashctl: Lashctl) -> None:
    lashd.on_start = lambda method, number: lashd.change(number, Stage="pull")
    ran = await lashctl.on_terminal("upgrade", interrupt_at="fetch images")
    assert ran.status == 130
    assert "goes on in the background" in ran.out
    assert ran.out.rindex("\x1b[?25h") > ran.out.rindex("\x1b[?25l")
    no_traceback(ran)


async def test_ctrl_c_while_lashd_hangs(lashd: FakeLashd, lashctl: Lashctl) -> None:
    asked = asyncio.Event()
    lashd.connection.serve(lambda message: asked.set())
    process = await lashctl.begin("upgrade")
    await asyncio.wait_for(asked.wait(), 10)
    process.send_signal(signal.SIGINT)
    ran = await finish(process, 5)
    assert ran.status == 130
    assert "Stopped before lashd had answered" in ran.err
    no_traceback(ran)


async def test_lashd_dies_and_stays_away(lashd: FakeLashd, lashctl: Lashctl) -> None:
    process = await lashctl.begin("upgrade")
    await line_with(process, "upgrade (job 7)")
    await lashd.die()
    await line_with(process, "lashd has stopped; waiting for it to come back")
    ran = await finish(process)
    assert ran.status == 69
    assert "how that ended is not known" in ran.err
    assert "systemctl status lashd" in ran.err
    no_traceback(ran)


async def test_lashd_is_restarted_and_remembers(bus_address: str, lashd: FakeLashd, lashctl: Lashctl) -> None:
    from lashd.bus import library

    process = await lashctl.begin("upgrade")
    await line_with(process, "upgrade (job 7)")
    await lashd.die()
    await line_with(process, "lashd has stopped")
    again = FakeLashd(await library.connect(bus_address))
    await again.start()
    again.new_job("upgrade", 7)
    again.end(7, "success", changed=True)
    ran = await finish(process)
    assert (ran.status, ran.out.splitlines()[0]) == (0, "Done: upgrade (job 7).")
    await again.die()


async def test_another_job_under_the_same_number_is_not_ours(
    bus_address: str, lashd: FakeLashd, lashctl: Lashctl
) -> None:
    from lashd.bus import library

    process = await lashctl.begin("upgrade")
    await line_with(process, "upgrade (job 7)")
    await lashd.die()
    again = FakeLashd(await library.connect(bus_address))
    await again.start()
    again.new_job("upgrade", 7, Uuid="another")
    again.end(7, "success", changed=True)
    assert (await finish(process)).status == 69
    await again.die()


@pytest.mark.parametrize(
    ("argv", "method", "options"),
    [
        (["verify"], "Verify", {}),
        (["verify", "staged", "--deep"], "Verify", {"deployment": "staged", "deep": True}),
        (["collect", "--dry-run"], "Collect", {"dry-run": True}),
        (["discard", "--expected-digest", DIGEST], "Discard", {"expected-digest": DIGEST}),
        (["reboot", "--when", "window"], "Reboot", {"when": "window"}),
        (["reboot", "--cancel"], "Reboot", {"when": "never"}),
        (["upgrade", "--reboot", "when-ready"], "Upgrade", {"reboot": "when-ready"}),
        (["hold", "--reason", "not now"], "Hold", {"reason": "not now"}),
        (["release", DIGEST, "--reason", "gone"], "Release", {"expected-digest": DIGEST, "reason": "gone"}),
    ],
)  # fmt: skip
async def test_further_requests(lashd: FakeLashd, lashctl: Lashctl, argv, method, options) -> None:
    lashd.ends_with("success")
    ran = await lashctl(*argv)
    assert (ran.status, ran.err) == (0, "")
    assert [(method, options | {"initiator": "lashctl"}, False)] == lashd.asked


@pytest.mark.parametrize(
    ("argv", "details", "status", "says"),
    [
        (["verify"], {"images": 3}, 0, "Every image is as it was recorded."),
        (["collect"], {"images": 0, "bytes-freed": 0}, 77, "Nothing to do: everything in the store is needed."),
        (["collect", "--dry-run"], {"images": 1, "bytes-freed": 2_000_000, "removed": ["a.example/b:1"]}, 0, "2.0 MB"),
        (["discard"], {}, 77, "Nothing to do: nothing is staged."),
        (["reboot", "--cancel"], {"state": "nothing", "when": "never"}, 77, "Nothing to do: nobody has asked for"),
    ],
)
async def test_what_changed_nothing(lashd: FakeLashd, lashctl: Lashctl, argv, details, status, says) -> None:
    lashd.ends_with("unchanged", **details)
    ran = await lashctl(*argv)
    assert (ran.status, ran.err) == (status, "")
    assert says in ran.out


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ({"deployment": "a" * 64 + ".0"}, "Done: discard (job 7)."),
        ({"deployment": "a" * 64 + ".0", "given-up": True}, "is given up and will not be staged again."),
    ],
)
async def test_what_went(lashd: FakeLashd, lashctl: Lashctl, details: dict[str, Any], says: str) -> None:
    lashd.ends_with("success", **details)
    ran = await lashctl("discard")
    assert (ran.status, ran.err) == (0, "")
    assert says in ran.out


@pytest.mark.parametrize(
    ("argv", "details", "says"),
    [
        ((), {"state": "started", "when": "never"}, "The reboot has begun."),
        (("--when", "window"), {"state": "waiting", "when": "window"}, "'lashctl status' shows what it waits for."),
        (("--cancel",), {"state": "withdrawn", "when": "never"}, "The reboot is not asked for any more."),
        (("--cancel",), {"state": "withdrawn", "when": "ready"}, "any more; the settings want one all the same."),
        ((), {}, "Done: reboot (job 7)."),
    ],
)
async def test_what_became_of_a_reboot(lashd: FakeLashd, lashctl: Lashctl, argv, details, says) -> None:
    lashd.ends_with("success", **details)
    ran = await lashctl("reboot", *argv)
    assert (ran.status, ran.err) == (0, "")
    assert says in ran.out


async def test_a_reboot_is_not_asked_for_and_taken_back_at_once(lashd: FakeLashd, lashctl: Lashctl) -> None:
    assert (await lashctl("reboot", "--cancel", "--when", "now")).status == 2
    assert not lashd.asked


async def test_an_order_that_is_refused(lashd: FakeLashd, lashctl: Lashctl) -> None:
    lashd.refusal = LashdError(ErrorName.NOTHING_STAGED)
    ran = await lashctl("hold", "--json")
    assert ran.status == ERRORS[ErrorName.NOTHING_STAGED].exit_status
    assert json.loads(ran.out)["error"]["name"] == "NothingStaged"
    ran = await lashctl("release", "latest")
    assert ran.status == ERRORS[ErrorName.NOTHING_STAGED].exit_status
    assert "No deployment is staged" in ran.err
    ran = await lashctl("release")
    assert ran.status == 2
