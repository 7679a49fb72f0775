# SPDX-License-Identifier: Apache-2.0
"""A private bus, a lashd that tests steer, and lashctl as a real process."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lashd.bus import library
from lashd.bus.contract import JOB, MANAGER, NAME, ROOT, contract
from lashd.bus.dispatch import Dispatcher
from lashd.bus.options import decode
from lashd.bus.paths import deployment_path, job_path
from lashd.bus.rows import to_row
from lashd.bus.tree import Call, Export, Tree
from tests.support.users import as_user

# Another interpreter for lashctl itself, such as the one of a distribution that it must run on.
PYTHON = os.environ.get("LASHCTL_TEST_PYTHON", sys.executable)
PACKAGE = Path(__file__).resolve().parent.parent.parent / "daemon"
BUS_CONFIG = """<busconfig>
  <type>custom</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/>
    <allow send_type="method_call"/><allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/><allow receive_type="method_return"/>
    <allow receive_type="error"/><allow receive_type="signal"/>
  </policy>
</busconfig>
"""

HEX = "0123456789abcdef" * 4
DIGEST = "sha256:" + HEX
BOOTED, STAGED, OLD = f"{'b' * 64}.0", f"{'c' * 64}.0", f"{'a' * 64}.1"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run of lashctl came to."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@contextmanager
def private_bus() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A dbus-daemon of its own, open to every user: (address, process)."""
    # Not below tmp_path, which other users cannot enter.
    directory = Path(tempfile.mkdtemp(prefix="lashctl-bus-"))
    directory.chmod(0o755)
    socket, config = directory / "bus", directory / "bus.conf"
    config.write_text(BUS_CONFIG.format(socket=socket))
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert daemon.stdout is not None
    try:
        yield daemon.stdout.readline().decode().strip(), daemon
    finally:
        daemon.terminate()
        daemon.wait(10)
        daemon.stdout.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def bus_address() -> Iterator[str]:
    with private_bus() as (address, _daemon):
        yield address


