# SPDX-License-Identifier: Apache-2.0
"""What is attacked: the daemon as a process, on a real sysroot with bound images, and a job in it that does not end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from lashd.bus.contract import MANAGER, NAME, ROOT
from lashd.bus.library import BUS, BUS_PATH, Connection, Match, Variant, connect
from tests.bench.service import furnish, settings_below
from tests.bus.conftest import NOBODY, REPOSITORY, private_bus
from tests.hostile.attack import Tally, tally_from
from tests.support import wire
from tests.support.registry import Registry
from tests.support.users import as_user

# Between two questions of the good caller (seconds).
PAUSE = 0.005


@dataclass
class Scene:
    """A daemon under attack. `work`: where all its files are; a `log` of what it said."""

    address: str
    client: Connection
    process: asyncio.subprocess.Process
    work: Path
    images: int
    job: str = ""
    latencies: list[float] = field(default_factory=list)  # of the good caller's questions, in seconds

    @property
    def log(self) -> str:
        return (self.work / "log").read_text(errors="replace")

    def resident(self) -> int:
        """Memory of the daemon in KiB."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4

    def processor_time(self) -> float:
        """Seconds that the daemon has worked."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def waited(self) -> float:
        """Seconds that the daemon could have worked, had other processes not had the processors."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    async def list_bound(self) -> None:
        rows = (
            await self.client.call(NAME, ROOT, MANAGER, "ListBound", "a{sv}", [{"deployment": Variant("s", "all")}])
        )[0]
        assert len(rows) == self.images

    @contextlib.asynccontextmanager
    async def good_caller(self) -> AsyncIterator[None]:
        """Asks for the bound images again and again, and notes how long each answer took."""

        async def ask() -> None:
            while True:
                began = time.perf_counter()
                await self.list_bound()
                self.latencies.append(time.perf_counter() - began)
                await asyncio.sleep(PAUSE)

        asking = asyncio.create_task(ask())
        try:
            yield
            # One that has failed has something to say.
            if asking.done():
                await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def attack(self, calls: int, seed: int, begin: Callable[[], None] = lambda: None) -> Tally:
        """`calls` bad calls by two callers at once, root and somebody else.

        `begin` is called when they are ready, in a thread: the good caller goes on asking.
        """
        argv = (sys.executable, "-m", "tests.hostile.attack", self.address, self.job, str(calls // 2))
        forbidden = (str(REPOSITORY), str(self.work))
        callers = [
            await asyncio.create_subprocess_exec(
                *(*as_whom, *argv, str(seed + number), *forbidden),
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(),
            )
            for number, as_whom in enumerate(((), as_user(NOBODY)))
        ]
        for caller in callers:
            assert caller.stdout is not None
            assert await caller.stdout.readline() == b"ready\n"
        await asyncio.to_thread(begin)
        total = Tally()
        for output, _ in await asyncio.gather(*(caller.communicate(b"go\n") for caller in callers)):
            total.add(tally_from(output.decode()))
        return total

    def hang(self, count: int) -> list[wire.Client]:
        """Clients that connect and do no more: half-way in, silent, in the middle of a message, or never reading."""
        clients = []
        for number in range(count):
            # The bus itself lets only so many be half-way in.
            client = wire.Client(self.address, steps=number % 3 if number < 45 else 3)
            if number >= 45 and number % 3 == 1:
                client.send(b"l\1\0\1\0\0")
            elif number >= 45 and number % 3 == 2:
                client.send(_managed_objects(client) + _managed_objects(client))
            clients.append(client)
        return clients


def _managed_objects(client: wire.Client) -> bytes:
    interface = "org.freedesktop.DBus.ObjectManager"
    fields = [(wire.PATH, ROOT), (wire.INTERFACE, interface), (wire.MEMBER, "GetManagedObjects")]
    return wire.encode(wire.CALL, [*fields, (wire.DESTINATION, NAME)], serial=client.next_serial())


def environment(library: str = "") -> dict[str, str]:
    paths = f"{REPOSITORY / 'daemon'}:{REPOSITORY}"
    return {**os.environ, "PYTHONPATH": paths, "LASHD_DBUS": library or os.environ.get("LASHD_DBUS", "")}


@contextlib.asynccontextmanager
async def scene(work: Path, broker: str, library: str, images: int) -> AsyncIterator[Scene]:
    """The daemon on `broker` with the D-Bus `library`, everything in the empty directory `work`."""
    settings = settings_below(work)
    with Registry() as registry:
        key = await furnish(registry, settings, images)
        host, _, port = registry.address.partition(":")
    # Without its records lashd has to ask the registry what the images mean.
    shutil.rmtree(settings.paths.state / "records")
    directory = work / "settings"
    directory.mkdir()
    (directory / "hostile.toml").write_text(
        f"[host]\nsysroot = '{settings.host.sysroot}'\n"
        f"[paths]\nstate = '{settings.paths.state}'\nrun = '{settings.paths.run}'\n"
        f"ostree_run = '{settings.paths.ostree_run}'\nroot = '{settings.paths.root}'\n"
    )
    # Whoever asks this registry waits.
    with socket.socket() as silent, private_bus(broker=broker) as (address, _bus), open(work / "log", "wb") as log:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind((host, int(port)))
        silent.listen(64)
        client = await connect(address)
        owned = Match(sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arguments={0: NAME})
        argv = (sys.executable, "-m", "lashd.bus.service", "--settings", str(directory), "--bus", address)
        async with await client.watch(owned) as news, asyncio.timeout(30):
            process = await asyncio.create_subprocess_exec(*argv, cwd=REPOSITORY, stderr=log, env=environment(library))
            await anext(news)
        try:
            found = Scene(address, client, process, work, images)
            options = {"deployment": Variant("s", key)}
            (found.job,) = await client.call(NAME, ROOT, MANAGER, "Bind", "a{sv}", [options])
            yield found
        finally:
            process.terminate()
            await process.wait()
            await client.disconnect()
            # ostree makes deployments immutable.
            subprocess.run(["chattr", "-R", "-f", "-i", str(work)], check=False)
