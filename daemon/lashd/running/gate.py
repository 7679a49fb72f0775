# SPDX-License-Identifier: Apache-2.0
"""The gate: decides at shutdown, when all services have ended, whether what is staged may boot next.

    python3 -m lashd.running.gate stop

The host is held before this program starts, by ostree's own lock, and only its yes takes that lock away: killed at any
moment, or not able to start at all, it leaves the old system to come up. It needs no bus, no network, no daemon and no
state of the daemon's, and it starts no process but to put a boot order right.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Plugins of pydantic are looked for on the whole disk, and there is no use for them here.
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"

from lashd.running.judge import Judge, Reason
from lashd.running.nextboot import RESTORED, check_boot_order, check_soft_reboot, put_first_now
from lashd.steps.decide import UNKNOWN
from lashd.steps.shutdowns import Shutdowns, boot_id, owing
from lashd.things.manager import STOPPING, system_state
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.things.ostree.facts import staged_arguments
from lashd.things.ostree.lockfile import STAGED, Lock, look_at_lock, remove_lock, write_lock
from lashd.things.ostree.nextroot import NEXTROOT
from lashd.words import files
from lashd.words.config import Settings, load
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, Passed, Role, Verdict

# In lashd's run directory: a copy of ostree's note of what was let through; packaging/libexec/passed compares the two.
PASSED = "passed"
GATE_FAILED = "gate-failed"
_LOOKS = 3
_NOTE_LIMIT = 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """`stop`: decide. Outside of a shutdown nothing is decided, and the hold stays. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) != ["stop"]:
        print("usage: gate stop", file=sys.stderr)
        return 2
    state = system_state()
    if state != STOPPING:
        _say(f"The system is {state or 'in an unknown state'}, not shutting down: what is staged stays held.")
        return 0
    try:
        settings = load()
    except LashdError as error:
        _say(f"{error.message} The gate goes by the settings that lashd comes with.")
        settings = Settings()
    gate = Gate(settings)
    try:
        verdict = gate.shut_down()
    except Exception as error:
        gate.failed(error)
        raise
    _say(f"{verdict.result.value}: {verdict.deployment or 'nothing is staged'}", *(why for _, why in verdict.reasons))
    return 0


