# SPDX-License-Identifier: Apache-2.0
"""Who may change something, by the real polkitd on a private bus: allowed, refused, or asked for a password."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lashd.running.jobs import Initiator, Job, Outcome
from tests.bus.conftest import bus_with_polkit, run, session
from tests.support.agent import Agent, agent
from tests.support.caller import Caller
from tests.support.polkitd import ADMIN, OTHER, Polkitd

ROOT = "/io/github/lashd1"
JOB = "io.github.lashd1.Job"
PASSWORD = "InteractiveAuthorizationRequired"


@pytest.fixture(scope="module")
def polkit() -> Iterator[Polkitd]:
    with bus_with_polkit() as running:
        yield running


@pytest.fixture(scope="module")
def address(polkit: Polkitd) -> str:
    return polkit.address


@pytest.fixture
async def admin(door: SimpleNamespace, polkit: Polkitd) -> AsyncIterator[Caller]:
    """Somebody at the host's own screen and keyboard."""
    async with session(polkit, ADMIN) as process:
        yield process


@pytest.fixture
async def other(door: SimpleNamespace, polkit: Polkitd) -> AsyncIterator[Caller]:
    """Somebody without a session, who may nothing."""
    async with session(polkit, OTHER) as process:
        yield process


@pytest.fixture
async def screen(door: SimpleNamespace, polkit: Polkitd, admin: Caller) -> AsyncIterator[Agent]:
    """Where `admin` is asked for a password."""
    async with agent(door.modules.library, polkit.address) as made:
        await made.look_after(admin.pid)
        yield made


def kinds(door: SimpleNamespace) -> list[str]:
    return [kind for kind, _options, _initiator in door.service.started]


async def until(call: Callable[[], Awaitable[str]], outcome: str) -> None:
    """Call until it goes like this: polkitd reads a rule some moments after it was written."""
    async with asyncio.timeout(5):
        while True:
            if await call() == outcome:
                return
            await asyncio.sleep(0.05)


def forbid(polkit: Polkitd, action: str) -> Path:
    script = f'if (action.id == "io.github.lashd1.{action}") return polkit.Result.NO;'
    return polkit.add_rule("10-never", f"polkit.addRule(function(action, subject) {{ {script} }});")


async def test_allowed_refused_challenged(door, polkit, admin, other, screen) -> None:
    assert await admin.call("Check", "a{sv}", {}) == ""
    assert await admin.call("Upgrade", "a{sv}", {}) == PASSWORD
    assert "only with an administrator's password" in admin.said
    assert screen.shown == [], "nobody is asked without the caller's leave"
    assert await other.call("Check", "a{sv}", {}) == PASSWORD
    # It may be asked, and there is nobody to ask.
    assert await other.call("Check", "a{sv}", {}, interactive=True) == "NotAuthorized"
    assert "no polkit agent" in other.said
    never = forbid(polkit, "bind")
    try:
        await until(lambda: admin.call("Bind", "a{sv}", {}), "NotAuthorized")
        assert "polkit's rules on this host do not allow it" in admin.said
        assert await admin.call("Bind", "a{sv}", {}, interactive=True) == "NotAuthorized"
        assert screen.shown == []
    finally:
        never.unlink()
    assert kinds(door) == ["check"]


async def test_a_password_and_for_what_it_counts(door, polkit, admin, screen) -> None:
    digest = "sha256:" + "7" * 64
    given = {"expected-digest": ["variant", "s", digest], "initiator": ["variant", "s", "store"]}
    asked = asyncio.create_task(admin.call("Upgrade", "a{sv}", given, interactive=True))
    prompt = await screen.prompt()
    assert prompt.action == "io.github.lashd1.upgrade"
    assert prompt.message == (
        f"Authentication is required to upgrade this host (upgrade; digest: {digest}; "
        f"asked for by user {ADMIN} as store)"
    )
    assert door.service.started == [], "nothing is looked at and no slot taken while somebody is asked"
    await screen.give(prompt)
    assert await asked == ""
    assert door.service.started[0][2].uid == ADMIN
    # It is kept for this process and this action, and for no other.
    assert await admin.call("Upgrade", "a{sv}", given) == ""
    assert await admin.call("Bind", "a{sv}", {}) == PASSWORD
    async with session(polkit, ADMIN) as second:
        assert await second.call("Upgrade", "a{sv}", given) == PASSWORD
    door.service.go_on.set()
    image = "quay.io/edge/os:next"
    for _ in range(2):
        asked = asyncio.create_task(admin.call("Switch", "sa{sv}", image, {}, interactive=True))
        prompt = await screen.prompt()
        assert f"follow the image {image} " in prompt.message
        await screen.give(prompt)
        assert await asked == ""
    # Who declines, or types something wrong, has not.
    asked = asyncio.create_task(admin.call("Hold", "a{sv}", {}, interactive=True))
    screen.dismiss(await screen.prompt())
    assert await asked == "NotAuthorized"
    assert "no administrator's password was given" in admin.said
    assert "hold" not in kinds(door)


