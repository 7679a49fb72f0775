# SPDX-License-Identifier: Apache-2.0
"""The gate: decides at shutdown, when all services have ended, whether what is staged may boot next.

    python3 -m lashd.running.gate stop
    python3 -m lashd.running.gate hold|release ID [REASON]

The host is held before this program starts, by ostree's own lock, and only its yes takes that lock away: killed at any
moment, or not able to start at all, it leaves the old system to come up. It needs no bus, no network, no daemon and no
state of the daemon's, and it starts no process but to put a boot order right.

The orders `hold` and `release` are for hosts of bootc's composefs backend on which the daemon cannot run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from lashd.running.judge import Judge, Reason
from lashd.running.nextboot import NOT_RESTORED, RESTORED, check_boot_order, check_soft_reboot, put_first_now
from lashd.running.unfinished import GATE_FAILED, NOT_FINISHED, named, sentence, shown
from lashd.steps.decide import UNKNOWN
from lashd.steps.shutdowns import Shutdowns, boot_id, owing
from lashd.things import composefs, journal
from lashd.things.host import Staging
from lashd.things.manager import STOPPING, ask_for_time, system_state
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.things.ostree.facts import staged_arguments, staged_initrds
from lashd.things.ostree.lockfile import STAGED, Lock, look_at_lock, put_back, remove_lock, write_lock
from lashd.things.ostree.nextroot import NEXTROOT
from lashd.words import events, files
from lashd.words.config import Settings, load_or_default
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId
from lashd.words.model import Deployment, Passed, Role, Verdict

# In lashd's run directory: a copy of ostree's note of what was let through; packaging/libexec/passed compares the two.
PASSED = "passed"
_LOOKS = 3
_PATIENCE = 10.0  # seconds in which systemd is asked again; the last answer may take 15 more, and the unit has 30
_NOTE_LIMIT = 1024 * 1024
_ORDER_SECONDS = 120.0  # for all of it, where the boot order may have to be put right


def main(arguments: Sequence[str] | None = None) -> int:
    """`stop`: decide. Outside of a shutdown nothing is decided, and the hold stays. Returns the exit status.

    `hold` and `release`: see `composefs.give_order`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) > 1 and arguments[0] in ("hold", "release"):
        from lashd.running.composefs import give_order

        return give_order(_settings(), arguments)
    if list(arguments) != ["stop"]:
        print("usage: gate stop | hold ID [REASON] | release ID [REASON]", file=sys.stderr)
        return 2
    state = _state()
    if state and state != STOPPING:
        _say(f"The system is {state}, not shutting down: what is staged stays held.")
        return 0
    gate = Gate(_settings())
    if not state:
        gate.failed("systemd did not answer whether the system shuts down.")
        return 1
    try:
        verdict = gate.shut_down()
    except Exception as error:
        # What Python says of it goes to the journal with all the rest.
        gate.failed(error.message if isinstance(error, LashdError) else "")
        raise
    _tell(verdict)
    return 0


def _state() -> str:
    """What systemd says of the system, asked again when it is too busy to answer; empty when it never did."""
    deadline = time.monotonic() + _PATIENCE
    while not (state := system_state()) and time.monotonic() < deadline:
        time.sleep(1)
    return state