def environment(address: str, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LASHD_DBUS")}
    return kept | {
        "DBUS_SYSTEM_BUS_ADDRESS": address,
        "PYTHONPATH": str(PACKAGE),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "TERM": "xterm-256color",
        **more,
    }


class FakeLashd:
    """A lashd on the real dispatcher and the real contract, whose state a test sets as it likes."""

    def __init__(self, connection: library.Connection) -> None:
        self.connection = connection
        self.tree = Tree(connection, ROOT)
        self.properties: dict[str, Any] = {
            "Version": "0.1.0",
            "HostKind": "ostree",
            "State": "idle",
            "Gate": "none",
            "Booted": deployment_path(BOOTED),
            "Staged": "/",
            "Rollback": "/",
            "ActiveJob": "/",
            "LastError": ("", ""),
        }
        self.deployments: list[dict[str, Any]] = []
        self.bound: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.document = ""
        self.jobs: dict[int, dict[str, Any]] = {}
        self.asked: list[tuple[str, dict[str, Any], bool]] = []
        self.tasks: list[asyncio.Future[None]] = []
        self.refusal: Exception | None = None  # of Hold and Release
        self.on_start: Callable[[str, int], Any] = lambda method, number: None
        self.on_cancel: Callable[[int], Any] = lambda number: None

    async def start(self) -> None:
        jobs = ("Upgrade", "Switch", "Rollback", "Bind", "Check", "Plan", "Verify", "Collect", "Discard", "Reboot")
        handlers = {method: self._starter(method) for method in jobs}
        handlers |= {method: self._order(method) for method in ("Hold", "Release")}
        handlers |= {
            "ListBound": self._list_bound,
            "ListDeployments": lambda call: [[to_row(row) for row in self.deployments]],
            "ListJobs": lambda call: [
                [
                    to_row({"id": number, "object": job_path(number), "kind": job["Kind"], "state": job["State"]}
                           | {"result": job["Result"], "uid": 0, "initiator": "test", "created": 1})
                    for number, job in self.jobs.items()
                ]
            ],
            "GetHistory": self._get_history,
            "Describe": lambda call: [self.document or self.describe()],
            "Sync": lambda call: [1],
        }  # fmt: skip
        self.tree.add(ROOT, Export(contract()[MANAGER], handlers, lambda: self.properties))
        Dispatcher(self.connection, self.tree, self._uid).start()
        await self.connection.request_name(NAME)

    def describe(self) -> str:
        code, sentence = self.properties["LastError"]
        active = next((number for number, job in self.jobs.items() if job["State"] != "done"), 0)
        document = {
            "schema": 1,
            "host": {"kind": "ostree", "sysroot": "/sysroot"},
            "state": self.properties["State"],
            "gate": self.properties["Gate"],
            "blockedBy": [{"code": a, "message": b} for a, b in self.properties.get("BlockedBy", [])],
            "lastError": {"name": code, "message": sentence},
            "activeJob": active,
            "deployments": self.deployments,
            "bound": self.bound,
            "jobs": [],
        }
        return json.dumps(document)

    async def _uid(self, sender: str) -> int:
        (uid,) = await self.connection.call_bus("GetConnectionUnixUser", "s", [sender])
        return int(uid)

    def _list_bound(self, call: Call) -> list[Any]:
        wanted = decode("ListBound", call.body[0]).get("deployment", "booted")
        keys = {"booted": BOOTED, "staged": STAGED, "rollback": OLD}
        rows = [row for row in self.bound if wanted == "all" or row["deployment"] == keys.get(wanted, wanted)]
        return [[to_row(row) for row in rows]]

    def _get_history(self, call: Call) -> list[Any]:
        options = decode("GetHistory", call.body[0])
        number, limit = options.get("job", 0), options.get("limit", 50)
        sets = options.get("kind") == "sets"
        rows = [row for row in self.history if ("bound" in row) == sets and number in (0, row["id"])]
        return [[to_row(row) for row in rows[:limit]]]

    def _starter(self, method: str) -> Callable[[Call], list[Any]]:
        def handle(call: Call) -> list[Any]:
            *image, given = call.body
            options = decode(method, given) | dict(zip(("image",), image, strict=False))
            self.asked.append((method, options, call.interactive))
            number = self.new_job(method.lower(), Options=dict(options))
            self.on_start(method, number)
            return [job_path(number)]

        return handle

    def _order(self, method: str) -> Callable[[Call], list[Any]]:
        def handle(call: Call) -> list[Any]:
            if self.refusal:
                raise self.refusal
            self.asked.append((method, decode(method, call.body[0]), call.interactive))
            return []

        return handle

    def new_job(self, kind: str, number: int = 0, **properties: Any) -> int:
        number = number or len(self.jobs) + 7
        self.jobs[number] = {
            "Id": number,
            "Uuid": f"uuid-{number}",
            "Kind": kind,
            "State": "running",
            "Created": 1_790_000_000,
            "Initiator": {"uid": 0, "name": "test"},
            "Cancellable": True,
            "Attempt": 1,
        } | dict.fromkeys(("Result", "Stage"), "") | properties  # fmt: skip

        def cancel(call: Call) -> list[Any]:
            decode("Cancel", call.body[0])
            self.on_cancel(number)
            return []

        methods = {"Cancel": cancel, "Wait": lambda call: ["running", "", ""]}
        self.tree.add(job_path(number), Export(contract()[JOB], methods, lambda: self.jobs[number]))
        self.tree.signal(ROOT, MANAGER, "JobNew", [number, job_path(number), kind])
        return number

    def change(self, number: int, **properties: Any) -> None:
        self.jobs[number] |= properties
        self.tree.refresh(job_path(number))

    def end(self, number: int, result: str, error: tuple[str, str] = ("", ""), **details: Any) -> None:
        job = self.jobs[number]
        self.change(
            number,
            Result=result,
            ErrorName=error[0],
            ErrorMessage=error[1],
            Details=details,
            State="done",
            Fraction=1.0 if result in ("success", "unchanged") else job.get("Fraction", 0.0),
        )
        self.tree.signal(ROOT, MANAGER, "JobDone", [number, job_path(number), job["Kind"], result, *error])

    def change_state(self, **properties: Any) -> None:
        self.properties |= properties
        self.tree.refresh(ROOT)

    def ends_with(self, result: str, error: tuple[str, str] = ("", ""), **details: Any) -> None:
        """Every job that is asked for ends at once, before its path is even answered."""
        self.on_start = lambda method, number: self.end(number, result, error, **details)

    async def die(self) -> None:
        await self.connection.disconnect()


@pytest.fixture
async def lashd(bus_address: str) -> AsyncIterator[FakeLashd]:
    connection = await library.connect(bus_address)
    service = FakeLashd(connection)
    await service.start()
    yield service
    await connection.disconnect()


@pytest.fixture
def full(lashd: FakeLashd) -> FakeLashd:
    """A host with a booted, a staged and a rollback deployment; the staged one is held."""
    image = {"image": "registry.example/os:1", "digest": DIGEST, "timestamp": 1_790_000_000}
    lashd.deployments = [
        {"key": STAGED, "roles": ["staged"], "version": "42", "locked": True, "ready": False, **image},
        {"key": BOOTED, "roles": ["booted"], "version": "41", "ready": True, **image},
        {"key": OLD, "roles": ["rollback"], "version": "40", "ready": True, **image},
    ]
    row = {"wanted-digest": DIGEST, "present-digest": DIGEST, "state": "present", "bytes": 48_100_000, "usable": True}
    missing = row | {"state": "missing", "present-digest": "", "bytes": 0}
    web, db = "registry.example/app/web:1", "docker.io/library/postgres:16"
    lashd.bound = [
        row | {"deployment": BOOTED, "unit": "web.container", "normalised": web, "reference": web},
        row | {"deployment": STAGED, "unit": "web.container", "normalised": web, "reference": web},
        missing
        | {"deployment": STAGED, "unit": "db.container", "normalised": db, "reference": "postgres:16"}
        | {"usable": False, "use-problems": ["pull-always"], "error-name": "NetworkUnavailable"}
        | {"error-message": "docker.io does not answer."},
    ]
    lashd.properties |= {
        "State": "held",
        "Gate": "held",
        "Staged": deployment_path(STAGED),
        "Rollback": deployment_path(OLD),
        "BlockedBy": [("missing", "db.container is not in the store.")],
        "LastError": ("NetworkUnavailable", "docker.io does not answer."),
    }
    return lashd


class Lashctl:
    """Runs lashctl as a process of its own, while the test's loop goes on serving."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._begun: list[asyncio.subprocess.Process] = []

    async def begin(
        self, *arguments: str, user: int | None = None, stdout: int = subprocess.PIPE, **more: str
    ) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(as_user(user) if user else ()),
            *(PYTHON, "-m", "lashd.cli", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment(self._address, **more),
            cwd="/",
        )
        self._begun.append(process)
        return process

    async def stop(self) -> None:
        """End what a failing test has left."""
        for process in self._begun:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def __call__(self, *arguments: str, user: int | None = None, **more: str) -> Ran:
        process = await self.begin(*arguments, user=user, **more)
        return await finish(process)

    async def on_terminal(
        self, *arguments: str, columns: int = 100, lines: int = 24, interrupt_at: str = "", **more: str
    ) -> Ran:
        """Run on a pseudo terminal; Ctrl-C is typed when `interrupt_at` is seen. All output is in `out`."""
        controller, terminal = pty.openpty()
        try:
            import termios

            termios.tcsetwinsize(terminal, (lines, columns))
            process = await asyncio.create_subprocess_exec(
                *(PYTHON, "-m", "lashd.cli", *arguments),
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                env=environment(self._address, **more),
                preexec_fn=_take_terminal,
                cwd="/",
            )
            os.close(terminal)
            terminal = -1
            out = await asyncio.wait_for(asyncio.to_thread(_read_all, controller, interrupt_at), 30)
            return Ran(await asyncio.wait_for(process.wait(), 10), out, "")
        finally:
            for descriptor in (controller, terminal):
                if descriptor >= 0:
                    os.close(descriptor)


def _take_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_all(controller: int, interrupt_at: str) -> str:
    seen = b""
    while True:
        try:
            piece = os.read(controller, 65536)
        except OSError:
            return seen.decode(errors="replace")
        if not piece:
            return seen.decode(errors="replace")
        seen += piece
        if interrupt_at and interrupt_at.encode() in seen:
            interrupt_at = ""
            os.write(controller, b"\x03")


async def finish(process: asyncio.subprocess.Process, seconds: float = 30) -> Ran:
    try:
        out, err = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        process.send_signal(signal.SIGKILL)
        out, err = await process.communicate()
        raise AssertionError(f"lashctl did not end: {out!r} {err!r}") from None
    assert process.returncode is not None
    return Ran(process.returncode, (out or b"").decode(), err.decode())


@pytest.fixture
async def lashctl(bus_address: str) -> AsyncIterator[Lashctl]:
    runner = Lashctl(bus_address)
    yield runner
    await runner.stop()


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    """Read standard output up to the line that holds `text`."""
    assert process.stdout is not None
    while line := await asyncio.wait_for(process.stdout.readline(), 15):
        if text in line.decode():
            return line.decode()
    raise AssertionError(f"{text!r} never came")


def no_traceback(ran: Ran) -> None:
    assert "Traceback" not in ran.text
    assert "made a mistake" not in ran.text
    assert "Exception" not in ran.text