async def test_what_an_option_implies_is_asked_for_as_well(door, polkit, admin, screen) -> None:
    given = {"reboot": ["variant", "s", "when-ready"]}
    asked = asyncio.create_task(admin.call("Upgrade", "a{sv}", given, interactive=True))
    await screen.give(await screen.prompt())
    prompt = await screen.prompt()
    assert prompt.action == "io.github.lashd1.reboot"
    assert prompt.message.startswith("Authentication is required to reboot this host (upgrade, reboot when-ready; ")
    assert door.service.started == []
    screen.dismiss(prompt)
    assert await asked == "NotAuthorized"
    assert "(upgrade, reboot)" in admin.said
    # What is forbidden anyway is not asked for.
    never = forbid(polkit, "discard")
    try:
        await until(lambda: admin.call("Discard", "a{sv}", {}), "NotAuthorized")
        drop = {"drop-staged": ["variant", "b", True]}
        assert await admin.call("Rollback", "a{sv}", drop, interactive=True) == "NotAuthorized"
        assert len(screen.shown) == 2
    finally:
        never.unlink()
    assert door.service.started == []


async def test_root_of_a_user_namespace_is_not_root(door) -> None:
    """As in a container: the bus, and so lashd, sees who that is outside."""
    call = [
        "busctl",
        "--address",
        door.address,
        "--allow-interactive-authorization=no",
        "call",
        "io.github.lashd1",
        ROOT,
    ]
    upgrade = ["io.github.lashd1.Manager", "Upgrade", "a{sv}", "0"]
    namespace = ["unshare", "--user", "--map-root-user", "--"]
    assert (await run(*namespace, "id", "-u", uid=OTHER)).stdout == "0\n"
    result = await run(*namespace, *call, *upgrade, uid=OTHER)
    assert f"User {OTHER} may do this (upgrade) only with" in result.stderr
    assert door.service.started == []
    # While the machine's own root is who it is in there as well.
    result = await run(*namespace, *call, *upgrade)
    assert result.status == 0, result.stderr


async def test_a_rule_counts_at_once(door, polkit, other) -> None:
    rule = (
        'polkit.addRule(function(action, subject) { if (action.id.indexOf("io.github.lashd1.") == 0 && '
        'subject.user == "nobody") return polkit.Result.YES; });'
    )
    assert await other.call("Collect", "a{sv}", {}) == PASSWORD
    path = polkit.add_rule("50-other", rule)
    try:
        await until(lambda: other.call("Collect", "a{sv}", {}), "")
        assert await other.call("Release", "a{sv}", {}) == ""
    finally:
        path.unlink()
    await until(lambda: other.call("Release", "a{sv}", {}), PASSWORD)


async def test_a_prompt_that_nobody_answers(door, admin, screen, monkeypatch) -> None:
    assert door.modules.authorise.PROMPT_SECONDS < 25, "most clients wait no longer"
    monkeypatch.setattr(door.modules.authorise, "PROMPT_SECONDS", 1.0)
    started = time.monotonic()
    asked = asyncio.create_task(admin.call("Upgrade", "a{sv}", {}, interactive=True))
    prompt = await screen.prompt()
    # The slot is free meanwhile.
    assert await door.call("Bind", "a{sv}", {}) == f"{ROOT}/job/1"
    assert await asked == "NotAuthorized"
    assert 0.9 < time.monotonic() - started < 5
    assert "nobody gave an administrator's password within 1 seconds" in admin.said
    assert await asyncio.wait_for(screen.cancelled.get(), 5) == prompt.cookie
    assert kinds(door) == ["bind"]


async def test_a_caller_that_leaves_during_its_prompt(door, admin, screen) -> None:
    asked = asyncio.create_task(admin.call("Upgrade", "a{sv}", {}, interactive=True))
    prompt = await screen.prompt()
    assert door.dispatcher.in_progress == 1
    await admin.leave()
    assert await asyncio.wait_for(screen.cancelled.get(), 5) == prompt.cookie
    async with asyncio.timeout(5):
        await asyncio.gather(*door.dispatcher._tasks, return_exceptions=True)
    assert door.service.started == []
    asked.cancel()


