# SPDX-License-Identifier: Apache-2.0
"""A prompt that ends because polkit goes, or lashd does; and what goes for whom then."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from lashd.bus import library
from tests.bus.conftest import bus_with_polkit, session
from tests.bus.test_service import daemon, owned
from tests.support.agent import agent
from tests.support.polkitd import ADMIN, Polkitd

ROOT = "/io/github/lashd1"


@pytest.fixture
def polkit() -> Iterator[Polkitd]:
    """One that may be killed."""
    with bus_with_polkit() as running:
        yield running


@pytest.fixture
def address(polkit: Polkitd) -> str:
    return polkit.address


async def test_polkit_goes_during_a_prompt_and_comes_back(door, polkit, caplog) -> None:
    async with session(polkit, ADMIN) as admin, agent(door.modules.library, polkit.address) as screen:
        await screen.look_after(admin.pid)
        asked = asyncio.create_task(admin.call("Upgrade", "a{sv}", {}, interactive=True))
        await screen.prompt()
        polkit.kill()
        try:
            assert await asked == "NotAuthorized"
            for _ in range(3):
                assert await admin.call("Check", "a{sv}", {}) == "NotAuthorized"
                assert "polkit, which decides this, cannot be asked on this host. Ask again as root" in admin.said
            # Root needs none.
            assert await door.call("Bind", "a{sv}", {}) == f"{ROOT}/job/1"
            assert [kind for kind, _options, _initiator in door.service.started] == ["bind"]
            said = [record.getMessage() for record in caplog.records if "only root may change" in record.getMessage()]
            assert len(said) == 2, "once for each reason"
        finally:
            polkit.start()
        assert await admin.call("Plan", "a{sv}", {}) == ""


@pytest.mark.parametrize("which", ["dbus_next", "dbus_fast"])
async def test_lashd_is_told_to_end_during_a_prompt(polkit, which) -> None:
    """The whole process: the prompt goes and the caller is told, before anything else is ended."""
    client = await library.connect(polkit.address)
    async with (
        daemon(polkit.address, which) as process,
        session(polkit, ADMIN) as admin,
        agent(library, polkit.address) as screen,
    ):
        await owned(client)
        await screen.look_after(admin.pid)
        asked = asyncio.create_task(admin.call("Upgrade", "a{sv}", {}, interactive=True))
        prompt = await screen.prompt()
        process.send_signal(signal.SIGTERM)
        assert await asked == "Disconnected"
        assert admin.said == "lashd is being stopped; ask again in a moment."
        assert await asyncio.wait_for(screen.cancelled.get(), 5) == prompt.cookie
        assert await asyncio.wait_for(process.wait(), 5) == 0
        assert b"Traceback" not in await process.stderr.read()
    await client.disconnect()
