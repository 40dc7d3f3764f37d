"""One slot that gets another process, is added or removed: the record of that.

Owns which processes take part, how far it is, and why it failed. `replacement_step` says what
follows from what, `step_events` what has happened, and `replacements` carries it out.
"""

from typing import Literal

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.rollout.replacement_queue import RELOAD, Reason, Replacement
from penstock_supervisor.rollout.replacement_step import StepMachine, StepState

Action = Literal["replace", "add", "remove"]


class Step:
    """One slot that gets another process, or is removed."""

    reason = ""
    """Why it failed, in one line."""
    goes_back = False
    """It brings the slot back to the version before."""
    is_cancelled = False
    """Nobody wants it any more; nothing was wrong with it."""
    is_outdated = False
    """It began before somebody joined the roll-out, who wants what is on the disk since then. What
    becomes of it says nothing about that."""
    detail = ""
    """More about that, in several lines: the last output of the new process, for example."""

    def __init__(self, replacement: Replacement, action: Action, old: Child | None) -> None:
        self.replacement = replacement
        self.is_of_rollout = RELOAD in replacement.reasons
        """It may be one of a roll-out and wanted for another reason at the same time."""
        self.action = action
        self.old = old
        self.old_pid = None if old is None else old.pid
        self.new: Child | None = None
        self.new_pid: int | None = None
        self.beside = True
        """Both processes can run at the same time."""
        self.machine = StepMachine(StepState.DRAINING if action == "remove" else StepState.STARTING)
        self.is_settled = False
        """The next one of the service may begin."""
        self.due = 0.0
        """When the new process has to be in every rotation, or has to be confirmed there."""
        self.up_at = 0.0
        """When it was."""
        self.watched_at = 0.0
        """When it has been there for as long as was asked."""
        self.confirm_at = 0.0
        """Since when it has to be confirmed there."""
        self.is_canary = False
        """It has to be compared before it takes over."""
        self.holds_old = False
        """The old process is held back."""
        self.leaves = ""
        """Why the new process cannot stay, as it says; empty: it can."""
        self.old_asked: dict[Reason, str] = {}
        """What the old process has asked for itself meanwhile, and why: it says so only once."""

    def note_old(self) -> bool:
        """While it has the slot, the old process may end and be started again. True: it is another
        one than before."""
        pid = None if self.old is None else self.old.pid
        if self.ok or pid in (None, self.old_pid):
            return False
        self.old_pid = pid
        return True

    @property
    def slot(self) -> Slot:
        return self.replacement.slot

    @property
    def name(self) -> str:
        return f"{self.slot[0]}/{self.slot[1]}"

    @property
    def state(self) -> StepState:
        return self.machine.state

    @property
    def is_waited_for(self) -> bool:
        """Others of its service wait until it is settled."""
        return not self.is_settled and self.state is not StepState.CANARY

    @property
    def ok(self) -> bool:
        return self.state in (StepState.DRAINING, StepState.DONE)
