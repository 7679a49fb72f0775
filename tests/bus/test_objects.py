# SPDX-License-Identifier: Apache-2.0
"""Jobs and objects on the bus: who may, what is told, and in which order."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from lashd.bus.objects import status_line
from lashd.running.jobs import Initiator, Job, Outcome
from lashd.words.errors import ErrorName, LashdError
from lashd.words.progress import ItemProgress, Stage, StageStarted
from tests.bus.conftest import NOBODY, run
from tests.bus.fake import BOOTED, STAGED, deployment, image

NAME = "io.github.lashd1"
ROOT = "/io/github/lashd1"
JOB = f"{ROOT}/job/1"


async def get(door: SimpleNamespace, path: str, interface: str, name: str) -> Any:
    arguments = [f"{NAME}.{interface}", name]
    return await door.call("Get", "ss", *arguments, path=path, interface="org.freedesktop.DBus.Properties")


class News:
    """Everything that the service says, as (path, member, body), until `done`."""

    def __init__(self, door: SimpleNamespace) -> None:
        self.door = door

    async def __aenter__(self) -> News:
        self.watch = await self.door.client.watch(self.door.Match(sender=NAME))
        self.heard: list[tuple[str, str, list[Any]]] = []
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.watch.close()

    async def until(self, member: str, count: int = 1) -> list[tuple[str, str, list[Any]]]:
        plain = self.door.modules.library.plain
        async with asyncio.timeout(10):
            while sum(heard[1] == member for heard in self.heard) < count:
                signal = await anext(self.watch)
                self.heard.append((signal.path, signal.member, plain(signal.body)))
        return self.heard

    def of(self, path: str) -> list[dict[str, Any]]:
        return [body[1] for where, member, body in self.heard if member == "PropertiesChanged" and where == path]


async def test_the_order_of_news(door) -> None:
    async with News(door) as news:
        assert await door.call("Upgrade", "a{sv}", {}) == JOB
        assert await get(door, ROOT, "Manager", "ActiveJob") == JOB
        door.service.outcome = LashdError(ErrorName.NO_SPACE)
        door.service.go_on.set()
        heard = await news.until("JobDone")
    members = [(member, path) for path, member, _body in heard]
    # The object is there before anything names it, and its own path announces nothing.
    added = members.index(("InterfacesAdded", ROOT))
    assert added < members.index(("JobNew", ROOT))
    assert added < next(i for i, (_p, m, body) in enumerate(heard) if m != "InterfacesAdded" and JOB in str(body))
    assert {path for member, path in members if member.startswith("Interfaces")} == {ROOT}
    # Error first, then State, then the Manager's word, then JobDone.
    assert "State" not in next(values for values in news.of(JOB) if "ErrorName" in values)
    assert news.of(JOB)[-1] == {"State": "done"}
    assert "State" not in next(values for values in news.of(ROOT) if "LastError" in values)
    assert news.of(ROOT)[-1] == {"State": "idle"}
    done = members.index(("JobDone", ROOT))
    assert done == len(members) - 1
    message = LashdError(ErrorName.NO_SPACE).message
    assert heard[done][2] == [1, JOB, "upgrade", "failed", "NoSpace", message]
    assert await get(door, JOB, "Job", "Details") == {"changed": False, "retryable": False}
    assert await get(door, ROOT, "Manager", "LastError") == ["NoSpace", message]


async def test_only_what_changed_is_told(door) -> None:
    await door.call("Upgrade", "a{sv}", {})
    job = door.service.jobs.get(1)
    await asyncio.sleep(0.05)
    async with News(door) as news:
        job.report(StageStarted(Stage.PULL, 100, 2))
        job.report(ItemProgress("quay.io/a", "fetching", 40, 100))
        await news.until("PropertiesChanged", 2)
    first, second = news.of(JOB)
    assert first == {"Stage": "pull", "BytesTotal": 100, "ItemsTotal": 2}
    assert second["Items"] == [["quay.io/a", "fetching", 40, 100]]
    assert second["BytesDone"] == 40
    assert "Stage" not in second
    assert "BytesTotal" not in second


async def test_a_job_tells_all_about_itself(door) -> None:
    options = {"initiator": door.Variant("s", "the test"), "reason": door.Variant("s", "because")}
    path = await door.call("Bind", "a{sv}", options | {"deployment": door.Variant("s", "booted")})
    all_of_it = await door.call("GetAll", "s", f"{NAME}.Job", path=path, interface="org.freedesktop.DBus.Properties")
    assert all_of_it["Initiator"] | {"unit": ""} == {"uid": 0, "unit": "", "name": "the test"}
    assert all_of_it["Options"] == {"initiator": "the test", "reason": "because", "deployment": "booted"}
    assert abs(all_of_it["Created"] - time.time()) < 60
    assert (all_of_it["Kind"], all_of_it["Cancellable"], all_of_it["Result"]) == ("bind", True, "")


async def test_joined_and_busy(door) -> None:
    first = await door.call("Upgrade", "a{sv}", {})
    assert await get(door, first, "Job", "Details") == {}
    assert await door.call("Upgrade", "a{sv}", {}) == first
    assert await get(door, first, "Job", "Details") == {"joined": True}
    with pytest.raises(door.BusError) as caught:
        await door.call("Rollback", "a{sv}", {})
    assert caught.value.name == f"{NAME}.Error.Busy"
    assert "Job 1 (upgrade" in caught.value.message


async def test_what_is_wrong_at_once_makes_no_job(door) -> None:
    with pytest.raises(door.BusError) as caught:
        await door.call("Bind", "a{sv}", {"deployment": door.Variant("s", "nowhere")})
    assert caught.value.name == f"{NAME}.Error.InvalidArgument"
    assert await door.call("ListJobs", "a{sv}", {}) == []


async def test_wait_early_and_late(door) -> None:
    path = await door.call("Upgrade", "a{sv}", {})
    short = {"timeout-ms": door.Variant("u", 50)}
    assert await door.call("Wait", "a{sv}", short, path=path, interface="Job") == ["running", "", ""]
    early = asyncio.create_task(door.call("Wait", "a{sv}", {}, path=path, interface="Job"))
    await asyncio.sleep(0.05)
    door.service.go_on.set()
    assert await early == ["success", "", ""]
    assert await door.call("Wait", "a{sv}", {}, path=path, interface="Job") == ["success", "", ""]
    assert await get(door, path, "Job", "Fraction") == 1.0


async def test_cancel(door) -> None:
    path = await door.call("Upgrade", "a{sv}", {})
    others = await run(
        *("busctl", "--address", door.address, "call", NAME, path, f"{NAME}.Job", "Cancel", "a{sv}", "0"), uid=NOBODY
    )
    assert "cancel-other" in others.stderr
    assert await door.call("Cancel", "a{sv}", {}, path=path, interface="Job") == []
    result, name, _message = await door.call("Wait", "a{sv}", {}, path=path, interface="Job")
    assert (result, name) == ("cancelled", "Cancelled")


async def test_what_cannot_be_cancelled(door) -> None:
    path = await door.call("Upgrade", "a{sv}", {})
    door.service.jobs.get(1).protect()
    with pytest.raises(door.BusError) as caught:
        await door.call("Cancel", "a{sv}", {}, path=path, interface="Job")
    assert caught.value.name == f"{NAME}.Error.NotCancellable"
    assert await get(door, path, "Job", "Cancellable") is False


async def test_ones_own_job(door) -> None:
    """A user may cancel what that user started (which polkit will one day allow)."""
    job, _joined = door.service.jobs.start("upgrade", never, Initiator(NOBODY), {})
    path = f"{ROOT}/job/{job.id}"
    theirs = await run(
        *("busctl", "--address", door.address, "call", NAME, path, f"{NAME}.Job", "Cancel", "a{sv}", "0"), uid=NOBODY
    )
    assert theirs.status == 0, theirs.stderr
    assert (await job.wait(5))[0] == "cancelled"


async def test_orders_are_done_when_they_are_answered(door) -> None:
    options = {"reason": door.Variant("s", "not now"), "expected-digest": door.Variant("s", "sha256:" + "1" * 64)}
    assert await door.call("Hold", "a{sv}", options) == []
    assert await get(door, ROOT, "Manager", "Gate") == "held"
    assert await door.call("Release", "a{sv}", options) == []
    assert await get(door, ROOT, "Manager", "Gate") == "released"
    kinds = [(kind, given["reason"], who.uid) for kind, given, who in door.service.started]
    assert kinds == [("hold", "not now", 0), ("release", "not now", 0)]
    door.service.broken = LashdError(ErrorName.HELD, "Somebody else holds it.")
    with pytest.raises(door.BusError) as caught:
        await door.call("Release", "a{sv}", options)
    assert (caught.value.name, caught.value.message) == (f"{NAME}.Error.Held", "Somebody else holds it.")


@pytest.mark.parametrize(
    ("method", "options", "actions"),
    [
        ("Upgrade", {"reboot": "window"}, "upgrade, reboot"),
        ("Upgrade", {"reboot": "no"}, "upgrade"),
        ("Rollback", {"drop-staged": True}, "rollback, discard"),
        ("Rollback", {"drop-staged": False}, "rollback"),
        ("Hold", {}, "hold"),
        ("Release", {}, "release"),
        ("Collect", {}, "collect"),
        ("Discard", {}, "discard"),
        ("Reboot", {}, "reboot"),
        ("Verify", {}, "verify"),
    ],
)
async def test_what_an_option_implies_needs_its_own_right(door, method, options, actions) -> None:
    call = ("busctl", "--address", door.address, "call", NAME, ROOT, f"{NAME}.Manager", method, "a{sv}")
    given = [f"{key} {'b' if isinstance(value, bool) else 's'} {str(value).lower()}" for key, value in options.items()]
    refused = await run(*call, str(len(given)), *" ".join(given).split(), uid=NOBODY)
    assert f"may not do this ({actions})" in refused.stderr
    assert door.service.started == []


async def test_switch_names_its_image_before_its_options(door) -> None:
    await door.call("Switch", "sa{sv}", "docker://quay.io/edge/os", {"reboot": door.Variant("s", "no")})
    ((kind, options, _),) = door.service.started
    assert (kind, options) == ("switch", {"image": "quay.io/edge/os:latest", "reboot": "no"})
    with pytest.raises(door.BusError) as caught:
        await door.call("Switch", "sa{sv}", "os:next", {})
    assert caught.value.name == f"{NAME}.Error.InvalidArgument"
    call = ("busctl", "--address", door.address, "call", NAME, ROOT, f"{NAME}.Manager", "Switch", "sa{sv}")
    refused = await run(*call, "quay.io/edge/os:1", "1", "reboot", "s", "window", uid=NOBODY)
    assert "may not do this (switch, reboot)" in refused.stderr
    assert len(door.service.started) == 1


async def test_the_last_shutdown(door) -> None:
    assert await get(door, ROOT, "Manager", "LastShutdown") == {}
    said = {"result": "held", "deployment": "x.0", "time": 17, "reasons": [("missing", "It is missing.")]}
    door.service.values |= {"LastShutdown": said, "NextTry": 99}
    door.service.tell()
    assert await get(door, ROOT, "Manager", "LastShutdown") == said | {"reasons": [["missing", "It is missing."]]}
    assert await get(door, ROOT, "Manager", "NextTry") == 99


async def never(job: Any) -> Outcome:
    await asyncio.Event().wait()
    return Outcome(False)


async def test_objects_come_and_go(door) -> None:
    path = door.modules.paths.deployment_path(STAGED)
    new_image = door.modules.paths.image_path("quay.io/edge/new:1")
    old_image = next(iter(door.modules.paths.image_path(row["normalised"]) for row in door.service.image_rows))
    async with News(door) as news:
        door.service.deployment_rows = [deployment(), deployment(STAGED, "staged", references=("quay.io/edge/new:1",))]
        door.service.image_rows = [image("quay.io/edge/new:1", used_by=(STAGED,))]
        door.service.tell()
        heard = await news.until("InterfacesRemoved")
        assert [(body[0], where) for where, member, body in heard if member == "InterfacesAdded"] == [
            (new_image, ROOT),
            (path, ROOT),
        ]
        assert heard[-1] == (ROOT, "InterfacesRemoved", [old_image, [f"{NAME}.BoundImage"]])
        assert news.of(ROOT)[0]["Staged"] == path
        assert await get(door, path, "Deployment", "BoundImages") == [new_image]
        assert await get(door, path, "Deployment", "Locked") is True
        assert await get(door, new_image, "BoundImage", "UsedBy") == [path]

        door.service.deployment_rows[1] = deployment(STAGED, "staged") | {"locked": False}
        news.heard.clear()
        door.service.tell()
        await news.until("PropertiesChanged", 2)
        assert news.of(path)[0] == {"Locked": False, "BoundImages": [old_image]}


async def test_what_a_property_names_can_be_read(door) -> None:
    """A deployment that appears without any news is there as soon as a property or a path names it."""
    door.service.deployment_rows.append(deployment(STAGED, "staged"))
    path = await get(door, ROOT, "Manager", "Staged")
    assert path in await door.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")
    other = f"{'ef' * 32}.0"
    door.service.deployment_rows.append(deployment(other, "rollback"))
    assert await get(door, door.modules.paths.deployment_path(other), "Deployment", "Roles") == ["rollback"]


async def test_a_finished_job_leaves(door) -> None:
    path = await door.call("Upgrade", "a{sv}", {})
    door.service.go_on.set()
    await door.call("Wait", "a{sv}", {}, path=path, interface="Job")
    async with News(door) as news:
        door.service.jobs._remove(door.service.jobs.get(1))
        heard = await news.until("InterfacesRemoved")
    assert heard[-1][2] == [path, [f"{NAME}.Job"]]
    with pytest.raises(door.BusError) as caught:
        await get(door, path, "Job", "State")
    assert caught.value.name.endswith("UnknownObject")


async def test_a_mistake_in_the_door_does_not_harm_a_job(door, caplog) -> None:
    door.service.properties = lambda: 1 / 0
    async with News(door) as news:
        path = await door.call("Upgrade", "a{sv}", {})
        heard = await news.until("JobNew")
    assert [member for _path, member, _body in heard] == ["InterfacesAdded", "JobNew"]
    door.service.go_on.set()
    assert await door.call("Wait", "a{sv}", {}, path=path, interface="Job") == ["success", "", ""]
    assert "ZeroDivisionError" in caplog.text


async def test_sync_brings_everything_up_to_date(door) -> None:
    door.service.deployment_rows = [deployment(BOOTED, "booted", "pinned")]
    assert await door.call("Sync") == 1
    path = door.modules.paths.deployment_path(BOOTED)
    assert await get(door, path, "Deployment", "Roles") == ["booted", "pinned"]


async def test_what_waits_ends_with_the_daemon(door) -> None:
    path = await door.call("Upgrade", "a{sv}", {})
    waiting = asyncio.create_task(door.call("Wait", "a{sv}", {}, path=path, interface="Job"))
    await asyncio.sleep(0.05)
    await door.service.stop()
    await door.dispatcher.stop()
    assert (await waiting)[0] == "cancelled"
    with pytest.raises(door.BusError) as caught:
        await door.call("Describe")
    assert "being stopped" in caught.value.message


@pytest.mark.parametrize(
    ("state", "blocked", "line"),
    [
        ("idle", [], "Nothing is staged."),
        ("ready", [], "The staged deployment is ready."),
        ("held", [("missing", "web\nis missing." + "x" * 500)], "The staged deployment is held: web is missing."),
    ],
)
def test_status_line(state: str, blocked: list[tuple[str, str]], line: str) -> None:
    told = status_line(None, state, blocked)
    assert told.startswith(line)
    assert len(told) <= 200
    assert "\n" not in told


async def test_who_reads_much_history_keeps_nobody_waiting(door) -> None:
    """500 long jobs are some tenths of a second of the loop: all that are asked for at once would stop everything."""
    at_once: list[int] = []
    reading = 0

    async def slow(options: Any) -> list[Any]:
        nonlocal reading
        reading += 1
        at_once.append(reading)
        await asyncio.sleep(0.05)
        reading -= 1
        return []

    door.service.get_history = slow
    asked = [asyncio.create_task(door.call("GetHistory", "a{sv}", {})) for _ in range(10)]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await door.call("Ping", interface="org.freedesktop.DBus.Peer")
    assert time.monotonic() - began < 0.2
    assert not all(one.done() for one in asked)
    assert await asyncio.gather(*asked) == [[]] * 10
    assert at_once == [1] * 10
    with pytest.raises(Exception, match="no option 'x'"):
        await door.call("GetHistory", "a{sv}", {"x": door.modules.library.Variant("s", "")})


async def test_the_history_is_answered_with_its_types(door) -> None:
    job = {"id": 3, "kind": "bind", "details": {"bytes-to-fetch": 5, "changed": True}, "options": {"reason": "why"}}
    ran = {"id": 1, "bound": [("quay.io/edge/agent:latest", "sha256:" + "1" * 64)], "this-boot": True, "from": -5}
    door.service.history = [job | {"ended": 2**40}, ran]
    given = {"kind": door.Variant("s", "jobs"), "limit": door.Variant("u", 9), "since": door.Variant("t", 2**40)}
    rows = await door.call("GetHistory", "a{sv}", given | {"job": door.Variant("t", 2**64 - 1)})
    assert rows == [job | {"ended": 2**40}, ran | {"from": 0, "bound": [list(pair) for pair in ran["bound"]]}]
    assert door.service.started[-1][1] == {"kind": "jobs", "limit": 9, "since": 2**40, "job": 2**64 - 1}
    for key, value in (
        ("limit", ("u", 501)),
        ("limit", ("u", 0)),
        ("job", ("t", 0)),
        ("kind", ("s", "x")),
        ("x", ("b", True)),
    ):
        with pytest.raises(door.BusError) as caught:
            await door.call("GetHistory", "a{sv}", {key: door.Variant(*value)})
        assert caught.value.name == f"{NAME}.Error.InvalidArgument"
        assert f"'{key}'" in caught.value.message


async def test_a_job_of_an_earlier_daemon_is_an_object_like_any_other(door) -> None:
    """Also when the history is read only after the door was opened."""
    jobs = door.service.jobs
    old = Job(1000, "upgrade", Initiator(NOBODY, "", "cockpit"), {"reason": "why"}, jobs, slot=True)
    old.recall("pull", "failed", "Cancelled", "It was interrupted.", {"interrupted": True, "retryable": True})
    jobs.recall(old)
    door.service.tell()
    path = f"{ROOT}/job/1000"
    waited = await door.call("Wait", "a{sv}", {}, path=path, interface="Job")
    assert waited == ["failed", "Cancelled", "It was interrupted."]
    assert await get(door, path, "Job", "Details") == {"interrupted": True, "retryable": True}
    assert await get(door, path, "Job", "State") == "done"
    assert await door.call("Cancel", "a{sv}", {}, path=path, interface="Job") == []
