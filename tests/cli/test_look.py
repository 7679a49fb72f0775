# SPDX-License-Identifier: Apache-2.0
"""status, list and jobs: what people and programs get to see."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import BOOTED, DIGEST, HEX, STAGED, FakeLashd, Lashctl, no_traceback


async def test_status_tells_everything_on_one_screen(full: FakeLashd, lashctl: Lashctl) -> None:
    full.new_job("bind", Stage="pull", Fraction=0.25, BytesDone=12_000_000, BytesTotal=48_000_000, ItemsTotal=2)
    ran = await lashctl("status")
    assert (ran.status, ran.err) == (0, "")
    for part in (
        *("Host: ostree", "State: held", "Gate: held", "Staged: registry.example/os:1", "● Booted:", "Rollback:"),
        *("Version: 42 (2026-09-21 14:13:20 UTC)", "Digest: sha256:0123456789ab\n", "Images: 1 of 2 present"),
        *("held: the next boot does not start it", "Images: none bound", "db.container is not in the store."),
        "Missing: docker.io/library/postgres:16 (db.container): docker.io does not answer.",
        "Job: 7 bind, pull, 25%, 12.0 of 48.0 MB, 0 of 2 done, since 2026-09-21",
        "What to do: 'lashctl bind' fetches what is missing now; 'lashctl release sha256:0123456789ab' lets it",
    ):
        assert part in ran.out
    assert ran.out.count("docker.io does not answer.") == 1
    assert ran.out.index("Staged:") < ran.out.index("Booted:") < ran.out.index("Rollback:")
    assert HEX not in ran.out
    assert "\x1b" not in ran.out
    assert all(line == line.rstrip() for line in ran.out.splitlines())


async def test_status_tells_why_an_update_did_not_arrive(full: FakeLashd, lashctl: Lashctl) -> None:
    document = json.loads(full.describe()) | {"nextTry": 1_790_000_100}
    reasons = [{"code": "missing", "message": "db.container is missing."}]
    shutdown = {"result": "held", "deployment": STAGED, "digest": DIGEST, "boot": "x", "time": 1_790_000_000}
    full.document = json.dumps(document | {"lastShutdown": shutdown | {"reasons": reasons}})
    ran = await lashctl("status")
    assert "Next try: 2026-09-21 14:15:00 UTC" in ran.out
    told = " ".join(ran.out.split("Last shutdown:")[1].split())
    assert told.startswith("it held cccccccccccc")
    assert "(2026-09-21 14:13:20 UTC)" in told
    assert "db.container is missing." in told
    # It was not held after all, or nobody knows.
    blocked = [{"code": "gate-ignored", "message": "It runs all the same."}]
    full.document = json.dumps(document | {"lastShutdown": shutdown | {"reasons": reasons}, "blockedBy": blocked})
    assert "came up in what it ran before" not in (await lashctl("status")).out
    for code in ("gate-not-finished", "gate-failed"):
        told_so = shutdown | {"reasons": [{"code": code, "message": "It was ended."}]}
        full.document = json.dumps(document | {"lastShutdown": told_so})
        ran = await lashctl("status")
        assert "Last shutdown: the gate did not come to its end" in ran.out
        assert "it held" not in ran.out
    full.document = json.dumps(document | {"nextTry": 0, "lastShutdown": shutdown | {"result": "released"}})
    ran = await lashctl("status")
    assert "Last shutdown" not in ran.out
    assert "Next try" not in ran.out


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ({"when": "never"}, ""),
        (
            {"when": "window", "asked-by": "ann\x1b", "asked-uid": 1000, "asked-at": 1_790_000_000}
            | {"next-window": 1_790_003_600},
            r"Reboot: wanted by ann\x1b (user 1000) at 2026-09-21 14:13:20 UTC, "
            "waits for its window, which opens at 2026-09-21 15:13:20 UTC",
        ),
        (
            {"when": "ready", "asked-by": "", "asked-uid": 0, "asked-at": 1_790_000_000},
            "Reboot: wanted by somebody (user 0) at 2026-09-21 14:13:20 UTC, waits until everything is ready",
        ),
        ({"when": "ready", "asked-uid": -1}, "Reboot: wanted by the settings, waits until everything is ready"),
        ({"when": "ready", "started": True}, "Reboot: it has begun"),
        ({"when": ["odd"], "asked-at": "x"}, ""),
    ],
)
async def test_status_tells_which_reboot_is_wanted(
    wanted: dict[str, object], line: str, full: FakeLashd, lashctl: Lashctl
) -> None:
    document = json.loads(full.describe())
    full.document = json.dumps(document | {"reboot": wanted})
    out = " ".join((await lashctl("status")).out.split())
    assert line in out
    assert ("Reboot:" in out) == bool(line)
    # There is nothing that a reboot by the settings could be for.
    full.document = json.dumps(document | {"reboot": wanted, "deployments": document["deployments"][1:]})
    out = " ".join((await lashctl("status")).out.split())
    assert ("Reboot:" in out) == (bool(line) and "by the settings" not in line)


async def test_status_json_is_the_document_verbatim(full: FakeLashd, lashctl: Lashctl) -> None:
    full.document = '{"b": 2, "schema": 1, "name": "Schiff für Äpfel", "digest": "' + DIGEST + '"}'
    for arguments in (("status", "--json"), ("--json", "status")):
        ran = await lashctl(*arguments, PYTHONIOENCODING="ascii")
        assert ran.out == full.document + "\n"
        assert ran.status == 0


@pytest.mark.parametrize("document", ["", "nonsense", "[1]", "null", "[" * 100_000])
async def test_status_that_is_no_document(document: str, full: FakeLashd, lashctl: Lashctl) -> None:
    full.document = document or " "
    for arguments in (("status", "--json"), ("status",)):
        ran = await lashctl(*arguments)
        assert ran.status == 76
        assert "does not understand" in ran.err
        no_traceback(ran)


async def test_status_of_a_released_deployment(full: FakeLashd, lashctl: Lashctl) -> None:
    full.properties |= {"Gate": "released", "State": "ready", "BlockedBy": [], "LastError": ("", "")}
    ran = await lashctl("status")
    assert "ready: the next boot starts it" in ran.out
    assert "Waiting for" not in ran.out
    assert "Last error" not in ran.out


async def test_reading_needs_no_root(full: FakeLashd, lashctl: Lashctl) -> None:
    for command in ("status", "list", "jobs"):
        assert (await lashctl(command, user=65534)).status == 0


async def test_list_of_the_booted_deployment(full: FakeLashd, lashctl: Lashctl) -> None:
    ran = await lashctl("list")
    assert ran.out.splitlines()[0].split() == ["UNIT", "IMAGE", "STATE", "DIGEST", "SIZE"]
    assert "web.container" in ran.out
    assert "48.1 MB" in ran.out
    assert "db.container" not in ran.out
    assert (await lashctl("list", "--deployment", STAGED)).out.count("db.container") >= 1


async def test_list_tells_nothing_is_staged_from_nothing_is_bound(full: FakeLashd, lashctl: Lashctl) -> None:
    full.bound = []
    for which in ("staged", "rollback", "pinned"):
        for row in full.deployments:
            row["roles"] = []
        ran = await lashctl("list", "--deployment", which)
        said = {"staged": "Nothing is staged.", "pinned": "No deployment is pinned."}
        assert ran.status == 0
        assert ran.out.strip() == said.get(which, "There is no deployment to roll back to.")
        full.deployments[0]["roles"] = [which]
        assert (await lashctl("list", "--deployment", which)).out.strip() == "No image is bound."
    assert (await lashctl("list", "--deployment", "staged", "--json")).out.strip() == "[]"


async def test_list_of_all_says_whose_and_why_not(full: FakeLashd, lashctl: Lashctl) -> None:
    ran = await lashctl("list", "--deployment", "all")
    lines = ran.out.splitlines()
    assert lines[0].split()[0] == "DEPLOYMENT"
    assert any(line.startswith("booted") and "present" in line for line in lines)
    assert any(line.startswith("staged") and "missing" in line and "pull-always" in line for line in lines)
    assert "pull-always: the unit pulls its image at every start" in ran.out
    assert "db.container: docker.io does not answer." in ran.out


async def test_list_json_has_whole_digests(full: FakeLashd, lashctl: Lashctl) -> None:
    ran = await lashctl("list", "--deployment", "all", "--json")
    rows = json.loads(ran.out)
    assert [row["unit"] for row in rows] == ["web.container", "web.container", "db.container"]
    assert rows[0]["wanted-digest"] == DIGEST
    assert rows[2]["use-problems"] == ["pull-always"]
    assert rows[0]["deployment"] == BOOTED
    assert json.loads((await lashctl("list", "--deployment", "rollback", "--json")).out) == []


@pytest.mark.parametrize("columns", [30, 66, 88, 110, 200])
async def test_no_line_is_wider_than_the_terminal(columns: int, full: FakeLashd, lashctl: Lashctl) -> None:
    for arguments in (("list", "--deployment", "all"), ("status",), ("jobs",)):
        ran = await lashctl.on_terminal(*arguments, columns=columns, NO_COLOR="1")
        assert ran.status == 0
        assert max(map(len, ran.out.splitlines())) <= columns
        assert "\x1b" not in ran.out


async def test_colours_on_a_terminal_only(full: FakeLashd, lashctl: Lashctl) -> None:
    assert "\x1b[31m" in (await lashctl.on_terminal("list", "--deployment", "all")).out
    assert "\x1b" not in (await lashctl.on_terminal("list", "--deployment", "all", NO_COLOR="1")).out
    assert "\x1b" not in (await lashctl.on_terminal("list", "--deployment", "all", TERM="dumb")).out
    assert "\x1b" not in (await lashctl("list", "--deployment", "all", FORCE_COLOR="1", CLICOLOR_FORCE="1")).out


async def test_names_from_elsewhere_do_not_steer_the_terminal(full: FakeLashd, lashctl: Lashctl) -> None:
    evil = "a\x1b]0;gone\x07\n[red]b[/red]\u202e:smile:"
    full.bound[0] |= {"unit": evil, "normalised": evil, "state": evil, "use-problems": [evil], "error-message": evil}
    full.deployments[0] |= {"image": evil, "version": evil}
    full.properties |= {"BlockedBy": [(evil, evil)], "LastError": (evil, evil)}
    for arguments in (("list",), ("status",), ("list", "--deployment", "all")):
        ran = await lashctl.on_terminal(*arguments, columns=200, NO_COLOR="1")
        assert ran.status == 0
        assert not {"\x1b", "\x07", "\u202e"} & set(ran.out)
        assert "[red]b[/red]" in ran.out
        assert ":smile:" in ran.out
    assert json.loads((await lashctl("list", "--json")).out)[0]["unit"] == evil


async def test_a_locale_without_unicode(full: FakeLashd, lashctl: Lashctl) -> None:
    for arguments in (("status",), ("list",)):
        ran = await lashctl(*arguments, PYTHONIOENCODING="ascii")
        assert ran.status == 0
        assert ran.out.isascii()
        assert "?" not in ran.out
    assert "* Booted" in (await lashctl("status", PYTHONIOENCODING="ascii")).out


async def test_what_the_locale_lacks_does_not_end_lashctl(full: FakeLashd, lashctl: Lashctl) -> None:
    full.bound[0] |= {"unit": "größe.container"}
    ran = await lashctl("list", PYTHONIOENCODING="ascii")
    assert ran.status == 0
    assert "gr??e.container" in ran.out
    assert json.loads((await lashctl("list", "--json", PYTHONIOENCODING="ascii")).out)[0]["unit"] == "größe.container"


async def test_jobs_are_listed_and_shown(lashd: FakeLashd, lashctl: Lashctl) -> None:
    assert "No job is known" in (await lashctl("jobs")).out
    lashd.new_job("upgrade", Stage="pull", Fraction=0.5, Options={"reason": "patch day"})
    lashd.new_job("bind")
    lashd.end(8, "failed", ("NoSpace", "The disk is full."), changed=False)
    ran = await lashctl("jobs")
    assert ran.out.splitlines()[0].split() == ["ID", "KIND", "STATE", "RESULT", "CREATED", "WHAT"]
    assert "upgrade" in ran.out
    ran = await lashctl("jobs", "8")
    assert "Error: NoSpace: The disk is full." in ran.out
    assert ran.status == 0
    rows = json.loads((await lashctl("jobs", "--json")).out)
    assert [(row["id"], row["kind"], row["state"]) for row in rows] == [(7, "upgrade", "running"), (8, "bind", "done")]
    job = json.loads((await lashctl("jobs", "7", "--json")).out)["job"]
    assert (job["stage"], job["fraction"], job["options"]) == ("pull", 0.5, {"reason": "patch day"})


async def test_a_job_that_is_not_there(lashd: FakeLashd, lashctl: Lashctl) -> None:
    for arguments in (("jobs", "99"), ("jobs", "--follow", "99"), ("jobs", "--cancel", "99")):
        ran = await lashctl(*arguments)
        assert ran.status == 2
        assert "There is no job 99." in ran.err
        no_traceback(ran)


async def test_cancel(lashd: FakeLashd, lashctl: Lashctl) -> None:
    number = lashd.new_job("bind")
    lashd.on_cancel = lambda number: lashd.change(number, State="cancelling")
    ran = await lashctl("jobs", "--cancel", str(number))
    assert (ran.status, ran.out) == (0, "Cancelling job 7; what was fetched is kept.\n")
    assert lashd.jobs[number]["State"] == "cancelling"
    lashd.end(number, "cancelled", ("Cancelled", "The operation was cancelled."))
    ran = await lashctl("jobs", "--cancel", str(number), "--json")
    assert ran.status == 77
    assert json.loads(ran.out)["job"]["result"] == "cancelled"
