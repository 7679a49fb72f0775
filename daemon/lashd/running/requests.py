# SPDX-License-Identifier: Apache-2.0
"""What can be asked of the running daemon beside looking: jobs that change the host or ask registries, and orders."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from lashd.running.asking import Asking
from lashd.running.chores import Chores
from lashd.running.jobs import Initiator, Job, Outcome
from lashd.running.orders import Orders, came_back, expected_owed, expected_staged
from lashd.running.reading import Options, Parts, Reader
from lashd.running.starting import Starter
from lashd.running.walk import plan_facts
from lashd.things.bootc.others import others
from lashd.words import events
from lashd.words.errors import TOLD, ErrorName, LashdError
from lashd.words.model import Owed, Role
from lashd.words.progress import Stage, StageStarted

log = logging.getLogger(__name__)

# The option `reboot` of an upgrade, and what is asked for then.
_WHEN_TO_REBOOT = {"when-ready": "ready", "window": "window"}

# What BlockedBy tells as well, and what keeps nothing from a reboot.
_NO_HINDRANCE = frozenset(
    {"running-lacks", "next-try", "waiting", "wasted-reboots", "gate-ignored", "wrong-name", "outside-window"}
    | {"restart-needed", "other-updater", "settings"}
)


class Requests(Reader):
    """Those that start a job return (job, joined) or raise LashdError; `changed` is called when an order was given."""

    def __init__(
        self,
        parts: Parts,
        *,
        orders: Orders,
        chores: Chores,
        starter: Starter,
        asking: Asking,
        changed: Callable[[], None],
    ) -> None:
        super().__init__(parts)
        self._orders = orders
        self._chores = chores
        self._starter = starter
        self._asking = asking
        self._changed = changed
        self._barred_note = self.settings.paths.run / "activation.json"
        self._restarts_note = self.settings.paths.run / "restarts.json"
        self.settings_problem = ""  # a sentence, when the settings' files could not be read

    # -- what changes something, as a job ---------------------------------------------------------------------------

    def upgrade(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """The whole walk. Details: `held`, why it stays held; `staged`, when the newest one was staged already."""
        return self._upgrade("upgrade", options, initiator)

    def switch(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """As `upgrade`, to the host image `image` of the options, which the host follows then."""
        return self._upgrade("switch", options, initiator)

    def _upgrade(self, kind: str, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        when = _WHEN_TO_REBOOT.get(options.get("reboot", "no"))

        async def work(job: Job) -> Outcome:
            if when is not None:
                # Before hours of fetching, and not after them.
                self._rebooter.require(when)
            facts = await self._walk.upgrade(options.get("expected-digest"), job.report, to=options.get("image", ""))
            if when is not None and self._walk.deployment(Role.STAGED) is not None:
                await self._rebooter.request(when, name=initiator.name, uid=initiator.uid)
            more: dict[str, Any] = {"held": held} if (held := self._walk.held_back()) else {}
            if facts is None and self._walk.deployment(Role.STAGED) is not None:
                more["staged"] = True
            return Outcome(facts is not None, {**(facts or {}), **more})

        return self._starter.start(kind, work, initiator, options)

    def rollback(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            facts = await self._walk.roll_back(drop_staged=options.get("drop-staged", False), report=job.report)
            # Neither what was dropped nor what a reboot has lost before may come back over it.
            await self._forget_staged()
            if facts is not None:
                told = events.fields(
                    events.MessageId.ROLLBACK_QUEUED, deployment=facts["deployment"], uid=initiator.uid
                )
                log.warning("The next boot is the way back, to %s", facts["version"] or facts["deployment"], extra=told)
            return Outcome(facts is not None, facts or {})

        return self._starter.start("rollback", work, initiator, options)

    def bind(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        deployment = self._one(options.get("deployment", Role.STAGED.value))
        return self._starter.bind(deployment, initiator, options)

    def discard(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Drop the staged deployment, or give up what a reboot has lost; the one to roll back to stays.

        Details `deployment`, and `given-up` when it was only about to be staged again.
        """
        lost = self.lost()
        if lost is not None:
            return self._give_up(expected_owed(lost, options), options, initiator)
        staged = expected_staged(self._by_role(Role.STAGED), options)

        async def work(job: Job) -> Outcome:
            # The boot entries are written as a whole or not at all.
            job.protect()
            job.report(StageStarted(Stage.DISCARD))
            await self._backend.discard(staged)
            await self._forget_staged()
            return Outcome(True, {"deployment": staged.key})

        return self._starter.start("discard", work, initiator, options)

    def _give_up(self, lost: Owed, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        async def work(job: Job) -> Outcome:
            job.protect()
            job.report(StageStarted(Stage.DISCARD))
            staged = came_back(self._by_role(Role.STAGED), lost)
            if staged is not None:
                await self._backend.discard(staged)
            await self._forget_staged()
            return Outcome(True, {"deployment": lost.deployment} | ({} if staged else {"given-up": True}))

        return self._starter.start("discard", work, initiator, options)

    def plan(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """What a bind of a deployment would do, or with `kind` = `upgrade` also whether there is a newer host image."""

        async def work(job: Job) -> Outcome:
            facts: dict[str, Any] = {}
            if options.get("kind") == "upgrade":
                facts |= await self._walk.newest()
            which = options.get("deployment")
            deployment = self._one(which) if which else self._default()
            plan = await self._walk.plan(deployment, job.report)
            facts |= {"deployment": deployment.key, **plan_facts(plan)}
            facts["fetch"] = [f"{image.reference} {image.bytes_to_fetch}" for image in plan.absent]
            return Outcome(False, facts)

        return self._asking.start("plan", work, initiator, options)

    def check(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Is there a newer host image, and have floating bound images moved on? Changes nothing."""

        async def work(job: Job) -> Outcome:
            job.report(StageStarted(Stage.PLAN))
            facts = await self._walk.newest()
            return Outcome(False, {**facts, **await self._walk.moved(self._default())})

        return self._asking.start("check", work, initiator, options)

    def verify(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Compare the store with what is recorded for a deployment."""
        deployment = self._one(options.get("deployment", Role.BOOTED.value))

        async def work(job: Job) -> Outcome:
            try:
                return await self._chores.verify(deployment, job, deep=options.get("deep", False))
            finally:
                # What was found damaged is not vouched for any more.
                self._ordered()

        return self.jobs.start("verify", work, initiator, options, slot=False)

    def collect(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Remove from the store what nobody needs."""

        async def work(job: Job) -> Outcome:
            return await self._chores.collect(job, dry_run=options.get("dry-run", False))

        return self._starter.start("collect", work, initiator, options)

    def reboot(self, options: Options, initiator: Initiator) -> tuple[Job, bool]:
        """Start the reboot, remember that it is wanted, or (`when` = `never`) forget that. The job ends then.

        Details: `state` (`started`, `waiting`, `withdrawn`, or `nothing` when there was nothing to forget), and what is
        wanted now as `when`; and `missing`, sentences on what the next system lacks and is started without.
        """

        async def work(job: Job) -> Outcome:
            when, lacks = options.get("when", "now"), self._lacks()
            if when == "never":
                changed = await self._rebooter.withdraw(name=initiator.name, uid=initiator.uid)
                state = "withdrawn" if changed else "nothing"
            else:
                try:
                    changed, state = True, await self._rebooter.request(when, name=initiator.name, uid=initiator.uid)
                except LashdError as error:
                    raise self._held() if error.name is ErrorName.HELD else error from error
            details = {"state": state, "when": self._rebooter.row()["when"]}
            return Outcome(changed, details | ({"missing": lacks} if state == "started" and lacks else {}))

        return self.jobs.start("reboot", work, initiator, options, slot=False)

    def blocked_by(self) -> list[tuple[str, str]]:
        found = super().blocked_by() + self._rebooter.blocked()
        if self._barred_note.exists():
            from lashd.running.activate import read_report

            found += [("wrong-name", sentence) for sentence in read_report(self.settings).values()]
        if self._restarts_note.exists():
            from lashd.running.restarts import pending

            found += [("restart-needed", sentence) for sentence in pending(self.settings)]
        found += [("other-updater", sentence) for sentence in others(self.settings.paths.root)]
        return found + ([("settings", self.settings_problem)] if self.settings_problem else [])

    # -- orders, which take no job ----------------------------------------------------------------------------------

    async def hold(self, options: Options, initiator: Initiator) -> None:
        """Keep the staged deployment back, complete or not. Raises NothingStaged, DigestMismatch."""
        staged = expected_staged(self._by_role(Role.STAGED), options)
        await self._orders.hold(staged, initiator, str(options.get("reason", "")))
        self._ordered()

    async def release(self, options: Options, initiator: Initiator) -> None:
        """Take back that the staged deployment is held; exactly this one is let through although images are missing.

        Raises InvalidArgument without `expected-digest`, NothingStaged, DigestMismatch, Held while somebody else holds
        it, SysrootLocked.
        """
        staged = expected_staged(self._by_role(Role.STAGED), options, needed=True)
        complete = self._view.decision(staged).release
        await self._orders.release(staged, initiator, str(options.get("reason", "")), complete=complete)
        self._ordered()

    def _ordered(self) -> None:
        if self._keeper is not None:
            self._keeper.wake()
        self._changed()

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _lacks(self) -> list[str]:
        """What the gate would only warn of: sentences."""
        staged = self._by_role(Role.STAGED)
        if staged is None or self.settings.gate.policy == "off" or not self._passes(staged):
            return []
        return [sentence for _, sentence in self._view.decision(staged).reasons]

    def _held(self) -> LashdError:
        """Why there is no reboot into the next system now, by all that stands in its way."""
        job = self.jobs.active
        why = [sentence for code, sentence in self.blocked_by() if code not in _NO_HINDRANCE]
        if not why and job is not None:
            why = [f"Job {job.id} ({job.kind}) is running."]
        more = [f"And {len(why) - TOLD} more."] if len(why) > TOLD else []
        return LashdError(ErrorName.HELD, " ".join(["There is no reboot now.", *why[:TOLD], *more]) if why else "")

    async def _forget_staged(self) -> None:
        """The staged deployment was dropped on purpose: neither it nor what was said about it is to come back."""
        await asyncio.to_thread(self._shutdowns.give_order, None)
        if self._keeper is not None:
            await self._keeper.forget()
