"""The course of one roll-out, from its beginning to its end.

Owns what happens at each command of `rollout_state`, and what each of its states waits for. The
order is that of least regret: first everything that can fail without a trace, then settings, then
one worker after the other, and last what is taken away.

Must not know who has asked, or what comes next (`rollouts`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from penstock_supervisor.children.plan import Slot
from penstock_supervisor.errors import ReloadRefused
from penstock_supervisor.rollout.canary import Verdict
from penstock_supervisor.rollout.outcome import Remains, leftover
from penstock_supervisor.rollout.rollout import Rollout
from penstock_supervisor.rollout.rollout_parts import RolloutParts, Unfinished
from penstock_supervisor.rollout.rollout_state import RolloutCommand, RolloutEvent, RolloutState

if TYPE_CHECKING:
    from penstock_supervisor.rollout.request_totals import RequestTotals

_CANARY_LOOKS: Final = 10
"""So often a canary is looked at in its time: one that is clearly worse goes early."""

_log = logging.getLogger("penstock.supervisor")


class Course:
    """One roll-out, as it goes on."""

    def __init__(
        self,
        parts: RolloutParts,
        rollout: Rollout,
        left: Unfinished | None,
        on_change: Callable[[], None],
    ) -> None:
        """`left`: what the one before it has left. `on_change` is called when its state changes."""
        self._rollout = rollout
        self._on_change = on_change
        self._loop = parts.loop
        self._replacements = parts.replacements
        self._replaced = parts.replacements.replaced
        self._versions = parts.versions
        self._reconfiguration = parts.reconfiguration
        self._measurements = parts.measurements
        self._condition = parts.condition
        self._removals = parts.removals
        self._found = parts.versions.in_force
        """What was in force when it began."""
        self._left = left or Unfinished(self._found, None, ())
        self._before = self._left.before
        """What it goes back to: the last version that all of the run was of."""
        rollout.before = self._before.config
        self._prepared: Any = self._left.prepared
        self.left_over: Unfinished | None = None
        """What this one leaves to the next."""
        self.seen: RequestTotals | None = None
        """As it was before services were forgotten."""
        self._why = f"roll-out {rollout.number}"
        self._rest: list[Slot] = []
        """What is asked for when the canaries have passed."""
        self._canaries: dict[Slot, float] = {}
        self._worse: dict[Slot, str] = {}
        """The canary that is worse than the others, and in what."""
        self._commands: dict[RolloutCommand, Callable[[], Awaitable[None]]] = {
            RolloutCommand.APPLY: self._apply,
            RolloutCommand.ROLL: self._roll,
            RolloutCommand.ROLL_REST: self._roll_rest,
            RolloutCommand.ROLL_ANEW: self._roll_anew,
            RolloutCommand.WATCH_CANARY: self._begin_canary,
            RolloutCommand.WITHDRAW: self._withdraw,
            RolloutCommand.ROLL_BACK: self._roll_back,
            RolloutCommand.FINISH: self._finish,
            RolloutCommand.LEAVE: self._leave,
            RolloutCommand.REVERT: self._revert,
        }

    async def run(self) -> None:
        event: RolloutEvent | None = RolloutEvent.BEGIN
        while event is not None:
            try:
                event = await self._advance(event)
            except Exception as error:  # noqa: BLE001
                event = self._fault(error)

    async def _advance(self, event: RolloutEvent) -> RolloutEvent | None:
        """Carry out what follows, and wait for the next event. None: it is over."""
        commands = self._rollout.handle(event)
        if not self._rollout.is_over:
            self._on_change()
        for command in commands:
            if command is not RolloutCommand.REPORT:
                await self._commands[command]()
        return None if self._rollout.is_over else await self._next_event()

    def _fault(self, error: Exception) -> RolloutEvent | None:
        """A fault of ours in a change must not end what serves, nor stay half carried out."""
        rollout = self._rollout
        _log.exception("roll-out %d: a bug of penstock", rollout.number)
        if rollout.is_over:
            return None
        rollout.fail(f"a bug of penstock: {error!r}")
        if rollout.state is RolloutState.FINISHING:
            rollout.leftover = "the new version serves, but not all is taken away that it lacks"
        elif rollout.state is RolloutState.REVERTING:
            rollout.leftover = "the old version serves, but not all settings are those of before"
        return RolloutEvent.FAULT

    # What it waits for.

    async def _next_event(self) -> RolloutEvent:
        state = self._rollout.state
        if state is RolloutState.APPLYING:
            if not self._rollout.reason:
                return RolloutEvent.APPLIED
            if self._prepared is not None:
                return RolloutEvent.APPLY_FAILED
            self.left_over = self._left
            return RolloutEvent.REFUSED
        if state in (RolloutState.FINISHING, RolloutState.REVERTING):
            return RolloutEvent.FINISHED
        if state is RolloutState.ROLLING_BACK:
            await self._until_not_rolling()
            self._tell_leftover()
            return RolloutEvent.ALL_DONE
        if state is RolloutState.CANARY:
            return await self._canary_event()
        return await self._rolling_event()

    async def _rolling_event(self) -> RolloutEvent:
        while True:
            await self._condition.wait_until(
                lambda: (
                    not self._replacements.is_rolling
                    or self._interrupted() is not None
                    or self._can_compare()
                )
            )
            if (interrupted := self._interrupted()) is not None:
                return interrupted
            if self._can_compare():
                return RolloutEvent.FIRST_DONE
            # Who has joined meanwhile may have named more.
            self._aim()
            if not self._rollout.to_do():
                if (event := await self._when_all_serve()) is not None:
                    return event
                continue
            # As at first: with a canary.
            await self._roll()

    async def _when_all_serve(self) -> RolloutEvent | None:
        """None: somebody has joined meanwhile, and there is more to do."""
        self._replaced.ask()
        try:
            await self._condition.wait_until(
                lambda: self._replaced.is_confirmed() or self._interrupted() is not None
            )
        finally:
            # Whatever comes now, all are asked anew before its end.
            self._replaced.end_question()
        if (interrupted := self._interrupted()) is not None:
            return interrupted
        self._aim()
        return None if self._rollout.to_do() else RolloutEvent.ALL_DONE

    def _can_compare(self) -> bool:
        return (
            bool(self._canaries) and self._replacements.comparing().keys() >= self._canaries.keys()
        )

    def _interrupted(self) -> RolloutEvent | None:
        rollout = self._rollout
        if rollout.first_failed() is not None:
            return RolloutEvent.STEP_FAILED
        if (failure := self._replaced.failure()) is not None:
            rollout.fail(failure.reason)
            rollout.detail = rollout.detail or failure.detail
            return RolloutEvent.STEP_FAILED
        if rollout.superseded_by is not None:
            rollout.fail(f"superseded by roll-out {rollout.superseded_by}")
            return RolloutEvent.SUPERSEDE
        return RolloutEvent.JOIN if rollout.is_joined else None

    async def _canary_event(self) -> RolloutEvent:
        """Look at the canaries now and then, until their time is over."""
        before = await self._measurements.sample()
        seconds = max(self._canaries.values())
        for look in range(1, _CANARY_LOOKS + 1):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds / _CANARY_LOOKS):
                    await self._condition.wait_until(lambda: self._interrupted() is not None)
            if (interrupted := self._interrupted()) is not None:
                return interrupted
            why = await self._worse_canary(before, early=look < _CANARY_LOOKS)
            if (interrupted := self._interrupted()) is not None:
                return interrupted
            if why:
                self._rollout.fail(why)
                return RolloutEvent.WORSE
        return RolloutEvent.GOOD

    async def _worse_canary(self, before: Any, *, early: bool) -> str:
        now = await self._measurements.sample()
        for (service, slot), member in self._replacements.comparing().items():
            judgement = self._measurements.judge(before, now, service, member, early=early)
            if judgement.verdict is Verdict.WORSE:
                self._worse = {(service, slot): f"worse than the others: {judgement.reason}"}
                return f"{service}/{slot}, the canary: {judgement.reason}"
            if not early:
                verdict = f"{service}/{slot}, the canary: {judgement.reason}"
                self._rollout.verdicts += (verdict,)
                _log.info("%s", verdict)
        return ""

    # The commands.

    async def _apply(self) -> None:
        if not self._rollout.reads_anew:
            # What is in force stays: nothing is read, looked up or resolved anew.
            return
        try:
            self._prepared = await self._reconfiguration.prepare(self._rollout.config)
            await self._reconfiguration.apply(self._prepared, self._rollout.names)
        except ReloadRefused as refused:
            self._rollout.fail("; ".join(refused.problems))

    def _aim(self) -> None:
        rollout = self._rollout
        if rollout.is_reload:
            rollout.aim_at(self._versions.targets(self._found, rollout.names))
        # Another request may have taken the slot away meanwhile.
        rollout.aim_at(slot for slot in sorted(rollout.slots) if self._versions.is_wanted(slot))

    async def _roll(self) -> None:
        self._aim()
        targets = self._rollout.to_do()
        if self._rollout.is_reload:
            self._canaries = self._versions.canaries(targets)
        # Without a canary all are rolled at once.
        self._rest = [slot for slot in targets if slot not in self._canaries]
        self._request(self._canaries, canary=True)
        if not self._canaries:
            await self._roll_rest()

    async def _roll_rest(self) -> None:
        self._canaries = {}
        self._replacements.pass_canaries()
        rest, self._rest = self._rest, []
        self._request(rest)

    async def _roll_anew(self) -> None:
        taken_back = self._rollout.begin_anew(self._replacements.waiting())
        self._rollout.verdicts = ()
        self._replacements.withdraw_rollout()
        # One whose old process has to end first goes on, and is still compared.
        self._canaries = {
            slot: time for slot, time in self._canaries.items() if slot not in taken_back
        }
        self._rest = []

    async def _begin_canary(self) -> None:
        names = ", ".join(f"{service}/{slot}" for service, slot in self._canaries)
        seconds = max(self._canaries.values())
        _log.info("%s: the canary, compared with the others for %g s", names, seconds)

    async def _withdraw(self) -> None:
        self._replaced.end()
        self._replacements.withdraw_rollout(self._worse)

    async def _roll_back(self) -> None:
        self._versions.go_back_to(self._before)
        await self._until_not_rolling()
        self._rollout.goes_back = True
        self._request(self._still_new())

    def _still_new(self) -> list[Slot]:
        return [slot for slot in self._changed() if self._versions.differs(slot)]

    def _changed(self) -> tuple[Slot, ...]:
        """The slots that are changed since the version that this goes back to."""
        return tuple(dict.fromkeys((*self._left.changed, *self._rollout.changed())))

    def _tell_leftover(self) -> None:
        rollout, stuck = self._rollout, self._still_new()
        changed = rollout.changed()
        returned = {step.slot for step in rollout.done() if step.goes_back}
        ages = {
            slot: age
            for slot in rollout.targets
            if slot not in changed and (age := self._versions.age_s(slot)) is not None
        }
        passed_s = self._loop.time() - rollout.begun_at
        started = [slot for slot, age in ages.items() if rollout.forced(slot) and age < passed_s]
        rollout.leftover = leftover(
            Remains(
                [slot for slot in ages if slot not in started],
                [slot for slot in changed if slot not in returned and slot not in stuck],
                started,
                stuck,
                self._versions.down(),
            )
        )

    async def _finish(self) -> None:
        self._replaced.end()
        await self._until_not_rolling()
        if self._prepared is None:
            return
        await self._reconfiguration.finish(self._prepared)
        if self._removes:
            await self._removals.end(
                lambda: self._rollout.is_awaited, self._request, self._count_before_forgetting
            )

    async def _leave(self) -> None:
        await self._until_not_rolling()
        if self._prepared is not None:
            await self._reconfiguration.leave(self._prepared)
        begun_at = self._left.begun_at or self._rollout.begun_at
        mixed = self._left.mixed | self._overwritten()
        self.left_over = Unfinished(self._before, self._prepared, self._changed(), mixed, begun_at)

    def _overwritten(self) -> frozenset[str]:
        """The services whose files may be other ones, where they lay before."""
        names = {one.name for one in self._rollout.config.services}
        moved = self._versions.moved_since(self._before)
        return frozenset(filter(self._rollout.has_new_files, names.difference(moved)))

    def _mixed(self) -> frozenset[str]:
        """The services that have workers from before what was left began, and since, if that found
        other files in place of the old ones."""
        overwritten = self._left.mixed
        passed_s = self._loop.time() - self._left.begun_at
        are_new: dict[str, set[bool]] = {name: set() for name in overwritten}
        for slot in self._versions.targets(self._versions.in_force, overwritten):
            age_s = self._versions.age_s(slot)
            if slot[0] in overwritten and age_s is not None:
                are_new[slot[0]].add(age_s < passed_s)
        return frozenset(name for name, seen in are_new.items() if len(seen) > 1)

    async def _revert(self) -> None:
        if self._prepared is not None:
            await self._count_before_forgetting()
            await self._reconfiguration.revert(self._prepared)
        if mixed := self._mixed():
            self.left_over = Unfinished(self._before, None, (), mixed, self._left.begun_at)

    @property
    def _removes(self) -> bool:
        after = {one.name for one in self._rollout.config.services}
        known = (*self._before.config.services, *self._found.config.services)
        return any(one.name not in after for one in known)

    async def _count_before_forgetting(self) -> None:
        """Nobody counts for a service that is no more."""
        known = (self._before.config, self._found.config, self._rollout.config)
        if len({frozenset(one.name for one in config.services) for config in known}) > 1:
            self.seen = await self._measurements.requests()

    async def _until_not_rolling(self) -> None:
        await self._condition.wait_until(lambda: not self._replacements.is_rolling)

    def _request(self, slots: Iterable[Slot], *, canary: bool = False) -> None:
        for slot in slots:
            self._rollout.asked([slot])
            self._replaced.forget(slot)
            self._replacements.request_slot(slot, self._why, canary=canary)
