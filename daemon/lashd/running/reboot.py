# SPDX-License-Identifier: Apache-2.0
"""When the host reboots: what the settings and people want, taken one step after the other until it goes or waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lashd.running.reboot_notes import Asked, Notes
from lashd.running.reboot_right import RightToReboot
from lashd.running.reboot_unit import RebootUnit
from lashd.running.reboot_ways import Outlook, Ways
from lashd.running.reboot_wish import Wish
from lashd.steps.reboot import Decision, Facts, Reason, Right, Step, Wanted, decide
from lashd.things import logind
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError

log = logging.getLogger(__name__)

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
        self._outlook = outlook
        self._ways = ways or Ways()
        self._changed = changed
        self._notes = Notes(settings.paths.run, settings.paths.state, boot)
        self._right = RightToReboot(self._settings, self._notes, self._ways)
        self._wish = Wish(self._settings, self._notes, self._ways.now)
        self._unit = RebootUnit(self._notes, self._ways, soft=self._settings.soft, ostree=settings.tools.ostree)
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
        self.require(when)
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
        self._wish.ask(when, name=name, uid=uid)
        await self._go(now=False)
        self.poke()
        self._changed()
        return "started" if self.begun() else "waiting"

    def require(self, when: str) -> None:
        """Raise when a reboot can never be had so: InvalidArgument, OutsideWindow when no window ever opens."""
        self._wish.require(when)

    async def withdraw(self, *, name: str, uid: int) -> bool:
        """Forget the request that waits; False without one. What the settings want goes on.

        Raises NotCancellable when the reboot has begun.
        """
        if self.begun():
            raise LashdError(ErrorName.NOT_CANCELLABLE, "The reboot has begun and cannot be withdrawn any more.")
        if not self._wish.withdraw(name=name, uid=uid):
            return False
        # Why it was waiting is no news any more, and a right to reboot that was taken for it goes back.
        await self._go(now=False)
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

    @property
    def asked(self) -> Asked:
        """What was asked for and begun in this boot; another object when that has changed."""
        return self._notes.asked

    def begun(self) -> bool:
        """Whether a reboot was started; until the host is down, or it is known that it will not go down."""
        return self._unit.begun()

    def at_rest(self) -> bool:
        """Whether there is no reboot to wait for, and no right to one to give back."""
        return not self.begun() and not self._outlook().target and self._right.state() is Right.NONE

    def blocked(self) -> list[Reason]:
        """Why there is no reboot although one is wanted and everything is ready: (code, sentence)."""
        return list(self._reasons)

    def row(self) -> dict[str, Any]:
        """What is wanted, for Describe: when (never, ready, window), who asked, and whether it has begun."""
        return self._wish.row(self._outlook().target) | {"started": self.begun()}

    # -- the way ----------------------------------------------------------------------------------------------------

    async def _go(self, *, now: bool) -> Decision:
        async with self._turn:
            before = self._reasons, self._notes.asked
            resting = not now and self._ways.monotonic() < self._rests_until
            known = self._known if resting else _Known()
            if not self._outlook().target:
                self._wish.forget()
            known.failure = await self._unit.look_after() or known.failure
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
                known.failure = await self._start(known, now)

    def _facts(self, known: _Known, now: bool) -> Facts:
        outlook = self._outlook()
        wanted, by_person = (Wanted.NOW, True) if now else self._wish.wanted(outlook.target)
        by_window = wanted is Wanted.WINDOW
        return Facts(
            wanted=wanted,
            by_person=by_person,
            pending=bool(outlook.target),
            ready=outlook.ready,
            window_open=by_window and self._wish.window_open(),
            opens=self._wish.opens() if by_window else "",
            inhibitors=known.inhibitors,
            shared=bool(self._settings.fleetlock_url),
            right=self._right.state(),
            refusal=known.refusal,
            tried=known.tried,
            failure=known.failure,
            wasted=self._notes.kept.wasted(outlook.target, self._notes.boot),
            started=self.begun(),
        )

    def _pause(self, decision: Decision) -> float | None:
        if self.begun():
            return _LOOK_SECONDS
        left = self._rests_until - self._ways.monotonic()
        pauses = [left] if self._known.in_vain and left > 0 else []
        if any(code == "outside-window" for code, _ in decision.reasons):
            pauses.append(_CLOCK_SECONDS)
            opens = self._wish.next_window()
            if opens is not None:
                pauses.append(max(opens - self._ways.now().timestamp(), 0.05))
        return min(pauses, default=None)

    # -- single steps -----------------------------------------------------------------------------------------------

    async def _blockers(self) -> tuple[str, ...]:
        try:
            return tuple(inhibitor.sentence for inhibitor in await self._ways.blockers())
        except logind.Unanswered as error:
            return (str(error),)

    async def _start(self, known: _Known, now: bool) -> str:
        """Why it could not be started; nothing when it was, or is not right any more."""
        outlook = self._outlook()
        return await self._unit.start(
            outlook,
            lambda: self._outlook() == outlook and decide(self._facts(known, now)).step is Step.START,
        )


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
