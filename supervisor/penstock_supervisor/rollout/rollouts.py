"""Roll-outs: who may begin one, which one runs, and how it goes on. The one owner of all of them.

One roll-out runs at a time. A second request for the same configuration joins it: what began
before begins anew, because the program may have changed since, and both who asked hear of the same
end. That is done once; who comes later waits for one more roll-out, together with all others who
do. A request for another configuration supersedes it. So no request is swallowed, and however many
come, one runs, one waits, and each has an end.

Must not know how one goes on (`rollout_driver`), nor how a slot gets its process (`replacements`).
"""

import logging
from asyncio import AbstractEventLoop, Task, TaskGroup
from collections.abc import Collection
from itertools import count
from time import time  # noqa: TID251 — people are told the time of day
from typing import Final

from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.reported_text import one_line
from penstock_supervisor.config.changes import EVERYTHING
from penstock_supervisor.config.model import Config
from penstock_supervisor.errors import IS_STOPPING, STILL_STARTS, NotNowError
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.records import RolloutRecords
from penstock_supervisor.rollout.replacements import Replacements
from penstock_supervisor.rollout.rollout import Rollout, has_failed
from penstock_supervisor.rollout.rollout_driver import RolloutDriver
from penstock_supervisor.rollout.rollout_state import Result, RolloutEvent
from penstock_supervisor.rollout.step import Step

_log = logging.getLogger("penstock.supervisor")


