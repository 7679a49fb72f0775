# SPDX-License-Identifier: Apache-2.0
"""Runs bootc: one verb at a time, in a unit of its own with a fixed name.

The unit's name is the mutex, stopping the unit is the cancel, its journal has all that bootc said, and systemd starts
/usr/bin/bootc itself, so that it gets the SELinux domain that its policy gives it. The unit outlives a daemon that is
killed; the next one finds it by its name (`Driver.adopt`). Outside of systemd it is a plain child.

bootc finds a `podman` of ours first in its PATH. It says of every bound image that it is there already, and of the
store that nothing is in it: so bootc neither fetches bound images, one after the other and without any retry, nor
removes those that another deployment needs. lashd does both itself. A bootc that asked another program would only be
slower; whatever it leaves is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lashd.things.bootc import BOOTC
from lashd.things.bootc.failures import explain
from lashd.things.bootc.progress import Progress
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import HostImage
from lashd.words.progress import Report, ignore
from lashd.words.run import run

UNIT = "lashd-bootc.service"
# As in units/lashd.service: what the machine is there for comes first.
WEIGHTS = ("CPUWeight=50", "IOWeight=50", "IOSchedulingPriority=7")
# What bootc runs instead of podman; a directory, because it is found by its place in PATH.
TOOLS = "usr/lib/lashd/bootc-tools"
_FIFO = "bootc.progress"
_PIECE = 64 * 1024
# Hidden in its help, and there since 1.1.4.
_WITH_PROGRESS = (1, 1, 4)
_OPEN_FILE_SINCE = 253  # systemd
_POLL_SECONDS = 0.5
_ASK_SECONDS = 30.0
# Whole host images through slow lines; whoever does not want to wait stops the job.
_VERB_SECONDS = 24 * 3600.0
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Ended:
    """How the last run ended: its exit status (negative: a signal), and what it wrote, its end at least."""

    status: int
    said: str


def argv_for(image: HostImage, *, followed: bool) -> list[str]:
    """What has bootc fetch and stage the newest of `image`, whether or not the host follows it by now."""
    if followed:
        return ["upgrade", "--quiet"]
    # The host's policy for signatures goes on to apply where it applies now.
    signed = ["--enforce-container-sigpolicy"] if image.signature == "ostree-image-signed" else []
    return ["switch", "--quiet", *signed, image.reference]


class Driver:
    """`root` of the settings is the running system. Whatever a verb changed is to be looked for on the disk."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.paths.root
        self._bootc = self._root / BOOTC
        self._systemd = (self._root / "run/systemd/system").is_dir()

    async def change(self, argv: Sequence[str], subject: str, report: Report = ignore, *, image: str = "") -> None:
        """Have bootc do `argv`. `subject` is what failed, should it; `image` the host image that the host follows.

        Raises what bootc's words mean, SysrootLocked while another run of ours goes on. A cancel stops bootc.
        """
        version = await self.version()
        env = self._environment(image)
        progress = Progress(report)
        words = list(argv)
        if version >= _WITH_PROGRESS and argv[0] in ("upgrade", "switch"):
            async with self._pipe(progress) as pipe:
                ended = await self._run(words, env, pipe)
        else:
            ended = await self._run(words, env, None)
        if ended.status != 0:
            raise explain(ended.status, ended.said, subject)

    async def version(self) -> tuple[int, int, int]:
        """Of the bootc that is installed; (0, 0, 0) when it does not say. Raises HostCommandFailed without any."""
        done = await run([os.fspath(self._bootc), "--version"], timeout=_ASK_SECONDS)
        found = _VERSION.search(done.stdout.decode(errors="replace"))
        return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)

    async def running(self) -> bool:
        """Whether a run of ours goes on, perhaps one that a daemon before this one has started."""
        return self._systemd and (await self._shown()).get("ActiveState") in ("activating", "active", "deactivating")

    async def adopt(self) -> None:
        """Wait for the end of a run that a daemon before this one has started; what it came to is on the disk.

        Its progress is read meanwhile: without that it would wait once the pipe is full. Returns at once when there is
        none; a cancel leaves it alone.
        """
        if not await self.running():
            return
        async with self._pipe(Progress(ignore)):
            # Nothing tells of the end of a unit that another process waits for, but the unit.
            while await self.running():  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)

    # ---- inner ----

    def _environment(self, image: str) -> dict[str, str]:
        path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        # Whether the image that the host follows is in that store decides how bootc pulls it, so there it is told the
        # truth.
        return {"PATH": f"{self._root / TOOLS}:{path}", "LASHD_HOST_IMAGE": image, "LC_ALL": "C.UTF-8"}

    async def _run(self, words: list[str], env: Mapping[str, str], pipe: _Pipe | None) -> Ended:
        if not self._systemd:
            return await self._run_child(words, env, pipe)
        if await self.running():
            raise LashdError(
                ErrorName.SYSROOT_LOCKED,
                f"bootc is at work already ({UNIT}, see 'systemctl status {UNIT}'); nothing was changed. Try again "
                "when it has ended.",
            )
        await self._forget()
        return await self._run_unit(words, env, pipe)

    async def _run_unit(self, words: list[str], env: Mapping[str, str], pipe: _Pipe | None) -> Ended:
        # Type=oneshot: it is activating until it ends, and then it is gone, or stays as failed for an adopter.
        argv = ["systemd-run", "--quiet", "--wait", f"--unit={UNIT}", "--service-type=oneshot"]
        argv += [f"--description=bootc {words[0]}, for lashd", "--property=TimeoutStartSec=infinity"]
        argv += [f"--property={weight}" for weight in WEIGHTS]
        argv += [f"--setenv={name}={value}" for name, value in env.items()]
        # It is told the number of the descriptor; what it starts (podman) would take that for a socket of its own.
        argv.append("--property=UnsetEnvironment=LISTEN_FDS LISTEN_PID LISTEN_FDNAMES")
        if pipe is not None and await self._systemd_version() >= _OPEN_FILE_SINCE:
            # The first that is passed on is number 3.
            argv.append(f"--property=OpenFile={pipe.path}:progress:graceful")
            words = [*words, "--progress-fd", "3"]
        try:
            done = await run([*argv, "--", os.fspath(self._bootc), *words], timeout=_VERB_SECONDS)
        except BaseException:
            await asyncio.shield(self._stop())
            raise
        if done.status == 0:
            return Ended(0, "")
        while await self.running():  # noqa: ASYNC110 (stopped by somebody, and not at its end yet)
            await asyncio.sleep(_POLL_SECONDS)
        facts = await self._shown()
        if facts.get("LoadState") != "loaded":
            return Ended(done.status, done.stderr or f"error: {UNIT} was stopped")
        said = await self._journal(facts.get("InvocationID", ""))
        await self._forget()
        status = int(facts.get("ExecMainStatus") or 0)
        killed = facts.get("ExecMainCode") in ("2", "3")  # CLD_KILLED, CLD_DUMPED
        # Without a status it was not even started.
        return Ended(-status if killed else status or done.status, said or done.stderr)

    async def _run_child(self, words: list[str], env: Mapping[str, str], pipe: _Pipe | None) -> Ended:
        descriptors = []
        if pipe is not None:
            words = [*words, "--progress-fd", str(pipe.writer)]
            descriptors = [pipe.writer]
        done = await run([os.fspath(self._bootc), *words], timeout=_VERB_SECONDS, env=env, pass_fds=descriptors)
        return Ended(done.status, done.stderr)

    @contextlib.asynccontextmanager
    async def _pipe(self, progress: Progress) -> AsyncIterator[_Pipe]:
        """What bootc writes its progress to, read until the block is left.

        A FIFO that we hold open for reading and writing: whoever writes never finds it without a reader, and a daemon
        that starts anew goes on reading where the old one ended.
        """
        path = self._settings.paths.run / _FIFO
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        loop = asyncio.get_running_loop()

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                progress.feed(os.read(descriptor, _PIECE))

        loop.add_reader(descriptor, read)
        # Ours is not to make theirs non-blocking.
        writer = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield _Pipe(path, writer)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(descriptor, _PIECE):
                    progress.feed(data)
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            os.close(writer)

    async def _stop(self) -> None:
        # A bootc that is waiting for a slow registry ends at SIGTERM; one that changes the list of deployments is
        # waited for by systemd, as with any service.
        await run(["systemctl", "stop", UNIT], timeout=300)
        await self._forget()

    async def _forget(self) -> None:
        """A unit that failed stays, and would be in the way of the next one of its name."""
        if self._systemd:
            await run(["systemctl", "reset-failed", UNIT], timeout=_ASK_SECONDS)

    async def _shown(self) -> dict[str, str]:
        names = "LoadState,ActiveState,ExecMainStatus,ExecMainCode,InvocationID"
        done = await run(["systemctl", "show", f"--property={names}", UNIT], timeout=_ASK_SECONDS)
        lines = done.stdout.decode(errors="replace").splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    async def _journal(self, invocation: str) -> str:
        """What that run wrote, a line each, as far as the journal has it."""
        if not invocation:
            return ""
        with contextlib.suppress(LashdError):
            await run(["journalctl", "--sync"], timeout=_ASK_SECONDS)
        argv = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=200"]
        # Lines of the unit's processes only, not of systemd about it.
        done = await run([*argv, f"_SYSTEMD_INVOCATION_ID={invocation}"], timeout=_ASK_SECONDS)
        return done.stdout.decode(errors="replace")

    async def _systemd_version(self) -> int:
        done = await run(["systemctl", "--version"], timeout=_ASK_SECONDS)
        found = re.match(rb"systemd (\d+)", done.stdout)
        return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class _Pipe:
    path: Path
    writer: int
