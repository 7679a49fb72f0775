# SPDX-License-Identifier: Apache-2.0
"""A throwaway ostree host: a disk, a network namespace and, while it is on, a booted systemd.

    with Host("mine", directory) as host:       # directory holds disk.img
        host.start()
        print(host.run("ostree", "admin", "status").output)
        host.reboot()

When the block is left nothing remains: no mount, loop device, process, control group or namespace. Also when this
process is killed the guest goes with it, unless `keep()` was called.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo import cgroups, disk, tree
from demo.network import Network
from demo.shell import Failed, call, end, shown, start

_REPOSITORY = Path(__file__).resolve().parent.parent
_POLL_SECONDS = 0.03
_START_SECONDS = 90.0
_ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")


@dataclass(frozen=True)
class Done:
    """What a command in the guest left."""

    status: int
    output: str
    errors: str


class Host:
    """The host `name` with the disk `directory`/disk.img. Names are unique on the machine."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.network = Network(name)
        self._firmware: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._kept = False

    # Its life

    def __enter__(self) -> Self:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.is_on():
                raise Failed(f"a host called {self.name} is on already (process {self._pid()})")
            self.network.create()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self._kept:
            self.stop()

    @property
    def disk(self) -> Path:
        return self.directory / "disk.img"

    def start(self, *, wait: bool = True) -> None:
        """Switch it on; with `wait` return when it is up (see `wait_until_up`)."""
        if self.is_on():
            raise Failed(f"the host {self.name} is on already")
        before = self.boots()
        reading, self._lifeline = os.pipe()
        try:
            argv = ["unshare", "--mount", "--propagation", "private", "--", sys.executable, "-m", "demo.firmware"]
            argv += [self.name, str(self.directory.resolve()), str(tree.ensure()), str(reading)]
            machine = {"MACHINE_NET": str(Path("/proc/self/ns/net").readlink()), "PYTHONPATH": str(_REPOSITORY)}
            with (self.directory / "firmware.log").open("ab") as log:
                self._firmware = subprocess.Popen(
                    [str(word) for word in self.network.enter(argv)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | machine,
                    pass_fds=[reading],
                    start_new_session=True,  # Ctrl-C is for us: we end it in order
                )
        finally:
            os.close(reading)
        self._pid_file.write_text(json.dumps([self._firmware.pid, _started(self._firmware.pid)]))
        if wait:
            self.wait_until_up(before + 1)

    def wait_until_up(self, boot: int, timeout: float = _START_SECONDS) -> str:
        """Wait until boot number `boot` has come up; returns systemd's word: `running` or `degraded`.

        Raises Failed, with the end of its log, when it does not within `timeout` seconds or goes down instead.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.boots() >= boot and self._is_ours(leader := self.leader()):
                with contextlib.suppress(Failed, subprocess.TimeoutExpired):
                    argv = ["systemctl", "is-system-running", "--wait"]
                    state = self._inside(argv, leader, max(1.0, deadline - time.monotonic())).output.strip()
                    if state in ("running", "degraded"):
                        return state
            elif not self.is_on():
                raise Failed(f"{self.name} went down instead of coming up.\n{self._firmware_log()}\n{self.journal()}")
            time.sleep(_POLL_SECONDS)
        raise Failed(f"{self.name} was not up after {timeout:.0f} s.\n{self._firmware_log()}\n{self.journal()}")

    def reboot(self) -> str:
        """`systemctl reboot` inside, and wait until it is up again; returns systemd's word."""
        boot = self.boots()
        # The command dies with the guest when that is quicker.
        with contextlib.suppress(Failed):
            self.run("systemctl", "reboot", check=False)
        return self.wait_until_up(boot + 1)

    def power_off(self) -> None:
        """`systemctl poweroff` inside, and wait until it is off."""
        with contextlib.suppress(Failed):
            self.run("systemctl", "poweroff", check=False)
        self._wait_until_off(60)

    def kill(self) -> None:
        """Kill it at once. Its disk keeps all that was written, synced or not: this is no power cut."""
        self._signal_firmware(signal.SIGTERM)
        self._wait_until_off(15)

    def power_cut(self) -> None:
        """Cut its power: it is off, and its disk has only what had reached it. `start()` boots it again.

        The backing file is copied while the guest stands still; what the guest's kernel had not written back by then
        is not in it. The copy is taken again should the kernel have written meanwhile.
        """
        copy = self.directory / "disk.cut"
        with cgroups.frozen(f"lashd-{self.name}"):
            while True:
                before = self._writes()
                disk.copy(self.disk, copy)
                if self._writes() == before:
                    break
        self.kill()
        copy.replace(self.disk)

    def keep(self) -> None:
        """Let it live on when the block is left and when this process ends.

        `stop()` ends it, also that of another Host with the same name and directory.
        """
        self._kept = True
        if self._lifeline is not None:
            os.write(self._lifeline, b"k")
            os.close(self._lifeline)
        self._lifeline = None

    def stop(self) -> None:
        """Switch it off without ceremony and leave nothing of it on the machine; the directory stays."""
        try:
            if self.is_on():
                self._signal_firmware(signal.SIGTERM)
                with contextlib.suppress(Failed):
                    self._wait_until_off(15)
            if self.is_on():
                self._signal_firmware(signal.SIGKILL)
                self._wait_until_off(5)
        finally:
            self._forget_firmware()
            cgroups.end(f"lashd-{self.name}")
            self.network.delete()
            self._wait_for_loops()

    # What is going on

    def is_on(self) -> bool:
        if self._firmware is not None:
            return self._firmware.poll() is None
        return self._pid() is not None

    def boots(self) -> int:
        """How often it has been booted so far, in all its life."""
        return sum(note["event"] == "up" for note in self._notes())

    def leader(self) -> int:
        """The process id, on the machine, of the guest's init; 0 when it is down."""
        last = self._notes()[-1:]
        return int(last[0]["leader"]) if last and last[0]["event"] == "up" else 0

    def run(self, *argv: str, check: bool = True, timeout: float = 60, input: bytes | None = None) -> Done:
        """Run `argv` as root inside, without a terminal. Raises Failed on a bad status (with `check`) or no end."""
        try:
            done = self._inside(argv, self._leader_or_fail(), timeout, input)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"no end after {timeout:.0f} s in {self.name}: {shown(argv)}") from error
        if check and done.status != 0:
            raise Failed(f"status {done.status} in {self.name}: {shown(argv)}\n{done.output}{done.errors}".rstrip())
        return done

    def enter(self, argv: Sequence[str], environment: Sequence[str] = ()) -> list[str]:
        """The command line that runs `argv` inside, for whoever wants to start it himself."""
        return _enter(self._leader_or_fail(), argv, environment)

    def journal(self, lines: int = 40) -> str:
        """The end of its journal, of the last boot; from the disk when it is off. Never raises."""
        asked = ["journalctl", "--no-pager", "--quiet", "--output=short-monotonic", f"--lines={lines}"]
        try:
            if self._is_ours(self.leader()):
                return self.run(*asked, "--boot", check=False, timeout=10).output
            script = (
                'mount -o loop,ro "$0" "$1/sysroot" && exec chroot "$@" '
                "--directory=/sysroot/ostree/deploy/default/var/log/journal"
            )
            argv = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script]
            return call([*argv, self.disk, tree.ensure(), *asked], timeout=20)
        except (Failed, OSError, subprocess.SubprocessError) as error:
            return f"(its journal cannot be read: {error})"

    # Below

    @property
    def _pid_file(self) -> Path:
        return self.directory / "firmware.pid"

    def _pid(self) -> int | None:
        """The firmware's process id, also when another process started it; None when it is not there."""
        try:
            pid, started = json.loads(self._pid_file.read_text())
        except (OSError, ValueError):
            return None
        return int(pid) if _started(pid) == started else None

    def _notes(self) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            text = (self.directory / "boots.jsonl").read_text()
            return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return []

    def _leader_or_fail(self) -> int:
        leader = self.leader()
        if not self._is_ours(leader):
            raise Failed(f"the host {self.name} is not up")
        return leader

    @staticmethod
    def _is_ours(leader: int) -> bool:
        """Whether process `leader` has reached the guest's root already (before, its root is the machine's)."""
        return leader != 0 and Path(f"/proc/{leader}/root/run/ostree-booted").exists()

    def _inside(self, argv: Sequence[str], leader: int, timeout: float, input: bytes | None = None) -> Done:
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        process = start(_enter(leader, argv), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            try:
                output, errors = process.communicate(input, timeout)
            finally:
                end(process)
        return Done(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))

    def _signal_firmware(self, number: signal.Signals) -> None:
        pid = self._pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _wait_until_off(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.is_on():
            if time.monotonic() > deadline:
                raise Failed(f"the host {self.name} was not off after {timeout:.0f} s")
            time.sleep(_POLL_SECONDS)
        self._forget_firmware()
        self._wait_for_loops()

    def _forget_firmware(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
        self._lifeline = None
        if self._firmware is not None:
            self._firmware.wait()
        self._firmware = None
        self._pid_file.unlink(missing_ok=True)

    def _wait_for_loops(self) -> None:
        """The kernel lets a loop device go a moment after its last user."""
        deadline = time.monotonic() + 5
        while self.disk.exists() and disk.loops(self.disk) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _writes(self) -> list[str]:
        """The kernel's counters of writes to the disk, and of those under way."""
        loops = disk.loops(self.disk)
        fields = [Path("/sys/block", Path(loop).name, "stat").read_text().split() for loop in loops]
        return [field for each in fields for field in (each[4], each[6], each[8])]

    def _firmware_log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "firmware.log").read_text(errors="replace")[-2000:]
        return ""


def _enter(leader: int, argv: Sequence[str], environment: Sequence[str] = ()) -> list[str]:
    all_namespaces = ["nsenter", f"--target={leader}", "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"]
    return [*all_namespaces, "/usr/bin/env", "-i", *_ENVIRONMENT, *environment, *argv]


def _started(pid: int) -> int:
    """When process `pid` was started, in ticks since the machine's boot; 0 when there is none (or only its remains)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
