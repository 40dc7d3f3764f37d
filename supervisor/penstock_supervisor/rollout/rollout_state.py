"""The states of a roll-out, as a total table.

A roll-out brings a run from one configuration, and one version of its programs, to another.

    WAITING       another one has to end first
    APPLYING      what proxies and the supervisor itself act on is changed; new addresses open
    ROLLING       one slot after the other gets its new process; somebody who joins has all begin
                  anew, once
    CANARY        one slot has it, and is compared with the others
    FINISHING     what the new configuration no longer has is taken away
    ROLLING_BACK  slots that were changed get a process of the version before
    REVERTING     the settings before are in force again
    ENDED

It ends in one of six ways (`Result`). A failure goes the whole way back, as far as there is
something to go back to, and so does a fault of ours. One that is superseded stops where it is and
takes nothing away: the next one goes on from there, or back to what was before both.

Nothing here touches a process, a clock or the event loop (`rollouts` does).
"""

from enum import Enum, StrEnum, auto
from typing import Final, NamedTuple


class RolloutState(StrEnum):
    """The values are also what people are shown."""

    WAITING = auto()
    APPLYING = auto()
    ROLLING = auto()
    CANARY = auto()
    FINISHING = auto()
    ROLLING_BACK = auto()
    REVERTING = auto()
    ENDED = auto()


class Result(StrEnum):
    """The values are also those of the label `result`."""

    SUCCEEDED = auto()
    REFUSED = auto()
    """The configuration cannot be had; nothing was begun."""
    ABORTED = auto()
    """The new version failed."""
    ROLLED_BACK = auto()
    """The canary was worse than the others."""
    SUPERSEDED = auto()
    CANCELLED = auto()
    """The run was stopped."""


class RolloutEvent(Enum):
    BEGIN = auto()
    APPLIED = auto()
    REFUSED = auto()
    """It cannot be applied, which was found before anything was changed."""
    APPLY_FAILED = auto()
    FIRST_DONE = auto()
    """One slot is done, more are to come, and the roll-out has a canary."""
    ALL_DONE = auto()
    """Every slot that was asked for is done, also on the way back."""
    STEP_FAILED = auto()
    GOOD = auto()
    """The canary is no worse than the others."""
    WORSE = auto()
    FINISHED = auto()
    """What had to be taken away, or back, is."""
    SUPERSEDE = auto()
    JOIN = auto()
    """Somebody else wants the same, but what is on the disk now."""
    FAULT = auto()
    """A bug of ours: a command, or what was waited for, has raised."""
    STOP = auto()


class RolloutCommand(Enum):
    APPLY = auto()
    ROLL = auto()
    """Ask for all slots that are to be changed; with a canary for one of them."""
    ROLL_REST = auto()
    ROLL_ANEW = auto()
    """Take back what has not taken over its slot, so that all is asked for again."""
    WATCH_CANARY = auto()
    WITHDRAW = auto()
    """Take back what was asked for and has not taken over its slot."""
    ROLL_BACK = auto()
    FINISH = auto()
    LEAVE = auto()
    """Leave all that would be taken away to the one that supersedes this."""
    REVERT = auto()
    REPORT = auto()


class Transition(NamedTuple):
    to: RolloutState
    commands: tuple[RolloutCommand, ...] = ()
    result: Result | None = None
    """How the roll-out ends, as is known now."""


S, C = RolloutState, RolloutCommand


def _stays(state: RolloutState, **changes: Transition) -> dict[RolloutEvent, Transition]:
    """A row in which every event that is not named has no effect."""
    return {event: changes.get(event.name, Transition(state)) for event in RolloutEvent}


_CANCELLED: Final = Transition(S.ENDED, (C.WITHDRAW, C.REPORT), Result.CANCELLED)
# The canary too: what it was compared for is not what is wanted now.
_JOINED: Final = Transition(S.ROLLING, (C.ROLL_ANEW,))
_SUPERSEDED: Final = Transition(S.FINISHING, (C.WITHDRAW, C.LEAVE), Result.SUPERSEDED)
_ABORTED: Final = Transition(S.ROLLING_BACK, (C.WITHDRAW, C.ROLL_BACK), Result.ABORTED)

