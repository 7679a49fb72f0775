# SPDX-License-Identifier: Apache-2.0
"""The daemon: settings, the running service, its objects on the bus, and a clean end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lashd
from lashd.bus.journal import notify, set_up_logging
from lashd.bus.life import End, Reload, Rest, about_to_begin_anew, beat, leave
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId, fields

if TYPE_CHECKING:
    from lashd.bus.dispatch import Dispatcher
    from lashd.bus.library import Connection, Message
    from lashd.bus.objects import Service

log = logging.getLogger(__name__)

# How long jobs have to end when the daemon is stopped (seconds); units/lashd.service allows a little more.
STOP_SECONDS = 50.0

# The exit status when nothing was to do, and something is now that the daemon has begun to go (units/lashd.service).
AGAIN = 75
# `serve` answers it, and no process ends with it: the same process begins anew, with other settings.
ANEW = -1

_PATH_UNIT = "lashd-wake.path"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lashd until SIGTERM or SIGINT, or until it has nothing to do. Returns the exit status."""
    options = _parser().parse_args(arguments)
    # Says where a loop stood still when systemd ends it for that.
    faulthandler.enable()
    set_up_logging(logging.DEBUG if options.debug else logging.INFO)
    # Only what follows needs the D-Bus library, pydantic and the rest.
    from lashd.bus.library import BusError

    try:
        status = asyncio.run(_run(options.settings, options.bus))
    except LashdError as error:
        broken = error.name is ErrorName.INVALID_ARGUMENT
        log.error("%s", error.message, extra=fields(MessageId.SETTINGS_BROKEN, error=error.name) if broken else None)
        notify(f"STATUS={' '.join(error.message.split())}")
        return error.exit_status
    except BusError as error:
        log.error("%s", error.message)
        return 1
    if status == ANEW:
        os.execv(sys.executable, sys.orig_argv)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lashd", description="Binds application containers to the host image.")
    parser.add_argument("--version", action="version", version=f"lashd {lashd.__version__}")
    parser.add_argument("--settings", metavar="DIR", type=Path, nargs="+", help="read settings from here instead")
    parser.add_argument("--bus", metavar="ADDRESS", default="", help="serve on this bus instead of the system bus")
    parser.add_argument("--debug", action="store_true", help="log more")
    return parser


async def _run(directories: Sequence[Path] | None, address: str) -> int:
    from lashd.words.config import DIRECTORIES, load

    reload = Reload(lambda: load(directories or DIRECTORIES))
    # A host whose daemon is not there over a typing mistake gets no updates. Who names the files is there himself.
    problem = reload.begin(or_default=not directories)
    if problem:
        log.error("%s", problem, extra=fields(MessageId.SETTINGS_BROKEN, error=ErrorName.INVALID_ARGUMENT))
    settings = reload.current
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
    # On a bus of its own nobody would start it again.
    idle_seconds = 0.0 if address else settings.daemon.idle_exit_seconds
    async with Observer(service):
        await service.start()
        if problem:
            service.tell_settings(problem)
        return await serve(service, address, reload=reload, idle_seconds=idle_seconds)


async def _have_it_watched() -> bool:
    """Let systemd start lashd when something changes."""
    from lashd.words.run import run

    try:
        return (await run(["systemctl", "start", _PATH_UNIT], timeout=20)).status == 0
    except LashdError:
        return False


async def serve(
    service: Service,
    address: str = "",
    *,
    reload: Reload | None = None,
    idle_seconds: float = 0.0,
    arm: Callable[[], Awaitable[bool]] = _have_it_watched,
) -> int:
    """Put `service` on the bus and stay there. Returns 0 after SIGTERM, SIGINT or `idle_seconds` (0: never) without
    anything to do, 1 when the bus was lost, AGAIN, or ANEW after a `reload`.

    Raises BusError when the bus cannot be reached or another lashd owns the name.
    """
    from lashd.bus.library import SERVICE_LIMIT, connect

    connection = await connect(address, largest=SERVICE_LIMIT)
    beating = asyncio.create_task(beat(), name="watchdog")
    try:
        dispatcher = await open_doors(connection, service)
        try:
            notify("READY=1")
            log.info("lashd %s is on the bus", lashd.__version__)
            rest = Rest(service, dispatcher, idle_seconds, arm)
            anew = reload.due(service, dispatcher.stopping) if reload else None
            end = await _until_end(connection, rest.due(), anew)
            return await _ended(end, connection, dispatcher, service)
        finally:
            await dispatcher.stop()
    finally:
        await connection.disconnect()
        beating.cancel()


async def _ended(end: End, connection: Connection, dispatcher: Dispatcher, service: Service) -> int:
    from lashd.bus.contract import NAME

    again = False
    if end is End.LOST:
        log.error("The connection to the bus was lost; lashd ends, so that systemd starts it anew")
    elif end is End.RESTING:
        await leave(connection, dispatcher, NAME)
        again = not service.at_rest()
        log.info("There is nothing to do; lashd ends until it is needed")
    if end is End.ANEW:
        about_to_begin_anew()
    else:
        notify("STOPPING=1", "STATUS=Ending what is in progress.")
    # No prompt is answered, and no job begins, while the others are ended.
    dispatcher.stopping()
    # Jobs are ended while the bus still carries the news of it.
    if not await _stopped(service) or end is End.LOST:
        return 1
    return ANEW if end is End.ANEW else AGAIN if again else 0


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


async def _until_end(
    connection: Connection, resting: Coroutine[Any, Any, None], anew: Coroutine[Any, Any, None] | None
) -> End:
    """What comes first: SIGTERM or SIGINT, the loss of the bus, or the end of one of the two."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    works = {End.TOLD: told.wait(), End.LOST: connection.lost(), End.RESTING: resting, End.ANEW: anew}
    waits = {asyncio.create_task(work): end for end, work in works.items() if work is not None}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        # Whoever tells us to end is right, whatever else has come.
        ended, end = next((wait, end) for wait, end in waits.items() if wait.done())
        ended.result()
        return end
    finally:
        for wait in waits:
            wait.cancel()
        with contextlib.suppress(NotImplementedError):
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


if __name__ == "__main__":
    sys.exit(main())
