"""What has happened to a step: what its processes and the rotation show, as events of its table.

Owns the words for a failure. It only looks: `replacements` acts. No I/O; `now` is the clock of the
event loop, in seconds.
"""

from typing import TYPE_CHECKING, Final

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.rollout.falls import Falls
from penstock_supervisor.rollout.replacement_step import ENDED, StepEvent, StepState
from penstock_supervisor.rollout.step import Step
from penstock_supervisor.rotation.rotation import Rotation

if TYPE_CHECKING:
    from collections.abc import Callable

SLACK_S: Final = 1.0
"""A process that does not get ready in time is found out, and described, by its own timer. Only a
start that the supervisor itself cannot make is ended by the time of the step."""


class StepEvents:
    def __init__(
        self, rotation: Rotation, falls: Falls, lives_since: "Callable[[Child, float], bool]"
    ) -> None:
        """`lives_since`: as `Heartbeat.lives_since`."""
        self._rotation = rotation
        self._falls = falls
        self._lives_since = lives_since
        self._looks: dict[StepState, Callable[[Step, Child, float], StepEvent | None]] = {
            StepState.STARTING: self._starting,
            StepState.CHECKING: self._checking,
            StepState.WATCHING: self._watching,
            StepState.CONFIRMING: self._confirming,
            StepState.CANARY: self._serving,
        }

    def next(self, step: Step, now: float) -> StepEvent | None:
        """What has happened since the last event; None: nothing."""
        state, new, old = step.state, step.new, step.old
        if state in (StepState.ENDING, StepState.DRAINING):
            return StepEvent.OLD_ENDED if old is None or old.at_rest else None
        if state in ENDED:
            return None
        if new is None:
            # It was never made.
            return StepEvent.EXITED
        step.new_pid = new.pid or step.new_pid
        if new.at_rest:
            return self._ended(step, new)
        look = self._looks.get(state)
        return None if look is None else look(step, new, now)

    def _ended(self, step: Step, new: Child) -> StepEvent:
        if step.state is not StepState.FAILING:
            served = step.state not in (StepState.STARTING, StepState.CHECKING)
            why = new.starts.why_ended or "it has ended"
            step.reason = f"{why}, while it was in the rotation" if served else why
        return StepEvent.EXITED

    def _starting(self, step: Step, new: Child, now: float) -> StepEvent | None:
        if new.state is State.UP:
            return StepEvent.READY
        if new.state is State.LATE:
            # It is killed for that, and its end is told in a moment.
            return None
        # What kept the supervisor from it, such as a lack of descriptors.
        why = f": {new.starts.why_ended}" if new.starts.why_ended else ""
        return self._late(step, f"it could not be started in time{why}", now - SLACK_S)

    def _checking(self, step: Step, new: Child, now: float) -> StepEvent | None:
        if step.leaves:
            step.reason = step.leaves
            return StepEvent.LEAVES
        if self._rotation.is_up(new):
            return StepEvent.UP
        why = self._rotation.why_not_up(new) or "no proxy has reported a good check"
        return self._late(
            step, f"it has not passed its check within {new.plan.start_s:g} s: {why}", now
        )

    def _serving(self, step: Step, new: Child, now: float) -> StepEvent | None:
        """Whatever it waits for: is it still in the rotation?"""
        if new.state is not State.UP:
            return None
        has_fallen = self._falls.has_fallen(new)
        if not (has_fallen or step.leaves):
            return None
        why = self._rotation.why_not_up(new) if has_fallen else step.leaves
        step.reason = f"it was in the rotation for {now - step.up_at:.1f} s: {why}"
        return StepEvent.FELL if has_fallen else StepEvent.LEAVES

    def _watching(self, step: Step, new: Child, now: float) -> StepEvent | None:
        if (event := self._serving(step, new, now)) is not None:
            return event
        if new.state is not State.UP or now < step.watched_at:
            return None
        return StepEvent.WATCHED if step.watched_at > step.up_at else _passed(step)

    def _confirming(self, step: Step, new: Child, now: float) -> StepEvent | None:
        if (event := self._serving(step, new, now)) is not None:
            return event
        # A check may be no more than a connect, which a stopped process does not refuse.
        # One that is ejected passes its checks, and its proxy confirms nothing before it is back.
        has_passed = new.state is State.UP and (
            self._rotation.is_confirmed(new) or self._falls.is_excused(new)
        )
        if has_passed and self._lives_since(new, step.confirm_at):
            return _passed(step)
        why = "it does not answer" if has_passed else self._rotation.why_not_up(new)
        why = f"it has not passed a check again within {new.plan.start_s:g} s{why and ': '}{why}"
        return self._late(step, why, now)

    def _late(self, step: Step, why: str, now: float) -> StepEvent | None:
        if now < step.due:
            return None
        step.reason = why
        return StepEvent.LATE


def _passed(step: Step) -> StepEvent:
    return StepEvent.COMPARE if step.is_canary else StepEvent.CONFIRMED