TRANSITIONS: Final[dict[RolloutState, dict[RolloutEvent, Transition]]] = {
    S.WAITING: _stays(
        S.WAITING,
        BEGIN=Transition(S.APPLYING, (C.APPLY,)),
        SUPERSEDE=Transition(S.ENDED, (C.REPORT,), Result.SUPERSEDED),
        FAULT=_ABORTED,
        STOP=Transition(S.ENDED, (C.REPORT,), Result.CANCELLED),
    ),
    S.APPLYING: _stays(
        S.APPLYING,
        APPLIED=Transition(S.ROLLING, (C.ROLL,)),
        REFUSED=Transition(S.ENDED, (C.REPORT,), Result.REFUSED),
        # It may have to bring back what a superseded one has changed.
        APPLY_FAILED=_ABORTED,
        FAULT=_ABORTED,
        STOP=_CANCELLED,
    ),
    S.ROLLING: _stays(
        S.ROLLING,
        FIRST_DONE=Transition(S.CANARY, (C.WATCH_CANARY,)),
        ALL_DONE=Transition(S.FINISHING, (C.FINISH,), Result.SUCCEEDED),
        STEP_FAILED=_ABORTED,
        SUPERSEDE=_SUPERSEDED,
        JOIN=_JOINED,
        FAULT=_ABORTED,
        STOP=_CANCELLED,
    ),
    S.CANARY: _stays(
        S.CANARY,
        GOOD=Transition(S.ROLLING, (C.ROLL_REST,)),
        WORSE=Transition(S.ROLLING_BACK, (C.WITHDRAW, C.ROLL_BACK), Result.ROLLED_BACK),
        STEP_FAILED=_ABORTED,
        SUPERSEDE=_SUPERSEDED,
        JOIN=_JOINED,
        FAULT=_ABORTED,
        STOP=_CANCELLED,
    ),
    # What is on its way to an end is not superseded: the next one waits for that.
    S.FINISHING: _stays(
        S.FINISHING,
        FINISHED=Transition(S.ENDED, (C.REPORT,)),
        # What is taken away cannot be had back: the new version serves, and this is told.
        FAULT=Transition(S.ENDED, (C.REPORT,), Result.ABORTED),
        STOP=_CANCELLED,
    ),
    S.ROLLING_BACK: _stays(
        S.ROLLING_BACK,
        # A slot that cannot go back stays as it is, and the others go on.
        ALL_DONE=Transition(S.REVERTING, (C.REVERT,)),
        FAULT=Transition(S.REVERTING, (C.REVERT,)),
        STOP=_CANCELLED,
    ),
    S.REVERTING: _stays(
        S.REVERTING,
        FINISHED=Transition(S.ENDED, (C.REPORT,)),
        FAULT=Transition(S.ENDED, (C.REPORT,)),
        STOP=_CANCELLED,
    ),
    S.ENDED: _stays(S.ENDED),
}


class RolloutMachine:
    """The one owner of a roll-out's state and result."""

    __slots__ = ("_result", "_state")

    def __init__(self) -> None:
        self._state = RolloutState.WAITING
        self._result: Result | None = None

    @property
    def state(self) -> RolloutState:
        return self._state

    @property
    def result(self) -> Result | None:
        """None as long as it is not certain."""
        return self._result

    def handle(self, event: RolloutEvent) -> tuple[RolloutCommand, ...]:
        """Change the state and return the commands."""
        step = TRANSITIONS[self._state][event]
        self._state = step.to
        # What went wrong first is what is told; a stop ends everything.
        is_told = self._result in (None, Result.SUCCEEDED) or step.result is Result.CANCELLED
        if step.result is not None and is_told:
            self._result = step.result
        return step.commands