class Rollouts:
    """Every change is told to `records`."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        replacements: Replacements,
        driver: RolloutDriver,
        condition: Condition,
        records: RolloutRecords,
    ) -> None:
        self._loop = loop
        self._replacements = replacements
        self._driver = driver
        self._condition = condition
        self._records = records
        self._numbers = count(1)
        self._running: Rollout | None = None
        self._waiting: Rollout | None = None
        self._last: Rollout | None = None
        """The one that runs, or has ended and is in the way of the next one all the same."""
        self._tasks: TaskGroup | None = None
        self._task: Task[None] | None = None
        self._is_cancelled = False
        replacements.on_step = self._step_changed

    @property
    def goal(self) -> Config:
        """The configuration that was asked for last and has not failed, or that is in force."""
        for rollout in (self._waiting, self._running):
            if rollout is not None and (config := rollout.to_configuration) is not None:
                return config
        return self._driver.in_force

    # What is asked for.

    def start(self, tasks: TaskGroup) -> None:
        """Everything runs: from now on roll-outs may begin."""
        self._tasks = tasks

    def request(
        self,
        config: Config,
        names: Collection[str] = (),
        slots: Collection[Slot] = (),
        *,
        is_moved: bool = False,
    ) -> tuple[Rollout, bool]:
        """Begin a roll-out, or join one. True: it has joined one that is there. NotNowError.

        `is_moved`: directories lead elsewhere than in what is in force.
        """
        if self._tasks is None or self._is_cancelled:
            raise NotNowError(IS_STOPPING if self._is_cancelled else STILL_STARTS)
        last = self._waiting or self._running
        if last is not None and last.can_be_joined and last.can_take(names, slots):
            is_same = _is_same(last, config, is_moved=is_moved)
            if is_same:
                self._join(last, names, slots)
                return last, True
        rollout = self._made(config, names, slots, is_moved=is_moved)
        if self._waiting is not None:
            self._supersede_waiting(self._waiting, rollout)
        if self._running is not None and self._is_superseded(self._running, by=rollout):
            self._running.superseded_by = rollout.number
        self._waiting = rollout
        if self._running is not None:
            self._running.is_awaited = True
        if self._last is None:
            self._begin_next()
        self._publish(rollout)
        # The one that runs is looked at again: it is superseded.
        self._condition.notify()
        return rollout, False

    def _join(self, rollout: Rollout, names: Collection[str], slots: Collection[Slot]) -> None:
        rollout.join(names, slots)
        if rollout.is_reload:
            rollout.order = self._records.next_order()
        _log.info("roll-out %d: somebody else asks for the same", rollout.number)
        self._publish(rollout)
        # What has begun begins anew.
        self._condition.notify()

    def _is_superseded(self, running: Rollout, *, by: Rollout) -> bool:
        """One for the same that has begun anew already ends first: else none would succeed while
        somebody asks again and again."""
        is_same = _is_same(running, by.config, is_moved=by.is_moved)
        waits = is_same and running.is_open and not running.can_be_joined
        return running.goes_forward and running.first_failed() is None and not waits

    def _made(
        self, config: Config, names: Collection[str], slots: Collection[Slot], *, is_moved: bool
    ) -> Rollout:
        """A roll-out that takes over what those that it supersedes were to do in any case."""
        is_deploy = config == self.goal
        if is_deploy and self._running is not None and not (names or slots):
            # Whatever becomes of the one that runs: it has been said that all are replaced.
            names = [EVERYTHING, *(service.name for service in config.services)]
        rollout = Rollout(next(self._numbers), config, names, slots, time_of_day=time())
        rollout.base = self.goal
        rollout.is_deploy, rollout.is_moved = is_deploy, is_moved
        rollout.order = self._records.next_order()
        for other in (self._waiting, self._running):
            if other is not None and other.is_open and self._is_superseded(other, by=rollout):
                rollout.take_over(other)
                rollout.follows_unfinished |= other is self._running or other.follows_unfinished
        return rollout

    def cancel(self) -> None:
        """The run ends: no roll-out goes on, and none begins."""
        self._is_cancelled = True
        for rollout in (self._waiting, self._running):
            if rollout is not None:
                self._end(rollout, RolloutEvent.STOP, "the run is stopped")
        self._waiting = self._running = None
        if self._task is not None:
            self._task.cancel()

    # How it goes on.

    def _begin_next(self) -> None:
        assert self._tasks is not None
        self._running, self._waiting = self._waiting, None
        self._last = self._running
        if self._running is not None and not self._is_cancelled:
            self._task = self._tasks.create_task(self._drive(self._running))

    def _supersede_waiting(self, rollout: Rollout, by: Rollout) -> None:
        rollout.superseded_by = by.number
        self._end(rollout, RolloutEvent.SUPERSEDE, f"superseded by roll-out {by.number}")

    async def _drive(self, rollout: Rollout) -> None:
        try:
            await self._driver.run(rollout, lambda: self._publish(rollout))
        except Exception as error:  # noqa: BLE001
            # What was changed is taken back already, as far as that was possible.
            self._log_fault(rollout)
            self._replacements.withdraw_rollout()
            rollout.fail(f"a bug of penstock: {error!r}")
            while not rollout.is_over:
                rollout.handle(RolloutEvent.FAULT)
        self._running = None
        # No fault in one roll-out may end the run, nor keep the next one from beginning.
        for step in (self._see_leftovers, self._report):
            try:
                step(rollout)
            except Exception:  # noqa: BLE001
                self._log_fault(rollout)
        await self._end_removals()
        self._begin_next()

    def _log_fault(self, rollout: Rollout) -> None:
        _log.exception("roll-out %d: a bug of penstock", rollout.number)

    async def _end_removals(self) -> None:
        """As long as nobody waits, or somebody has to wait for it."""
        try:
            if self._waiting is not None:
                self._publish(self._waiting)
            await self._driver.end_removals(lambda: self._waiting is not None and not self._held())
        except Exception:  # noqa: BLE001
            # A fault of ours in a change must not end what serves.
            _log.exception("a bug of penstock: services that were removed have not ended")

    def _held(self) -> str:
        """The removed services that have to end before the one that waits can begin, or empty."""
        wanted = [] if self._waiting is None else self._waiting.config.services
        return ", ".join(one.name for one in wanted if one.name in self._driver.leaving)

    def _waits_for(self) -> str:
        """In words: why the one that waits does so."""
        if held := self._held():
            return f"{held} was removed, and has to finish what it has first"
        running = self._running
        return "" if running is None else f"roll-out {running.number} has to end first"

    def _see_leftovers(self, ended: Rollout) -> None:
        """One that was superseded has left workers of two versions, which the next one was to bring
        together. If that fails as well, and has not brought them together by going back, they are
        brought to what is in force, where that lies. Only once: who fails at that has told so, and
        waits for somebody who knows better."""
        result = ended.machine.result
        is_unfinished = result is Result.SUPERSEDED or ended.follows_unfinished
        is_left = is_unfinished and result is not Result.SUCCEEDED
        if self._waiting is not None:
            self._waiting.follows_unfinished = is_left
        elif is_left and (names := self._driver.mixed(ended.names_left())):
            rest = Rollout(
                next(self._numbers), self._driver.in_force, names, (), time_of_day=time()
            )
            rest.cause = (
                f"roll-out {ended.number} and the one before it ended half-way: all workers are "
                "brought to the configuration in force"
            )
            told = f"roll-out {rest.number} brings all workers to the configuration in force"
            ended.leftover = "; ".join(filter(None, (ended.leftover, told)))
            self._waiting = rest
            self._publish(rest)

    def _step_changed(self, step: Step) -> None:
        if (rollout := self._running) is None:
            return
        rollout.step_changed(step)
        if has_failed(step) and rollout.goes_forward:
            # Now, and not when the roll-out is looked at again: the next slot would begin.
            self._replacements.withdraw_rollout()
        self._publish(rollout)

    def _end(self, rollout: Rollout, event: RolloutEvent, reason: str) -> None:
        rollout.fail(reason)
        rollout.handle(event)
        self._report(rollout)

    def _report(self, rollout: Rollout) -> None:
        """Say how it has ended, everywhere."""
        result = rollout.machine.result
        assert result is not None
        # The one that supersedes it tells; and after a stop of the run there is nobody to tell.
        is_told = result is not Result.SUPERSEDED and not self._is_cancelled
        if rollout.reads_anew and is_told:
            refusal = rollout.reason if result is Result.REFUSED else ""
            ok = result is Result.SUCCEEDED
            self._records.config_read(ok=ok, refusal=refusal, order=rollout.order)
        # One that is superseded has failed at nothing.
        is_well = result in (Result.SUCCEEDED, Result.SUPERSEDED)
        level = logging.INFO if is_well else logging.ERROR
        reason = "" if is_well else f": {one_line(rollout.reason)}"
        if result is Result.SUPERSEDED:
            reason = f" by roll-out {rollout.superseded_by}"
        if result is not Result.SUCCEEDED and (now := rollout.leftover or rollout.outcome):
            reason += f"; {now}"
        seen = f"; {rollout.requests_in_words()}" if rollout.is_counted else ""
        text = "roll-out %d %s%s%s"
        _log.log(level, text, rollout.number, _ENDINGS[result], reason, seen)
        # Its `detail` is not repeated: these lines stand above, with the name of their worker.
        self._publish(rollout)

    def _publish(self, rollout: Rollout) -> None:
        if rollout is self._waiting:
            rollout.waits_for = self._waits_for()
        waiting = self._replacements.waiting() if rollout is self._running else ()
        self._records.put(rollout.view(waiting))


def _is_same(rollout: Rollout, config: Config, *, is_moved: bool) -> bool:
    """Does it bring such a request what that wants? Links are followed once, when it begins."""
    return rollout.config == config and not (is_moved and rollout.is_applied)


_ENDINGS: Final = {
    Result.SUCCEEDED: "has succeeded",
    Result.REFUSED: "is refused",
    Result.ABORTED: "is aborted",
    Result.ROLLED_BACK: "is rolled back",
    Result.SUPERSEDED: "is superseded",
    Result.CANCELLED: "is cancelled",
}