async def test_many_prompts_of_one_caller(door, admin, screen) -> None:
    """As many as one caller may have calls in progress, and each is taken back when it leaves."""
    most = door.modules.dispatch.PER_SENDER
    asked = [asyncio.create_task(admin.call("Upgrade", "a{sv}", {}, interactive=True)) for _ in range(most + 1)]
    cookies = {(await screen.prompt()).cookie for _ in range(most)}
    done, _waiting = await asyncio.wait(asked, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == ["LimitsExceeded"]
    # Nobody else waits for that.
    assert await door.call("Bind", "a{sv}", {}) == f"{ROOT}/job/1"
    await admin.leave()
    assert {await asyncio.wait_for(screen.cancelled.get(), 5) for _ in range(most)} == cookies
    async with asyncio.timeout(5):
        await asyncio.gather(*door.dispatcher._tasks, return_exceptions=True)
    assert kinds(door) == ["bind"]
    for task in asked:
        task.cancel()


async def test_lashd_ends_during_a_prompt(door, admin, screen) -> None:
    asked = asyncio.create_task(admin.call("Upgrade", "a{sv}", {}, interactive=True))
    prompt = await screen.prompt()
    door.dispatcher.stopping()
    assert await asked == "Disconnected"
    assert await asyncio.wait_for(screen.cancelled.get(), 5) == prompt.cookie
    # From now on nobody begins anything that would have to be ended at once.
    with pytest.raises(door.BusError, match="being stopped"):
        await door.call("Upgrade", "a{sv}", {})
    assert door.service.started == []


async def test_two_prompts_at_once(door, polkit, admin, screen) -> None:
    async with session(polkit, ADMIN) as second:
        await screen.look_after(second.pid)
        upgrade = asyncio.create_task(admin.call("Upgrade", "a{sv}", {}, interactive=True))
        first_prompt = await screen.prompt()
        bind = asyncio.create_task(second.call("Bind", "a{sv}", {}, interactive=True))
        second_prompt = await screen.prompt()
        assert (first_prompt.action[-4:], second_prompt.action[-4:]) == ("rade", "bind")
        await screen.give(second_prompt)
        assert await bind == ""
        await screen.give(first_prompt)
        # How things stand is looked at after the prompt, and by then they had changed.
        assert await upgrade == "Busy"
        assert f"Job 1 (bind, asked for by user {ADMIN})" in admin.said


async def test_cancelling(door, polkit, admin, other, screen) -> None:
    async def never(job: Job) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    own, _joined = door.service.jobs.start("verify", never, Initiator(OTHER), {}, slot=False)
    assert await other.call("Cancel", "a{sv}", {}, path=f"{ROOT}/job/{own.id}", interface=JOB) == ""
    await own.ended()
    theirs, _joined = door.service.jobs.start("upgrade", never, Initiator(OTHER), {})
    path = f"{ROOT}/job/{theirs.id}"
    assert await admin.call("Cancel", "a{sv}", {}, path=path, interface=JOB) == PASSWORD
    asked = asyncio.create_task(admin.call("Cancel", "a{sv}", {}, path=path, interface=JOB, interactive=True))
    prompt = await screen.prompt()
    assert f"(cancel job {theirs.id}, upgrade of user {OTHER}; " in prompt.message
    assert theirs.active
    await screen.give(prompt)
    assert await asked == ""
    await theirs.ended()
    assert theirs.result == "cancelled"


async def test_what_a_caller_says_cannot_be_mistaken_for_anything_else(door, admin, screen) -> None:
    """$(keys), markup, other scripts, and so much that nothing else would be seen."""
    evil = "<b>me</b> $(digest)); user 0 \\ & שלום '`" + "x" * 400 + "end"
    given = {"initiator": ["variant", "s", evil]}
    asked = asyncio.create_task(admin.call("Discard", "a{sv}", given, interactive=True))
    prompt = await screen.prompt()
    assert prompt.message.isascii()
    assert len(prompt.message) < 400
    told = prompt.message.partition("asked for by ")[2]
    assert told.startswith(f"user {ADMIN} as ?b?me?/b? ??digest??? user 0 ? ? ???? ??xxx")
    assert told.endswith("xxxend)")
    assert "digest: -;" in prompt.message
    screen.dismiss(prompt)
    assert await asked == "NotAuthorized"


async def test_polkit_that_says_nothing(door, polkit, admin, monkeypatch) -> None:
    monkeypatch.setattr(door.modules.authorise, "PROMPT_SECONDS", 0.5)
    polkit.freeze()
    try:
        assert await admin.call("Check", "a{sv}", {}) == "NotAuthorized"
        assert "polkit did not answer within 0.5 seconds" in admin.said
        assert await door.call("Check", "a{sv}", {})
    finally:
        polkit.thaw()
    assert kinds(door) == ["check"]
