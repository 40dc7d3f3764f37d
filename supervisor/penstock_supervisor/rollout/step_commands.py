"""Carries out the commands of one step on its processes.

Owns what a command means for the two processes of a slot: the new one is started, lets clients in,
is looked at, takes over; the old one is held, let go, told to leave; and who is gone is forgotten
everywhere. Must not know whose turn it is, or what follows (`replacements`, `replacement_step`).
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Final

from penstock_supervisor.children import plan
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.plans import Plans
from penstock_supervisor.rollout.replaced_workers import ReplacedWorkers
from penstock_supervisor.rollout.replacement_step import StepCommand
from penstock_supervisor.rollout.step import Step
from penstock_supervisor.rollout.step_events import SLACK_S
from penstock_supervisor.rotation.holds import HoldCause
from penstock_supervisor.rotation.rotation import Rotation
from penstock_worker import contract


class StepCommands:
    """`wake` is called when there may be more to do."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        slots: Slots,
        rotation: Rotation,
        plans: Plans,
        replaced: ReplacedWorkers,
        wake: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._rotation = rotation
        self._plans = plans
        self._replaced = replaced
        self._wake = wake

    def carry_out(self, step: Step, command: StepCommand) -> None:
        if command is StepCommand.TAKE_OVER:
            self._take_over(step)
        elif step.old is not None and command in _OF_OLD:
            _OF_OLD[command](self, step, step.old)
        elif step.new is not None and command in _OF_NEW:
            _OF_NEW[command](self, step, step.new)

    def start(self, step: Step, new: Child) -> None:
        step.due = self._loop.time() + new.plan.start_s
        self._loop.call_at(step.due, self._wake)
        self._loop.call_at(step.due + 2 * SLACK_S, self._wake)
        if step.is_of_rollout:
            new.start()
        else:
            new.start_as_replacement(step.replacement.reason)
        step.new_pid = new.pid

    def _watch(self, step: Step, new: Child) -> None:
        """It is in every rotation: let it accept, if it does that by itself, and look at it."""
        if new.plan.awaits_accept:
            new.send({"cmd": contract.ACCEPT})
            new.plan = plan.accepting(new.plan)
        step.up_at = self._loop.time()
        step.watched_at = step.up_at + self._watch_s(step)
        if step.watched_at > step.up_at:
            self._loop.call_at(step.watched_at, self._wake)

    def _confirm(self, step: Step, new: Child) -> None:
        """It has as much time for this as it had for its start."""
        step.confirm_at = self._loop.time()
        step.due = step.confirm_at + new.plan.start_s
        self._loop.call_at(step.due, self._wake)
        self._rotation.confirm(new, self._wake)

    def _take_over(self, step: Step) -> None:
        assert step.new is not None
        old = self._slots.take_over(step.new)
        if step.is_of_rollout:
            self._replaced.add(step.new, step.up_at)
        if old is not None:
            self.drain(old)

    def _hold_old(self, step: Step, old: Child) -> None:
        """Nobody picks it; its connections stay. Nor the process that it is started again as."""
        step.holds_old = True
        self._rotation.hold(old, "its successor is compared with the others", HoldCause.COMPARED)
        if _accepts_by_itself(old):
            old.plan = plan.awaiting_accept(old.plan)
            old.send({"cmd": contract.PAUSE})

    def _release_old(self, step: Step, old: Child) -> None:
        if not step.holds_old:
            return
        step.holds_old = False
        self._rotation.release(old, HoldCause.COMPARED)
        if _accepts_by_itself(old):
            old.plan = plan.accepting(old.plan)
            # Also one that has just been started: it waits for this.
            old.send({"cmd": contract.ACCEPT})

    def drain(self, child: Child) -> None:
        """Nobody picks it any more; then it is told to leave."""
        if child.state is State.UP:
            self._rotation.drain(child, child.stop)
        else:
            # It crashed meanwhile, or was not there. It must not be started again.
            child.stop()

    def _forget_old(self, _: Step, old: Child) -> None:
        self.forget(old)

    def forget(self, old: Child) -> None:
        self._slots.forget(old)
        self._rotation.remove(old)

    def _forget_new(self, step: Step, new: Child) -> None:
        step.detail = step.detail or new.starts.last_output.text()
        self._slots.drop_successor(new)
        self._rotation.remove(new)
        if step.old is not None and not step.beside and step.old.at_rest:
            # The only port of the slot was the new one's.
            step.old.start()

    def _watch_s(self, step: Step) -> float:
        return self._plans.watch_s(step.slot[0]) if step.is_of_rollout else 0.0


def _accepts_by_itself(child: Child) -> bool:
    """Nobody picks it: it has to be told itself that it must not accept, and can be told."""
    return child.plan.inherits_listener and child.plan.runs_our_code


_OF_OLD: Final[dict[StepCommand, Callable[[StepCommands, Step, Child], None]]] = {
    StepCommand.FORGET_OLD: StepCommands._forget_old,
    StepCommand.HOLD_OLD: StepCommands._hold_old,
    StepCommand.RELEASE_OLD: StepCommands._release_old,
}
_OF_NEW: Final[dict[StepCommand, Callable[[StepCommands, Step, Child], None]]] = {
    StepCommand.START: StepCommands.start,
    StepCommand.ARM_WATCH: StepCommands._watch,
    StepCommand.CONFIRM: StepCommands._confirm,
    StepCommand.DROP_NEW: lambda self, _, new: self.drain(new),
    StepCommand.STOP_NEW: lambda self, _, new: new.stop(),
    StepCommand.FORGET_NEW: StepCommands._forget_new,
}
