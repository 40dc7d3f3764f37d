"""Carries out the steps by which slots get other processes, without losing a request.

`replacement_queue` decides whose turn it is, and `replacement_step` what follows from what. This
module looks at the processes and the rotation, tells that table what it sees, and carries out its
commands. Everything that replaces, adds or removes a worker comes through here, so there are never
more under way than are allowed, and the last one that serves is never taken away for another one
that does not serve yet.

A worker that asks for it itself (it retires, hangs, lost its channel) gets a successor of its own
version. For a roll-out (`rollouts`) the successor is of the version that is in force.

The next one of a roll-out begins when the old process of the last one has ended. Others do not
wait for that: a process that hangs takes its whole time to end.

Must not know why a worker is replaced, or what a roll-out is.
"""

import logging
import signal
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from penstock_supervisor.children.after_exit import unnamed
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import ChildPlan, Slot
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.falls import Falls
from penstock_supervisor.rollout.plans import Plans
from penstock_supervisor.rollout.replaced_workers import ReplacedWorkers
from penstock_supervisor.rollout.replacement_queue import (
    REASONS,
    RELOAD,
    Reason,
    Replacement,
    ReplacementQueue,
)
from penstock_supervisor.rollout.replacement_step import (
    ENDED,
    OVERLAP,
    WITHDRAWN,
    StepEvent,
    StepMachine,
    StepState,
)
from penstock_supervisor.rollout.step import Action, Step
from penstock_supervisor.rollout.step_commands import StepCommands
from penstock_supervisor.rollout.step_events import StepEvents
from penstock_supervisor.rotation.rotation import Rotation

_SAID_ONCE: Final[tuple[Reason, ...]] = ("channel", "retire")
"""What a process asks for itself."""
_HAS_PROCESS: Final = (State.STARTING, State.LATE, State.UP, State.STOPPING)

_log = logging.getLogger("penstock.supervisor")


