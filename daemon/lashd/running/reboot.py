# SPDX-License-Identifier: Apache-2.0
"""When the host reboots: what the settings and people want, taken one step after the other until it goes or waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from lashd.running.reboot_notes import Asked, Notes, Request, Started
from lashd.running.reboot_right import RightToReboot
from lashd.running.reboot_ways import Outlook, Ways
from lashd.steps.reboot import (
    ATTEMPTS,
    Decision,
    Facts,
    Reason,
    Step,
    Wanted,
    choose_manner,
    decide,
)
from lashd.steps.window import next_opening, open_at, parse
from lashd.things import logind, rebooting
from lashd.things.rebooting import Going
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError

log = logging.getLogger(__name__)

# How long a host may take to begin going down once the unit did its work: services that delay it, and their limit.
PATIENCE_SECONDS = 300.0
_LOOK_SECONDS = 10.0  # between two looks at a reboot that was started
_CLOCK_SECONDS = 60.0  # a window is waited for in pieces, because clocks are set and machines sleep


@dataclass
class _Known:
    """What was found out on the way, and is believed until it is time to try again."""

    inhibitors: tuple[str, ...] | None = None
    tried: bool = False
    refusal: str = ""
    failure: str = ""

    @property
    def in_vain(self) -> bool:
        return bool(self.inhibitors or self.tried or self.failure)


class Rebooter:
    """Looks after the reboot of this boot. `outlook` is asked again before every step; it must not block.

    `changed` is called when `blocked()` or `row()` may answer otherwise than before.
    """

    def __init__(
        self,
        settings: Settings,
        outlook: Callable[[], Outlook],
        *,
        boot: str,
        ways: Ways | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings.reboot
        self._ostree = settings.tools.ostree
        self._windows = tuple(parse(text) for text in settings.reboot.windows)
        self._outlook = outlook
        self._ways = ways or Ways()
        self._changed = changed
        self._notes = Notes(settings.paths.run, settings.paths.state, boot)
        self._right = RightToReboot(self._settings, self._notes, self._ways)
        self._soft_failed = False
        self._known = _Known()
        self._rests_until = 0.0
        self._reasons: tuple[Reason, ...] = ()
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()

    # -- what the service calls -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look now, whenever `poke` is called and when time brings something; ends by being cancelled only."""
        while True:
            self._wake.clear()
            try:
                pause = await self.consider()
            except Exception:
                log.exception("The reboot could not be considered")
                pause = self._settings.retry_seconds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def poke(self) -> None:
        """Something changed that may matter to a reboot. Costs nothing when nobody wants one."""
        self._wake.set()

    async def consider(self) -> float | None:
        """Go as far towards the reboot as is right now. Answers after how many seconds to look again, if at all."""
        decision = await self._go(now=False)
        return self._pause(decision)

    async def request(self, when: str, *, name: str, uid: int) -> str:
        """Somebody who may asks for a reboot: `now`, `window` or `ready`. Answers `started` or `waiting`.

        What is now is done, or refused: NothingStaged, Held, Inhibited, HostCommandFailed. What has to wait is
        remembered until the host reboots or nothing is left to boot into; OutsideWindow when no window ever opens.
        """
        if when not in (Wanted.NOW, Wanted.WINDOW, Wanted.READY):
            raise LashdError(ErrorName.INVALID_ARGUMENT, f"'{when}' is not when to reboot: now, ready or window.")
        outlook = self._outlook()
        if self.begun():
            return "started"
        if not outlook.target:
            raise LashdError(
                ErrorName.NOTHING_STAGED,
                "There is nothing new to boot into: no deployment is staged, and the boot order begins with the "
                "running system. For an ordinary reboot use 'systemctl reboot'.",
            )
        if when == Wanted.NOW:
            if not outlook.ready:
                raise LashdError(ErrorName.HELD)
            decision = await self._go(now=True)
            self.poke()
            if not self.begun():
                raise _refusal(decision)
            log.info("The reboot was asked for by %s (user %d)", name or "somebody", uid)
            return "started"
        if when == Wanted.WINDOW and next_opening(self._windows, self._ways.now()) is None:
            raise LashdError(
                ErrorName.OUTSIDE_WINDOW,
                "No reboot window is set that ever opens; set 'windows' in the section [reboot] of the settings.",
                retryable=False,
            )
        request = Request(when, name, uid, int(time.time()))
        self._notes.ask(replace(self._notes.asked, request=request))
        log.info("A reboot (%s) was asked for by %s (user %d)", when, name or "somebody", uid)
        await self._go(now=False)
        self.poke()
        self._changed()
        return "started" if self.begun() else "waiting"

    def withdraw(self) -> bool:
        """Forget the request that waits; False without one. Raises NotCancellable when the reboot has begun."""
        if self.begun():
            raise LashdError(ErrorName.NOT_CANCELLABLE, "The reboot has begun and cannot be withdrawn any more.")
        if self._notes.asked.request is None:
            return False
        self._notes.ask(replace(self._notes.asked, request=None))
        self.poke()
        self._changed()
        return True

    async def steady(self) -> None:
        """This boot is a good one: a right to reboot that was held over it is given back, now or as soon as it can."""
        self._right.steady = True
        # Only now: a system that comes up and is left again must not be rebooted into for ever.
        kept = self._notes.kept
        if kept.target and kept.target == self._outlook().booted:
            with contextlib.suppress(LashdError):
                self._notes.keep(replace(kept, target="", boots=()))
        await self._go(now=False)
        self.poke()

    def begun(self) -> bool:
        """Whether a reboot was started; until the host is down, or it is known that it will not go down."""
        return self._notes.asked.started is not None

    def blocked(self) -> list[Reason]:
        """Why there is no reboot although one is wanted and everything is ready: (code, sentence)."""
        return list(self._reasons)

    def row(self) -> dict[str, Any]:
        """What is wanted, for Describe: when (never, ready, window), who asked, and whether it has begun."""
        request = self._notes.asked.request
        return {
            "when": self._wanted()[0].value,
            "asked-by": request.name if request else "",
            "asked-uid": request.uid if request else -1,
            "asked-at": request.asked if request else 0,
            "started": self.begun(),
            "next-window": int(next_opening(self._windows, self._ways.now()) or 0) if self._windows else 0,
        }

    # -- the way ----------------------------------------------------------------------------------------------------

    async def _go(self, *, now: bool) -> Decision:
        async with self._turn:
            before = self._reasons, self._notes.asked
            resting = not now and self._ways.monotonic() < self._rests_until
            known = self._known if resting else _Known()
            self._forget_request()
            await self._look_after_start(known)
            decision = await self._step(known, now)
            self._known = known
            if not resting or not known.in_vain:
                self._rests_until = self._ways.monotonic() + (self._settings.retry_seconds if known.in_vain else 0)
            self._reasons = decision.reasons
            if (self._reasons, self._notes.asked) != before:
                self._changed()
            return decision

    async def _step(self, known: _Known, now: bool) -> Decision:
        while True:
            decision = decide(self._facts(known, now))
            if decision.step is Step.WAIT:
                return decision
            if decision.step is Step.LOOK:
                known.inhibitors = await self._blockers()
            elif decision.step is Step.TAKE:
                known.refusal = await self._right.take()
                known.tried = bool(known.refusal)
                if not known.tried:
                    known.inhibitors = None  # that may have taken a while
            elif decision.step is Step.GIVE_BACK:
                await self._right.give_back()
                known.tried = True  # not taken again at once, should everything be otherwise by now
                known.inhibitors = known.inhibitors or None  # that nobody blocks is not believed for so long
            else:
                await self._start(known, now)

    def _facts(self, known: _Known, now: bool) -> Facts:
        outlook = self._outlook()
        wanted, by_person = (Wanted.NOW, True) if now else self._wanted()
        moment = self._ways.now() if wanted is Wanted.WINDOW else None
        return Facts(
            wanted=wanted,
            by_person=by_person,
            pending=bool(outlook.target),
            ready=outlook.ready,
            window_open=moment is not None and open_at(self._windows, moment),
            opens=self._opens(moment) if moment is not None else "",
            inhibitors=known.inhibitors,
            shared=bool(self._settings.fleetlock_url),
            right=self._right.state(),
            refusal=known.refusal,
            tried=known.tried,
            failure=known.failure,
            wasted=self._notes.kept.wasted(outlook.target, self._notes.boot),
            started=self.begun(),
        )

    def _wanted(self) -> tuple[Wanted, bool]:
        """The sooner one of what the settings and a person want, and whether a person does."""
        policy, request = Wanted(self._settings.when), self._notes.asked.request
        if request is None:
            return policy, False
        if policy is Wanted.READY and self._notes.kept.wasted(self._outlook().target, self._notes.boot) < ATTEMPTS:
            return policy, True
        return Wanted(request.when), True

    def _opens(self, moment: datetime) -> str:
        opens = next_opening(self._windows, moment)
        return "" if opens is None else datetime.fromtimestamp(opens, moment.tzinfo).strftime("on %a %d %b at %H:%M %Z")

    def _pause(self, decision: Decision) -> float | None:
        if self.begun():
            return _LOOK_SECONDS
        left = self._rests_until - self._ways.monotonic()
        pauses = [left] if self._known.in_vain and left > 0 else []
        if any(code == "outside-window" for code, _ in decision.reasons):
            pauses.append(_CLOCK_SECONDS)
            now = self._ways.now()
            opens = next_opening(self._windows, now)
            if opens is not None:
                pauses.append(max(opens - now.timestamp(), 0.05))
        return min(pauses, default=None)

    # -- single steps -----------------------------------------------------------------------------------------------

    async def _blockers(self) -> tuple[str, ...]:
        try:
            return tuple(inhibitor.sentence for inhibitor in await self._ways.blockers())
        except logind.Unanswered as error:
            return (str(error),)

    async def _start(self, known: _Known, now: bool) -> None:
        outlook, kept, boot = self._outlook(), self._notes.kept, self._notes.boot
        try:
            unit = await self._unit(outlook)
            boots = tuple(each for each in kept.boots if kept.target == outlook.target and each != boot)
            kept = replace(kept, target=outlook.target, boots=(*boots[-2 * ATTEMPTS :], boot))
            await asyncio.to_thread(self._notes.keep, kept)
            if self._outlook() != outlook or decide(self._facts(known, now)).step is not Step.START:
                return
            # The note comes first: a daemon that is started again in between must not give the right back.
            self._notes.ask(replace(self._notes.asked, started=Started(unit, self._ways.monotonic())))
            await self._ways.start(unit)
        except LashdError as error:
            if error.name is ErrorName.TIMEOUT and self.begun():
                return  # systemd may have heard it: how the unit is will tell
            self._notes.ask(replace(self._notes.asked, started=None))
            known.failure = f"The reboot could not be started. {error.message}"
            log.error("%s", known.failure)
        else:
            log.info("Rebooting by %s", unit)

    async def _unit(self, outlook: Outlook) -> str:
        version: tuple[int, ...] = ()
        if self._settings.soft:
            version = await self._ways.ostree_version(self._ostree)
        manner = choose_manner(
            wish=self._settings.soft,
            finalised=outlook.finalised,
            ostree=version,
            failed_before=self._soft_failed,
        )
        if manner.hindrance:
            log.info("%s", manner.hindrance)
        return rebooting.SOFT_UNIT if manner.soft else rebooting.UNIT

    async def _look_after_start(self, known: _Known) -> None:
        """A reboot that was started and does not happen is over: somebody blocked it, or the unit is not there."""
        started = self._notes.asked.started
        if started is None:
            return
        late = self._ways.monotonic() - started.at > PATIENCE_SECONDS
        try:
            going = await self._ways.look(started.unit)
        except LashdError as error:
            log.warning("%s", error.message)
            going = Going.UP
        if going is Going.DOWN or (going is Going.UP and not late):
            return
        self._soft_failed = self._soft_failed or started.unit == rebooting.SOFT_UNIT
        self._notes.ask(replace(self._notes.asked, started=None))
        known.failure = (
            f"{started.unit} failed, so the host did not reboot; 'journalctl -u {started.unit}' says why."
            if going is Going.FAILED
            else f"{started.unit} was started, but the host did not go down within {PATIENCE_SECONDS:.0f} seconds."
        )
        log.error("%s", known.failure)

    def _forget_request(self) -> None:
        """A request goes with what it was about: what is staged next week must not reboot the host by it."""
        outlook, asked = self._outlook(), self._notes.asked
        if asked.request is not None and not outlook.target:
            log.info("Nothing is left to boot into, so the reboot that was asked for is forgotten")
            self._notes.ask(Asked(asked.boot, None, asked.started))


def _refusal(decision: Decision) -> LashdError:
    codes = {code for code, _ in decision.reasons}
    sentences = " ".join(sentence for _, sentence in decision.reasons)
    if "reboot-failed" in codes:
        return LashdError(ErrorName.HOST_COMMAND_FAILED, sentences)
    if not decision.reasons:
        return LashdError(ErrorName.HELD)  # not ready any more: that changed while others were asked
    return LashdError(
        ErrorName.INHIBITED,
        f"{sentences} Try again when that has ended, or ask for a reboot when 'ready', which waits.",
    )
