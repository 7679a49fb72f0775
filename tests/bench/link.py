# SPDX-License-Identifier: Apache-2.0
"""A slow line on one machine: a TCP proxy that adds latency and shares one bandwidth between all connections.

    async with Link(("127.0.0.1", port), round_trip=0.06, rate=125e6) as link: ...   # in a process of its own
    python -m tests.bench.link HOST:PORT --round-trip 0.06 --rate 125e6

The second form prints its port, and after each line read from standard input the bytes carried so far, as JSON. It
ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

# Small enough that many connections share the line evenly, large enough to cost little CPU.
CHUNK = 64 * 1024
# The event loop does not wake more exactly than this: shorter waits are not worth a sleep.
GRAIN = 0.001
# A connection may have this much of the line's time in the queue, so that the line does not idle between two chunks.
QUEUE_SECONDS = 0.01
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Carried:
    """What has crossed the line: connections opened, bytes towards the server and from it."""

    connections: int = 0
    up: int = 0
    down: int = 0


class Wire:
    """One direction of the line: `rate` bytes a second shared by everyone on it, each byte `latency` seconds late."""

    def __init__(self, rate: float, latency: float) -> None:
        self.rate = rate
        self.latency = latency
        self._free_at = 0.0

    async def carry(self, size: int) -> float:
        """Wait until `size` bytes may leave; returns the loop time at which they arrive."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._free_at = max(now, self._free_at) + (size / self.rate if self.rate else 0.0)
        left_at = self._free_at
        if left_at - now > QUEUE_SECONDS:
            await asyncio.sleep(left_at - now - QUEUE_SECONDS / 2)
        return left_at + self.latency


async def _forward(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    wire: Wire,
    first_late: float,
    carried: Carried,
    key: str,
) -> None:
    """Carry one direction of one connection; `first_late` seconds more for the first bytes (the TCP handshake)."""
    arriving: deque[tuple[float, bytes]] = deque()
    something = asyncio.Event()

    async def deliver() -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not arriving:
                something.clear()
                await something.wait()
            at, data = arriving.popleft()
            if at - loop.time() > GRAIN:
                await asyncio.sleep(at - loop.time())
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        late = first_late
        while True:
            data = await reader.read(CHUNK)
            at = await wire.carry(len(data)) + late
            setattr(carried, key, getattr(carried, key) + len(data))
            # What follows cannot overtake the first bytes; deliver() keeps the order.
            late = 0.0
            arriving.append((at, data))
            something.set()
            if not data:
                await delivery
                return
    finally:
        delivery.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await delivery


async def serve(
    host: str, port: int, round_trip: float, rate: float, *, own: int = 0
) -> tuple[asyncio.Server, Carried]:
    """Listen on the port `own` of 127.0.0.1 (0: a free one) and carry everything to host:port.

    `rate`: bytes a second, 0 for any.
    """
    carried = Carried()
    up, down = Wire(rate, round_trip / 2), Wire(rate, round_trip / 2)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_forward(reader, far_writer, up, round_trip, carried, "up"))
                group.create_task(_forward(far_reader, writer, down, 0.0, carried, "down"))
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            far_writer.transport.abort()

    return await asyncio.start_server(connected, "127.0.0.1", own, limit=2 * CHUNK), carried


class Link:
    """A line in a process of its own, so that its work is not done by the event loop that is being measured.

    With `netns` it is in another network namespace; `port` is its own there, 0 for a free one.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        round_trip: float = 0.0,
        rate: float = 0.0,
        netns: Path | None = None,
        port: int = 0,
    ) -> None:
        self._argv = [
            *(["nsenter", f"--net={netns}", "--"] if netns is not None else []),
            *(sys.executable, "-m", "tests.bench.link", f"{target[0]}:{target[1]}"),
            *("--round-trip", str(round_trip), "--rate", str(rate), "--port", str(port)),
        ]
        self._process: asyncio.subprocess.Process
        self.port = 0

    async def __aenter__(self) -> Link:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._argv, stdin=pipe, stdout=pipe, cwd=REPOSITORY)
        assert self._process.stdout is not None
        self.port = int(await self._process.stdout.readline())
        return self

    async def carried(self) -> Carried:
        """What has crossed the line since it was opened."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        return Carried(**json.loads(await self._process.stdout.readline()))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A slow line: adds latency, shares one bandwidth.")
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("--round-trip", type=float, default=0.0, help="seconds")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes a second, 0 for no limit")
    parser.add_argument("--port", type=int, default=0, help="the line's own port, 0 for a free one")
    arguments = parser.parse_args()
    host, _, port = arguments.target.rpartition(":")
    server, carried = await serve(host, int(port), arguments.round_trip, arguments.rate, own=arguments.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(asdict(carried)), flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main())