def _settings() -> Settings:
    """The host's settings; those that lashd comes with hold, so they stand in for what cannot be read."""
    return load_or_default(lambda sentence: _say(sentence, events.fields(MessageId.SETTINGS_BROKEN)))


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
        put_first: Callable[[Deployment], None] | None = None,
    ) -> None:
        self._settings = settings
        self._run = settings.paths.ostree_run
        self._sysroot = sysroot or OstreeSysroot(settings)
        self._nextroot = nextroot
        self._put_first_now = put_first or functools.partial(put_first_now, settings)
        self._since = since
        self._shutdowns = Shutdowns(settings.paths.state, settings.paths.run)
        self._staged: Deployment | None = None
        self._first: Deployment | None = None  # in the boot order, when that is not the running one
        self._booted: Deployment | None = None
        self._passed = False

    def shut_down(self) -> Verdict:
        """Decide and do it; the verdict is on disk before anything is let through. Raises OSError, LashdError."""
        # Whatever happens from here on, somebody may end us while it does, and nobody else says what came of it.
        self._write(self._unfinished(NOT_FINISHED))
        if composefs.is_host(self._settings):
            return self._shut_down_composefs()
        self._judge = Judge(self._settings, booted_at() if self._since is None else self._since)
        for _ in range(_LOOKS):
            note = self._note()
            everything = self._sysroot.deployments()
            self._look(everything)
            self._write(self._unfinished(NOT_FINISHED))
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
        following, more = check_boot_order(everything, self._judge, self._put_first)
        verdict = replace(verdict, reasons=(*verdict.reasons, *more))
        if verdict.result is Passed.HELD:
            verdict = replace(verdict, stays=self._stays(following, more))
        if more or verdict.result is not Passed.RELEASED:
            self._write(verdict)
        return verdict

    def _shut_down_composefs(self) -> Verdict:
        from lashd.running.composefs import decide_now

        since = booted_at() if self._since is None else self._since
        verdict = decide_now(self._settings, self._write, self._nextroot, PASSED, since)
        self._passed = verdict.result is Passed.RELEASED
        return verdict

    def failed(self, why: str = "") -> None:
        """Leave word that the gate could not do its work, and why, in a whole sentence if there is one to be shown.

        What was not let through is held.
        """
        if self._passed:
            # The verdict on that is on disk.
            return
        with contextlib.suppress(Exception):
            verdict = self._unfinished(GATE_FAILED, why)
            _tell(verdict, error=ErrorName.INTERNAL)
            self._write(verdict)

    def _look(self, everything: Sequence[Deployment]) -> None:
        self._staged = next((one for one in everything if Role.STAGED in one.roles), None)
        self._booted = next((one for one in everything if Role.BOOTED in one.roles), None)
        installed = [one for one in everything if one is not self._staged]
        self._first = installed[0] if installed and self._booted not in (None, installed[0]) else None
        if self._first is not None:
            # What is staged stays held when we are ended; this one boots, looked at or not.
            ask_for_time(_ORDER_SECONDS)

    def _unfinished(self, code: str, why: str = "") -> Verdict:
        """What is to be read of this shutdown when it goes no further."""
        staged, note, gate = self._staged, b"", self._settings.gate
        with contextlib.suppress(Exception):
            note = self._note()
        key = staged.key if staged else named(note)
        owed = self._shutdowns.owed()
        # Until it was looked at, only the daemon may have written down that it is owed.
        kept = not staged.foreign_lock if staged else owed is not None and owed.deployment == key
        comes_back = kept and gate.restage and gate.policy != "off" and not staged_initrds(note)
        name = shown(staged) if staged else key[:12]
        said = sentence(code, name, self._first, comes_back=comes_back, why=why)
        verdict = _verdict(Passed.HELD, staged or (None if key else self._first), [(code, said)])
        return replace(verdict, deployment=key or verdict.deployment, stays=self._booted.name if self._booted else "")

    def _stays(self, following: Deployment | None, reasons: Sequence[Reason]) -> str:
        """Name of what is to come up again; empty when `following` may, which was looked at for these `reasons`."""
        kept = following is None or any(code in (RESTORED, NOT_RESTORED) for code, _ in reasons)
        return self._booted.name if kept and self._booted is not None else ""

    def _put_first(self, first: Deployment) -> None:
        try:
            self._put_first_now(first)
        except Exception:
            # Who was killed over it has left ostree's note aside, and with it what has passed.
            with _said_when_it_fails():
                put_back(self._run)
            raise

    def _decide(self, staged: Deployment, note: bytes, everything: tuple[Deployment, ...]) -> Verdict:
        # The hold came first, without us; this is for whoever starts the gate in another way.
        if look_at_lock(self._run) is None:
            write_lock(self._run, Lock(staged.key))
        # First of all: should we be ended over the rest, it is still known that it waits.
        if not staged.foreign_lock and self._settings.gate.policy != "off":
            self._owe(staged, note)
        judged = self._judge.judge(staged)
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
        verdict = _verdict(Passed.HELD if note else result, None if note else following, [*reasons, *more])
        return replace(verdict, deployment=named(note), stays=self._stays(following, more)) if note else verdict

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
            origin = files.read_small(staged.root.with_name(staged.root.name + ".origin"), _NOTE_LIMIT)
            how = Staging(origin.decode(errors="replace"), staged_arguments(note), staged_initrds(note))
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
    except (LashdError, OSError, ValueError) as error:
        _say(str(error))


# What a shutdown came to, for whoever is to be alerted; of the rest nobody is.
_MESSAGES = {
    Passed.RELEASED: MessageId.GATE_PASSED,
    Passed.HELD: MessageId.GATE_HELD,
    Passed.RESTORED: MessageId.GATE_HELD,
}
_WARNING, _INFO = 4, 6  # syslog's


def _tell(verdict: Verdict, error: str = "") -> None:
    """Say what the shutdown came to, and why."""
    message = _MESSAGES.get(verdict.result)
    fields = (
        events.fields(message, error=error, deployment=verdict.deployment, digest=verdict.digest) if message else {}
    )
    _say(f"{verdict.result.value}: {verdict.deployment or 'nothing is staged'}", fields)
    for _, why in verdict.reasons:
        _say(why)


def _say(sentence: str, fields: Mapping[str, str] = MappingProxyType({})) -> None:
    level = _INFO if fields.get("MESSAGE_ID") == MessageId.GATE_PASSED else _WARNING
    if not (fields and journal.tell(sys.stdout, sentence, fields, priority=level, identifier="lashd-gate")):
        print(sentence, flush=True)


def booted_at() -> float:
    """When this system was booted, in seconds since the epoch: the start of process 1, which a soft reboot keeps."""
    started = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started


if __name__ == "__main__":
    sys.exit(main())