class Replacements:
    """`make_child(plan, after)` makes a child that takes the place of another one, or of none."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        slots: Slots,
        rotation: Rotation,
        condition: Condition,
        plans: Plans,
        make_child: Callable[[ChildPlan, Child | None], Child],
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._rotation = rotation
        self._condition = condition
        self._plans = plans
        self._make_child = make_child
        self._falls = Falls(rotation, self._started)
        self._events = StepEvents(rotation, self._falls, self._lives_since)
        self._queue = ReplacementQueue()
        self._steps: list[Step] = []
        """Under way."""
        self._wake_pending = False
        self._cancelled = False
        """The run ends."""
        self._canaries: set[Slot] = set()
        """Slots whose next step of a roll-out waits for a comparison."""
        self.lives_since: Callable[[Child, float], bool] = lambda _child, _at: True
        """As `Heartbeat.lives_since`."""
        self.replaced = ReplacedWorkers(
            loop, slots, rotation, self._falls, condition, self.wake, self._lives_since
        )
        """By the roll-out under way."""
        self._commands = StepCommands(loop, slots, rotation, plans, self.replaced, self.wake)
        self.on_step: Callable[[Step], None] = lambda _: None
        """Called when a step of a roll-out begins, changes, or ends."""

    # What wants a worker replaced.

    def request(self, child: Child, reason: Reason, why: str) -> None:
        """Replace this worker when its turn comes. Asked for again, it is the same request."""
        slot = slot_of(child)
        step = self._step_of(slot)
        if step is not None and self._is_remembered(step, child, reason, why):
            return
        if self._cancelled or not self._slots.is_current(child):
            return
        if reason == "liveness" and not self._is_free(slot):
            # Its slot has no place for a successor beside what still ends there, and it serves
            # nobody: the shortest way to one that does.
            _log.error("%s; it is killed: its slot has no place for a successor yet", why)
            child.signal(signal.SIGKILL)
            return
        others = [one for one in self._steps if one.slot[0] == slot[0] and one.is_waited_for]
        if self._queue.request(slot, reason, why) and others:
            _log.info("%s is replaced after %s", child.name, others[-1].name)
        self.wake()

    def _is_remembered(self, step: Step, child: Child, reason: Reason, why: str) -> bool:
        """Is it about a process of a step that is not decided? A hung or unhealthy one is reported
        again and again, and leaves the rotation. What a process says itself, it says only once."""
        if child is step.old:
            if reason in _SAID_ONCE:
                step.old_asked[reason] = why
            return True
        if child is not step.new or not self._slots.is_successor(child):
            return False
        if reason in _SAID_ONCE:
            step.leaves = step.leaves or unnamed(why, child.name)
            self.wake()
        return True

    def withdraw(self, child: Child, *reasons: Reason) -> None:
        """Its process is well again. A replacement that has begun goes on."""
        self._queue.withdraw(slot_of(child), *reasons)

    def request_slot(self, slot: Slot, why: str, *, canary: bool = False) -> None:
        """Bring this slot to the version in force, when its turn comes: for a roll-out. A
        `canary` keeps its old process until `pass_canaries`."""
        self._queue.request(slot, RELOAD, why)
        if canary:
            self._canaries.add(slot)
        self.wake()

    def pass_canaries(self) -> None:
        """The canaries are no worse than the others: they take over their slots."""
        for step in self._steps:
            if step.state is StepState.CANARY:
                step.is_canary = False
                self._handle(step, StepEvent.GOOD)

    def comparing(self) -> dict[Slot, int]:
        """The canaries that can be compared with the others now, and their member numbers."""
        return {
            step.slot: step.new.number
            for step in self._steps
            if step.state is StepState.CANARY and step.new is not None
        }

    def withdraw_rollout(self, failed: Mapping[Slot, str] = MappingProxyType({})) -> None:
        """Take back all that was asked for by `request_slot` and has not taken over its slot.
        `failed`: those with which something was wrong, and what."""
        self._canaries.clear()
        for slot in self._queue.waiting_for(RELOAD):
            self._queue.withdraw(slot, RELOAD)
        for step in tuple(self._steps):
            if step.is_of_rollout and step.state in OVERLAP:
                step.is_cancelled = step.slot not in failed
                step.reason = failed.get(step.slot, WITHDRAWN)
                self._handle(step, StepEvent.CANCEL)
        self.wake()

    def leave_removals(self) -> None:
        """What is being removed ends by itself: no roll-out waits for that, or tells of it. What
        waits for an earlier process of its slot to end has to be asked for again."""
        for slot in self.waiting():
            if not self._plans.is_wanted(slot):
                self._queue.withdraw(slot, RELOAD)
        for step in self._steps:
            if step.action == "remove":
                step.is_of_rollout = False

    def waiting(self) -> list[Slot]:
        """The slots that wait for their step of a roll-out."""
        return self._queue.waiting_for(RELOAD)

    @property
    def is_rolling(self) -> bool:
        """Is anything of a roll-out waiting or under way?"""
        return bool(self.waiting()) or any(step.is_of_rollout for step in self._steps)

    def forget(self, service: str) -> None:
        """Nothing is left of this service, which is removed."""
        self._queue.forget(service)

    def cancel(self) -> None:
        """The run ends: no worker is replaced any more."""
        self._cancelled = True
        self._queue.clear()
        self._steps.clear()

    # What happens meanwhile.

    def wake(self) -> None:
        """Something changed: see what follows, in the loop's next turn."""
        if not self._wake_pending and not self._cancelled:
            self._wake_pending = True
            self._loop.call_soon(self.advance)

    def advance(self) -> None:
        """See what has happened to the steps under way, and begin what is due."""
        self._wake_pending = False
        if self._cancelled:
            return
        for step in tuple(self._steps):
            known = step.new_pid
            is_other = step.note_old()
            while (event := self._events.next(step, self._loop.time())) is not None:
                self._handle(step, event)
            if is_other or step.new_pid != known:
                # It has its process only now, or its old one is another one.
                self._told(step)
        self.replaced.look_again()
        self._queue.holds_reload = not self.replaced.all_serve()
        due = self._queue.due(self._loop.time(), self._is_free, self._plans.surge)
        for delayed, wait_s in self._queue.take_delayed():
            text = "%s/%d has asked %d times in a row, soon after it came; it is replaced in %.0f s"
            _log.error(text, *delayed.slot, delayed.repeats, wait_s)
        for replacement in due:
            self._begin(replacement)

    def state_changed(self, child: Child) -> None:
        """The state of this child may have changed."""
        if self._slots.is_draining(child):
            if child.state not in _HAS_PROCESS and not child.at_rest:
                # It crashed while draining, and its successor has its slot already.
                child.stop()
            elif child.at_rest and not any(step.old is child for step in self._steps):
                self._commands.forget(child)
        elif self._slots.is_successor(child):
            if not (child.at_rest or child.state in _HAS_PROCESS or child.postponed):
                # It will not be started again and again beside a process that serves.
                child.stop()
        elif self._slots.is_current(child) and child.state is not State.UP:
            # It ended by itself, and is started again anyway.
            self._queue.withdraw(slot_of(child), *(one for one in REASONS if one != RELOAD))
            if (step := self._step_of(slot_of(child))) is not None and step.old is child:
                step.old_asked.clear()
        self.changed(child)

    def changed(self, child: Child | None) -> None:
        """Its state may have changed, or its place in the rotation. None: an upstream's."""
        if child is not None:
            self._falls.changed(child)
            self.replaced.changed(child)
        self.wake()

    def life_confirmed(self) -> None:
        """`lives_since` may have become true for some worker."""
        self._condition.notify()
        self.wake()

    def _lives_since(self, child: Child, at: float) -> bool:
        return self.lives_since(child, at)

    # The steps.

    def _begin(self, replacement: Replacement) -> None:
        slot = replacement.slot
        old = self._slots.current.get(slot)
        action = self._action(replacement, old)
        if action is None:
            self._queue.settled(replacement, self._loop.time(), ok=True)
            self._condition.notify()
            return
        step = Step(replacement, action, old)
        step.is_canary = step.is_of_rollout and slot in self._canaries
        self._canaries.discard(slot)
        self._steps.append(step)
        try:
            if old is not None and action == "remove":
                self._slots.remove(slot)
                self._plans.slot_removed(old.plan)
                self._commands.drain(old)
            else:
                self._begin_new(step)
        except Exception as error:  # noqa: BLE001
            # A fault of ours: a step that nobody looks at again would block its service for ever.
            _log.exception("%s: a bug of penstock", step.name)
            step.reason = f"a bug of penstock: {error!r}"
            step.machine = StepMachine(StepState.FAILING)
        self._told(step)
        self.wake()

    def _begin_new(self, step: Step) -> None:
        """Make the new process, and start it if nothing is in its way."""
        old = step.old
        if old is None:
            wanted = self._plans.worker_plan(step.slot)
        else:
            if not step.is_of_rollout:
                _log.warning("%s; replacing it", step.replacement.why)
            wanted, step.beside = self._plans.successor_plan(old, renewed=step.is_of_rollout)
        step.new = self._make_child(wanted, old)
        self._slots.add_successor(step.new)
        self._rotation.add(step.new)
        if old is None or step.beside:
            self._commands.start(step, step.new)
        elif self._rotation.is_up(old) and not self._others_serve(old):
            step.reason = "it has no second port, and nobody else serves while it is replaced"
            step.machine = StepMachine(StepState.FAILING)
        else:
            step.machine = StepMachine(StepState.ENDING)
            self._commands.drain(old)

    def _action(self, replacement: Replacement, old: Child | None) -> Action | None:
        """What has to be done in this slot; None: nothing."""
        if RELOAD not in replacement.reasons:
            # It may have gone, or ended by itself.
            return "replace" if old is not None and old.state is State.UP else None
        if self._plans.is_wanted(replacement.slot):
            return "add" if old is None else "replace"
        return None if old is None else "remove"

    def _handle(self, step: Step, event: StepEvent) -> None:
        before = step.state
        for command in step.machine.handle(event):
            self._commands.carry_out(step, command)
        if step.state is before:
            return
        step.replacement.is_compared = step.state is StepState.CANARY
        if not step.is_settled and (step.state in ENDED or self._goes_on(step)):
            self._settle(step)
        if step.state in ENDED:
            self._end(step)
        self._told(step)
        self._condition.notify()
        self.wake()

    def _end(self, step: Step) -> None:
        self._steps.remove(step)
        if step.old is not None and self._slots.is_current(step.old):
            # It stays after all, and what it has asked for meanwhile is still so.
            for reason, why in step.old_asked.items():
                self.request(step.old, reason, why)

    def _goes_on(self, step: Step) -> bool:
        """May the next one begin although the old process of this one has not ended?"""
        return step.state is StepState.DRAINING and not step.is_of_rollout

    def _settle(self, step: Step) -> None:
        step.is_settled = True
        if step.ok and step.action == "replace":
            _log.info("%s is replaced", step.name)
        elif step.ok:
            _log.info("%s is %s", step.name, "added" if step.action == "add" else "removed")
        pause_s = self._queue.settled(step.replacement, self._loop.time(), ok=step.ok)
        if step.is_cancelled:
            _log.info("%s is not replaced: %s", step.name, step.reason)
        elif not step.ok:
            again = f"; the next try is in {pause_s:.0f} s at the earliest" if pause_s else ""
            stays = "; the old process stays" if step.old is not None else ""
            # Of a roll-out the error is said once, at its end.
            level = logging.INFO if step.is_of_rollout else logging.ERROR
            text = "%s could not be replaced: %s%s%s"
            _log.log(level, text, step.name, step.reason, stays, again)

    def _others_serve(self, child: Child) -> bool:
        return any(
            self._rotation.is_up(one)
            for one in self._slots.current.values()
            if one is not child and one.plan.service == child.plan.service
        )

    def _started(self, service: str) -> set[int]:
        """The members that have come, or are about to come, in the place of others."""
        steps = (step.new for step in self._steps if step.slot[0] == service)
        return self.replaced.numbers(service) | {new.number for new in steps if new is not None}

    def _step_of(self, slot: Slot) -> Step | None:
        return next((step for step in self._steps if step.slot == slot), None)

    def _is_free(self, slot: Slot) -> bool:
        """Nothing is left there of an earlier replacement: its port is free again."""
        return self._step_of(slot) is None and not self._slots.has_others(slot)

    def _told(self, step: Step) -> None:
        if step.is_of_rollout:
            self.on_step(step)
