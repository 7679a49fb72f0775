# SPDX-License-Identifier: Apache-2.0
"""lashd's bus interface as typed calls. Every failure leaves here as a Failure: a sentence and an exit status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from lashd.bus import library
from lashd.bus.contract import JOB, MANAGER, NAME, ROOT
from lashd.bus.paths import job_path
from lashd.bus.unsupported import word_left
from lashd.cli import job as jobs
from lashd.cli import values
from lashd.cli.agent import agent
from lashd.cli.failures import EXIT_PROTOCOL, Failure, from_bus, from_name, odd_answer
from lashd.cli.job import Job
from lashd.words.errors import ERRORS, ErrorName

PROPERTIES = "org.freedesktop.DBus.Properties"

# Reading answers from memory; asking for a change may have to wait for a person who types a password (seconds).
READ_SECONDS = 25.0
ASK_SECONDS = 180.0

# The signatures of the options that lashctl passes; the daemon refuses any other type by name.
_TYPES = {str: "s", bool: "b"}
Options = Mapping[str, str | bool | int | None]


@dataclass(frozen=True, slots=True)
class News:
    """One signal of lashd, or of the bus about lashd. `body` holds plain values."""

    path: str
    interface: str
    member: str
    body: Sequence[Any]

    @property
    def owner(self) -> str | None:
        """Who owns lashd's name from now on, empty for nobody; None when the news is something else."""
        return str(self.body[2]) if self.member == "NameOwnerChanged" and len(self.body) == 3 else None

    def changed(self, interface: str) -> dict[str, Any]:
        """The properties of `interface` that changed, with snake case keys; empty when the news is something else."""
        if self.interface != PROPERTIES or len(self.body) < 2 or self.body[0] != interface:
            return {}
        return values.row(self.body[1])


class Feed:
    """The news from the moment that it was opened."""

    def __init__(self, watch: library.Watch) -> None:
        self._watch = watch

    async def next(self, seconds: float | None = None) -> News | None:
        """The next news, or None when there is none for so long. Raises Failure when the bus itself is gone."""
        try:
            async with asyncio.timeout(seconds):
                message = await anext(self._watch)
        except TimeoutError:
            return None
        except library.BusError as error:
            raise from_bus(error.name, error.message) from error
        return News(message.path, message.interface, message.member, library.plain(message.body))


