# SPDX-License-Identifier: Apache-2.0
"""The daemon: settings, the running service, its objects on the bus, and a clean end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lashd
from lashd.bus.journal import notify, set_up_logging
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId, fields

if TYPE_CHECKING:
    from lashd.bus.dispatch import Dispatcher
    from lashd.bus.library import Connection, Message
    from lashd.bus.objects import Service

log = logging.getLogger(__name__)

# How long jobs have to end when the daemon is stopped (seconds); units/lashd.service allows a little more.
STOP_SECONDS = 50.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lashd until SIGTERM or SIGINT. Returns the exit status: 0 only for such an end."""
    options = _parser().parse_args(arguments)
    set_up_logging(logging.DEBUG if options.debug else logging.INFO)
    # Only what follows needs the D-Bus library, pydantic and the rest.
    from lashd.bus.library import BusError

    try:
        return asyncio.run(_run(options.settings, options.bus))
    except LashdError as error:
        broken = error.name is ErrorName.INVALID_ARGUMENT
        log.error("%s", error.message, extra=fields(MessageId.SETTINGS_BROKEN, error=error.name) if broken else None)
        notify(f"STATUS={' '.join(error.message.split())}")
        return error.exit_status
    except BusError as error:
        log.error("%s", error.message)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lashd", description="Binds application containers to the host image.")
    parser.add_argument("--version", action="version", version=f"lashd {lashd.__version__}")
    parser.add_argument("--settings", metavar="DIR", type=Path, nargs="+", help="read settings from here instead")
    parser.add_argument("--bus", metavar="ADDRESS", default="", help="serve on this bus instead of the system bus")
    parser.add_argument("--debug", action="store_true", help="log more")
    return parser


async def _run(directories: Sequence[Path] | None, address: str) -> int:
    from lashd.words.config import DIRECTORIES, load

    settings = load(directories or DIRECTORIES)
    from lashd.bus.unsupported import leave_word
    from lashd.running.observer import Observer
    from lashd.running.service import Service
    from lashd.things.host import find_host

    try:
        host = find_host(settings)
        await host.require()
    except LashdError as error:
        if error.name is ErrorName.UNSUPPORTED_HOST:
            leave_word(settings.paths.run, error.message)
        raise
    leave_word(settings.paths.run, "")
    service = Service(settings, host)
    async with Observer(service):
        await service.start()
        return await serve(service, address)


async def serve(service: Service, address: str = "") -> int:
    """Put `service` on the bus and stay there. Returns 0 after SIGTERM or SIGINT, 1 when the bus was lost.

    Raises BusError when the bus cannot be reached or another lashd owns the name.
    """
    from lashd.bus.library import SERVICE_LIMIT, connect

    connection = await connect(address, largest=SERVICE_LIMIT)
    try:
        dispatcher = await open_doors(connection, service)
        try:
            notify("READY=1")
            log.info("lashd %s is on the bus", lashd.__version__)
            told = await _until_told(connection)
            if not told:
                log.error("The connection to the bus was lost; lashd ends, so that systemd starts it anew")
            notify("STOPPING=1", "STATUS=Ending what is in progress.")
            # No prompt is answered, and no job begins, while the others are ended.
            dispatcher.stopping()
            # Jobs are ended while the bus still carries the news of it.
            return 0 if await _stopped(service) and told else 1
        finally:
            await dispatcher.stop()
    finally:
        await connection.disconnect()


async def open_doors(connection: Connection, service: Service) -> Dispatcher:
    """Export `service` on `connection` and own the name. Raises BusError when another process owns it."""
    from lashd.bus.authorise import Authority
    from lashd.bus.contract import NAME, ROOT
    from lashd.bus.dispatch import Dispatcher
    from lashd.bus.library import BUS, BUS_PATH, Match
    from lashd.bus.objects import Door
    from lashd.bus.tree import Tree

    tree = Tree(connection, ROOT)
    authority = Authority(connection)
    dispatcher = Dispatcher(connection, tree, authority.uid)
    dispatcher.stopping = authority.stop
    left = Match(sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arguments={2: ""})

    def caller_left(message: Message) -> None:
        if left.accepts(message):
            authority.forget(message.body[0])
            dispatcher.sender_gone(message.body[0])

    Door(tree, service, authority).open()
    dispatcher.start()
    connection.listen(caller_left)
    await connection.add_match(left)
    # The name comes last: whoever is started by it finds everything there.
    await connection.request_name(NAME)
    return dispatcher


async def _stopped(service: Service) -> bool:
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await service.stop()
    except TimeoutError:
        log.error("The jobs did not end within %g seconds; lashd ends without them", STOP_SECONDS)
        return False
    return True


async def _until_told(connection: Connection) -> bool:
    """True when a signal told us to end, false when the bus was lost."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    waits = [asyncio.create_task(told.wait()), asyncio.create_task(connection.lost())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return told.is_set()
    finally:
        for wait in waits:
            wait.cancel()
        with contextlib.suppress(NotImplementedError):
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


if __name__ == "__main__":
    sys.exit(main())