class Gate:
    """One shutdown.

    Of another system than the running one: its `sysroot`, `since` when it is up (seconds since the epoch), its
    `nextroot`, and `put_first`, which makes a deployment boot next.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        sysroot: OstreeSysroot | None = None,
        since: float | None = None,
        nextroot: Path = NEXTROOT,
        put_first: Callable[[str], None] | None = None,
    ) -> None:
        self._settings = settings
        self._run = settings.paths.ostree_run
        self._sysroot = sysroot or OstreeSysroot(settings)
        self._nextroot = nextroot
        self._put_first = put_first or functools.partial(put_first_now, settings)
        self._judge = Judge(settings, booted_at() if since is None else since)
        self._shutdowns = Shutdowns(settings.paths.state, settings.paths.run)

    def shut_down(self) -> Verdict:
        """Decide and do it; the verdict is on disk before anything is let through. Raises OSError, LashdError."""
        staged = None
        for _ in range(_LOOKS):
            note = self._note()
            everything = self._sysroot.deployments()
            staged = next((one for one in everything if Role.STAGED in one.roles), None)
            verdict = self._staged(staged, note, everything) if staged else self._nothing_staged(note, everything)
            self._write(verdict)
            if verdict.result is not Passed.RELEASED or self._let_through(note):
                return verdict
            # Somebody staged something else meanwhile, or locked it.
            self._judge.forget()
        verdict = _verdict(Passed.HELD, staged, [(UNKNOWN, "What is staged changed again and again.")])
        self._write(verdict)
        return verdict

    def failed(self, error: Exception) -> None:
        """Leave word that the gate could not do its work; the host is held."""
        why = f"The gate failed, so that nothing was let through: {error or type(error).__name__}."
        with contextlib.suppress(Exception):
            self._write(_verdict(Passed.HELD, None, [(GATE_FAILED, why)]))

    def _staged(self, staged: Deployment, note: bytes, everything: tuple[Deployment, ...]) -> Verdict:
        # The hold came first, without us; this is for whoever starts the gate in another way.
        if look_at_lock(self._run) is None:
            write_lock(self._run, Lock(staged.key))
        judged = self._judge.judge(staged)
        if not staged.foreign_lock and self._settings.gate.policy != "off":
            self._owe(staged, note)
        reasons = [*judged.reasons, *check_soft_reboot(self._settings, everything, self._judge, self._nextroot)]
        # Also behind what may pass: should ostree fail to finalise that, it is the first of the others that boots.
        reasons += check_boot_order(everything, self._judge, self._put_first)[1]
        return _verdict(Passed.RELEASED if judged.release else Passed.HELD, staged, reasons)

    def _nothing_staged(self, note: bytes, everything: tuple[Deployment, ...]) -> Verdict:
        if note:
            # libostree may well understand what we do not: the lock and the missing word of ours keep it back.
            return _verdict(Passed.HELD, None, [(UNKNOWN, f"{self._run / STAGED} cannot be understood.")])
        self._settle()
        reasons = check_soft_reboot(self._settings, everything, self._judge, self._nextroot)
        following, more = check_boot_order(everything, self._judge, self._put_first)
        restored = any(code == RESTORED for code, _ in more)
        return _verdict(Passed.RESTORED if restored else Passed.NOTHING, following, [*reasons, *more])

    def _let_through(self, note: bytes) -> bool:
        """Take our lock away, and only ours, if `note` still says what is staged. Answers whether that was so."""
        lock = look_at_lock(self._run)
        if note != self._note() or (lock is not None and not lock.ours):
            return False
        self._settings.paths.run.mkdir(parents=True, exist_ok=True)
        files.write_durably(self._settings.paths.run / PASSED, note)
        remove_lock(self._run)
        return True

    def _note(self) -> bytes:
        """ostree's own note of what is staged, byte by byte; empty when nothing is."""
        try:
            return files.read_small(self._run / STAGED, _NOTE_LIMIT)
        except FileNotFoundError:
            return b""

    def _owe(self, staged: Deployment, note: bytes) -> None:
        """It lies in /run: remember it until it has booted, so that it can be staged again."""
        with _said_when_it_fails():
            origin = staged.root.with_name(staged.root.name + ".origin").read_text(encoding="utf-8", errors="replace")
            kargs = staged_arguments(note)
            booted = next((one for one in self._sysroot.deployments() if Role.BOOTED in one.roles), None)
            before = self._shutdowns.owed()
            self._shutdowns.owe(owing(staged, before, origin, kargs, boot_id(), int(time.time()), booted))

    def _settle(self) -> None:
        """What was staged in this boot and is not any more was dropped by somebody, who does not want it back."""
        with _said_when_it_fails():
            owed = self._shutdowns.owed()
            if owed is not None and owed.boot == boot_id():
                self._shutdowns.owe(None)

    def _write(self, verdict: Verdict) -> None:
        # It is worth much, but not that an update that is complete never arrives on a host whose state is read-only.
        with _said_when_it_fails():
            self._shutdowns.write_verdict(verdict)


def _verdict(result: Passed, about: Deployment | None, reasons: Sequence[Reason]) -> Verdict:
    key, digest = (about.key, about.digest or "") if about else ("", "")
    return Verdict(result, boot_id(), int(time.time()), key, digest, tuple(reasons))


@contextlib.contextmanager
def _said_when_it_fails() -> Iterator[None]:
    try:
        yield
    except (LashdError, OSError) as error:
        _say(str(error))


def _say(*sentences: str) -> None:
    for sentence in sentences:
        print(sentence, flush=True)


def booted_at() -> float:
    """When this system was booted, in seconds since the epoch: the start of process 1, which a soft reboot keeps."""
    started = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started


if __name__ == "__main__":
    sys.exit(main())