class Client:
    """One connection to the system bus. `interactive`: there is a person who can type a password when asked."""

    def __init__(self, connection: library.Connection, *, interactive: bool) -> None:
        self._connection = connection
        self._interactive = interactive

    async def describe(self) -> str:
        """The whole state as one JSON document."""
        return str(_expect(str, await self._call(ROOT, MANAGER, "Describe"), "Describe"))

    async def manager(self) -> dict[str, Any]:
        """The Manager's properties, with snake case keys."""
        return values.row(_expect(dict, await self._call(ROOT, PROPERTIES, "GetAll", "s", [MANAGER]), "GetAll"))

    async def deployments(self) -> list[dict[str, Any]]:
        return await self._list("ListDeployments")

    async def bound(self, deployment: str | None = None) -> list[dict[str, Any]]:
        """Rows of ListBound, as they come; of the booted deployment when none is named."""
        return await self._list("ListBound", {"deployment": deployment})

    async def jobs(self) -> list[Job]:
        return [_job(row) for row in map(values.row, await self._list("ListJobs"))]

    async def past_jobs(self, *, limit: int | None = None, number: int | None = None, start: bool = True) -> list[Job]:
        """Jobs of the history, the newest first; or the one of this number."""
        options, types = {"limit": limit, "job": number}, {"limit": "u", "job": "t"}
        return [_job(values.row(row)) for row in await self._list("GetHistory", options, types, start=start)]

    async def past_sets(self, *, limit: int | None = None) -> list[dict[str, Any]]:
        """Rows of GetHistory about what ran, the newest first, with snake case keys."""
        return values.rows(await self._list("GetHistory", {"kind": "sets", "limit": limit}, {"limit": "u"}))

    async def job(self, path: str, *, start: bool = True) -> Job:
        """All there is to know of a job; of one that has left the bus, what is in the history.

        Without `start` a lashd that does not run is left alone: whoever stopped it wants it stopped.
        """
        try:
            got = await self._call(path, PROPERTIES, "GetAll", "s", [JOB], start=start)
        except Failure as failure:
            number = jobs.number_of(path)
            if failure.exit_status != EXIT_PROTOCOL or not number:
                raise
            try:
                past = await self.past_jobs(number=number, start=start)
            except Failure as older:
                if older.exit_status != EXIT_PROTOCOL:
                    raise
                past = []  # a lashd without a history
            if not past:
                raise no_job(number) from failure
            return past[0]
        return jobs.read(path, _expect(dict, got, "the job"))

    async def start(self, member: str, options: Options, *before: str) -> str:
        """Ask for a job; its object path. Options that are None are left out. `before`: what comes before them."""
        given = [*before, _options({"initiator": "lashctl", **options})]
        signature = "s" * len(before) + "a{sv}"
        path = str(_expect(str, await self._call(ROOT, MANAGER, member, signature, given, ask=True), member))
        if not path.startswith(f"{ROOT}/job/"):
            raise odd_answer(f"{member} named no job")
        return path

    async def order(self, member: str, options: Options) -> None:
        """Ask for something that is done at once."""
        given = _options({"initiator": "lashctl", **options})
        await self._call(ROOT, MANAGER, member, "a{sv}", [given], ask=True)

    async def cancel(self, path: str) -> None:
        try:
            await self._call(path, JOB, "Cancel", "a{sv}", [_options({"initiator": "lashctl"})], ask=True)
        except Failure as failure:
            if failure.exit_status == EXIT_PROTOCOL and (number := jobs.number_of(path)):
                raise no_job(number) from failure
            raise

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Feed]:
        """Everything that lashd tells from now on. Open it before a job is asked for, so that nothing is missed."""
        try:
            watch = await self._connection.watch(library.Match(sender=NAME, path_namespace=ROOT))
        except library.BusError as error:
            raise from_bus(error.name, error.message) from error
        async with watch:
            yield Feed(watch)

    async def _list(
        self,
        member: str,
        options: Options | None = None,
        types: Mapping[str, str] | None = None,
        *,
        start: bool = True,
    ) -> list[dict[str, Any]]:
        got = await self._call(ROOT, MANAGER, member, "a{sv}", [_options(options or {}, types)], start=start)
        return [row for row in _expect(list, got, member) if isinstance(row, dict)]

    async def _call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        ask: bool = False,
        start: bool = True,
    ) -> Any:
        """The first value of the reply; None when it has none. `ask`: the call may prompt for a password.

        lashd is started when it does not run, unless `start` is false.
        """
        interactive = ask and self._interactive
        try:
            async with agent() if interactive else nullcontext():
                got = await self._connection.call(
                    *(NAME, path, interface, member, signature, body),
                    timeout=ASK_SECONDS if interactive else READ_SECONDS,
                    interactive=interactive,
                    start=start,
                )
        except library.BusError as error:
            # lashd uses this name too, when it is being stopped; the bus itself is still there then.
            if error.name.endswith(".Disconnected") and self._connection.connected:
                raise from_bus("org.freedesktop.DBus.Error.NameHasNoOwner", error.message) from error
            raise from_bus(error.name, error.message) from error
        return got[0] if got else None


@asynccontextmanager
async def connect(*, interactive: bool) -> AsyncIterator[Client]:
    """A client of lashd. Raises Failure when the bus cannot be reached, or lashd does not run on this host.

    lashd itself is not asked for yet, but where it does not run it may have left word.
    """
    try:
        connection = await library.connect()
    except library.BusError as error:
        raise from_bus(error.name, error.message) from error
    try:
        # The bus waits long for a service that ended at once.
        if not await _is_owned(connection) and (refused := word_left()):
            raise from_name(ErrorName.UNSUPPORTED_HOST, refused)
        yield Client(connection, interactive=interactive)
    finally:
        await connection.disconnect()


async def _is_owned(connection: library.Connection) -> bool:
    try:
        return bool((await connection.call_bus("NameHasOwner", "s", [NAME]))[0])
    except library.BusError as error:
        raise from_bus(error.name, error.message) from error


def no_job(number: int) -> Failure:
    status = ERRORS[ErrorName.INVALID_ARGUMENT].exit_status
    return Failure("InvalidArgument", f"There is no job {number}.", status, hint="'lashctl jobs' lists them.")


def _expect(kind: type, value: Any, what: str) -> Any:
    if not isinstance(value, kind):
        raise odd_answer(f"{what} gave something else than asked for")
    return value


def _job(row: values.Row) -> Job:
    """The job of a row, with snake case keys, of ListJobs or GetHistory."""
    path = values.text(row, "object") or job_path(values.number(row, "id"))
    # A row has flat keys where the interface has one value that holds them.
    who = {"uid": row.get("uid"), "name": row.get("initiator") or row.get("name"), "unit": row.get("unit")}
    return jobs.read(path, {**row, "initiator": {key: value for key, value in who.items() if value not in (None, "")}})


def _options(options: Options, types: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`types`: the signatures of numbers, by key."""
    return {
        key: library.Variant((types or {}).get(key) or _TYPES[type(value)], value)
        for key, value in options.items()
        if value is not None
    }
