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
from dataclasses import replace
from pathlib import Path

from lashd.running.judge import Judge, Reason
from lashd.running.nextboot import RESTORED, check_boot_order, check_soft_reboot, put_first_now
from lashd.steps.decide import UNKNOWN
from lashd.steps.shutdowns import Shutdowns, boot_id, owing
from lashd.things.host import Staging
from lashd.things.manager import STOPPING, system_state
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.things.ostree.facts import staged_arguments, staged_initrds
from lashd.things.ostree.lockfile import STAGED, Lock, look_at_lock, remove_lock, write_lock
from lashd.things.ostree.nextroot import NEXTROOT
from lashd.words import files
from lashd.words.config import Settings, load
from lashd.words.errors import LashdError
from lashd.words.model import Deployment, Passed, Role, Verdict

# In lashd's run directory: a copy of ostree's note of what was let through; packaging/libexec/passed compares the two.
PASSED = "passed"
GATE_FAILED = "gate-failed"
NOT_FINISHED = "gate-not-finished"
_NOT_FINISHED = "The gate was ended before it had decided, so that nothing was let through."
_LOOKS = 3
_PATIENCE = 10.0  # seconds in which systemd is asked again; the last answer may take 15 more, and the unit has 30
_NOTE_LIMIT = 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """`stop`: decide. Outside of a shutdown nothing is decided, and the hold stays. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) != ["stop"]:
        print("usage: gate stop", file=sys.stderr)
        return 2
    state = _state()
    if state and state != STOPPING:
        _say(f"The system is {state}, not shutting down: what is staged stays held.")
        return 0
    gate = Gate(_settings())
    if not state:
        gate.failed("systemd did not answer whether the system shuts down")
        return 1
    try:
        verdict = gate.shut_down()
    except Exception as error:
        gate.failed(str(error) or type(error).__name__)
        raise
    _say(f"{verdict.result.value}: {verdict.deployment or 'nothing is staged'}", *(why for _, why in verdict.reasons))
    return 0


def _state() -> str:
    """What systemd says of the system, asked again when it is too busy to answer; empty when it never did."""
    deadline = time.monotonic() + _PATIENCE
    while not (state := system_state()) and time.monotonic() < deadline:
        time.sleep(1)
    return state


def _settings() -> Settings:
    """The host's settings; those that lashd comes with hold, so they stand in for what cannot be read."""
    try:
        return load()
    except (LashdError, OSError) as error:
        _say(f"{error} The gate goes by the settings that lashd comes with.")
        return Settings()


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
        self._staged: Deployment | None = None
        self._passed = False

    def shut_down(self) -> Verdict:
        """Decide and do it; the verdict is on disk before anything is let through. Raises OSError, LashdError."""
        for _ in range(_LOOKS):
            note = self._note()
            everything = self._sysroot.deployments()
            self._staged = next((one for one in everything if Role.STAGED in one.roles), None)
            # Whatever happens from here on, somebody may end us while it does, and nobody else says what came of it.
            self._write(_verdict(Passed.HELD, self._staged, [(NOT_FINISHED, _NOT_FINISHED)]))
            if self._staged is None:
                verdict = self._without(note, everything)
                self._write(verdict)
                return verdict
            verdict = self._decide(self._staged, note, everything)
            if verdict.result is not Passed.RELEASED:
                break
            self._write(verdict)
            if self._let_through(note):
                break
            # Somebody staged something else meanwhile, or locked it.
            self._judge.forget()
            verdict = _verdict(Passed.HELD, self._staged, [(UNKNOWN, "What is staged changed again and again.")])
            self._write(verdict)
        # Also behind what has passed: should ostree fail to finalise that, it is the first of the others that boots.
        # But after it: to put that right may take longer than we are given, and what is complete is not lost over it.
        _, more = check_boot_order(everything, self._judge, self._put_first)
        verdict = replace(verdict, reasons=(*verdict.reasons, *more))
        if more or verdict.result is not Passed.RELEASED:
            self._write(verdict)
        return verdict

    def failed(self, why: str) -> None:
        """Leave word that the gate could not do its work, for the reason `why`. What was not let through is held."""
        if self._passed:
            # The verdict on that is on disk.
            return
        sentence = f"The gate failed, so that nothing was let through: {why}."
        _say(sentence)
        with contextlib.suppress(Exception):
            self._write(_verdict(Passed.HELD, self._staged, [(GATE_FAILED, sentence)]))

    def _decide(self, staged: Deployment, note: bytes, everything: tuple[Deployment, ...]) -> Verdict:
        # The hold came first, without us; this is for whoever starts the gate in another way.
        if look_at_lock(self._run) is None:
            write_lock(self._run, Lock(staged.key))
        judged = self._judge.judge(staged)
        if not staged.foreign_lock and self._settings.gate.policy != "off":
            self._owe(staged, note)
        reasons = [*judged.reasons, *check_soft_reboot(self._settings, everything, self._judge, self._nextroot)]
        return _verdict(Passed.RELEASED if judged.release else Passed.HELD, staged, reasons)

    def _without(self, note: bytes, everything: tuple[Deployment, ...]) -> Verdict:
        """Nothing is staged, or nothing that can be understood."""
        reasons = []
        if note:
            # libostree may well understand what we do not: the lock and the missing word of ours keep it back.
            reasons.append((UNKNOWN, f"{self._run / STAGED} cannot be understood."))
        else:
            self._settle()
        reasons += check_soft_reboot(self._settings, everything, self._judge, self._nextroot)
        following, more = check_boot_order(everything, self._judge, self._put_first)
        result = Passed.RESTORED if any(code == RESTORED for code, _ in more) else Passed.NOTHING
        return _verdict(Passed.HELD if note else result, None if note else following, [*reasons, *more])

    def _let_through(self, note: bytes) -> bool:
        """Take our lock away, and only ours, if `note` still says what is staged. Answers whether that was so."""
        lock = look_at_lock(self._run)
        if note != self._note() or (lock is not None and not lock.ours):
            return False
        self._settings.paths.run.mkdir(parents=True, exist_ok=True)
        files.write_durably(self._settings.paths.run / PASSED, note)
        remove_lock(self._run)
        self._passed = True
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
            how = Staging(origin, staged_arguments(note), staged_initrds(note))
            booted = next((one for one in self._sysroot.deployments() if Role.BOOTED in one.roles), None)
            before = self._shutdowns.owed()
            self._shutdowns.owe(owing(staged, before, how, boot_id(), int(time.time()), booted))

    def _settle(self) -> None:
        """What was staged in this boot and is not any more was dropped by somebody, who does not want it back."""
        with _said_when_it_fails():
            owed = self._shutdowns.owed()
            if owed is not None and owed.boot == boot_id():
                self._shutdowns.owe(None)

    def _write(self, verdict: Verdict) -> None:
        # It is worth much, but not that an update that is complete never arrives on a host whose state is read-only.
        with _said_when_it_fails():
            try:
                self._shutdowns.write_verdict(verdict)
            except LashdError:
                # What is there is not true, or not any more.
                self._shutdowns.forget_verdict()
                raise


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
