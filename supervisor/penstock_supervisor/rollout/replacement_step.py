"""The steps by which one slot gets another process, as a total table.

Every change of a worker goes through this table: a roll-out, a retirement, a worker that hangs, a
slot that is added or removed. So two things are true of all of them. The old process serves until
the new one is in every rotation, and has stayed there for as long as was asked. And when the new
one fails before that, the old one was never touched.

    STARTING   the new process starts
    CHECKING   it is ready, and every proxy checks it
    WATCHING   it is in every rotation, beside the old one
    CONFIRMING it has been there for as long as was asked, and every proxy checks it once more: one
               that fails its checks since a moment ago has not fallen yet
    CANARY     the old one is held back, and the new one is compared with the others of the service
    DRAINING   the slot is its own; the old one is picked no more, finishes and ends
    DONE
    FAILING    it has failed, and is picked no more, finishes and ends; the old one stays
    FAILED

A slot that is added has no old process, and one that is removed no new one. Where both cannot run
beside each other, because the slot has one port only, the old one ends first (ENDING), and is
started again if the new one fails.

Nothing here touches a process, a clock or the event loop (`replacements` does). It is a table so
that a pair of state and event that nobody thought of fails a test, and not a deploy.
"""

from enum import Enum, StrEnum, auto
from typing import Final, NamedTuple


class StepState(StrEnum):
    """The values are also what people are shown."""

    ENDING = auto()
    STARTING = auto()
    CHECKING = auto()
    WATCHING = auto()
    CONFIRMING = auto()
    CANARY = auto()
    DRAINING = auto()
    DONE = auto()
    FAILING = auto()
    FAILED = auto()


class StepEvent(Enum):
    READY = auto()
    """The new process is ready."""
    UP = auto()
    """It is in every rotation."""
    FELL = auto()
    """It is in a rotation no more, for a reason of its own."""
    EXITED = auto()
    """It has ended, and is not started again."""
    LATE = auto()
    """The time to come into every rotation is over."""
    LEAVES = auto()
    """It has asked for another process in its place, or cannot be told anything any more."""
    WATCHED = auto()
    """It has been there for as long as was asked."""
    CONFIRMED = auto()
    """It is well, and nothing more is asked."""
    COMPARE = auto()
    """It is well, and it is a canary that was not compared yet."""
    GOOD = auto()
    """The canary is no worse than the others."""
    OLD_ENDED = auto()
    """The old process has ended, and is not started again."""
    CANCEL = auto()
    """Nobody wants the replacement any more."""


class StepCommand(Enum):
    START = auto()
    ARM_WATCH = auto()
    CONFIRM = auto()
    """Have it checked once more."""
    HOLD_OLD = auto()
    """The old one is picked no more, and waits for what becomes of the new one."""
    RELEASE_OLD = auto()
    """It is picked again."""
    TAKE_OVER = auto()
    """The slot is the new process's. The old one is picked no more, and told to leave."""
    FORGET_OLD = auto()
    DROP_NEW = auto()
    """It is picked no more, finishes what it has, and ends."""
    STOP_NEW = auto()
    """It was never picked: it ends."""
    FORGET_NEW = auto()


class Step(NamedTuple):
    """The next state, and the commands to carry out, in this order."""

    to: StepState
    commands: tuple[StepCommand, ...] = ()


def _stays(state: StepState, **changes: Step) -> dict[StepEvent, Step]:
    """A row in which every event that is not named has no effect."""
    return {event: changes.get(event.name, Step(state)) for event in StepEvent}


_GONE: Final = Step(StepState.FAILED, (StepCommand.FORGET_NEW,))
_DROPPED: Final = Step(StepState.FAILING, (StepCommand.DROP_NEW,))
_TAKES_OVER: Final = Step(StepState.DRAINING, (StepCommand.TAKE_OVER,))
_CONFIRMS: Final = Step(StepState.CONFIRMING, (StepCommand.CONFIRM,))
# It may be one that was compared: then the old one is held back.
_UNCONFIRMED: Final = Step(StepState.FAILING, (StepCommand.RELEASE_OLD, StepCommand.DROP_NEW))
_UNCONFIRMED_GONE: Final = Step(StepState.FAILED, (StepCommand.RELEASE_OLD, StepCommand.FORGET_NEW))
_STOPPED: Final = Step(StepState.FAILING, (StepCommand.STOP_NEW,))

TRANSITIONS: Final[dict[StepState, dict[StepEvent, Step]]] = {
    # What ends is not called back, also not by a cancellation: it may have closed its listener.
    StepState.ENDING: _stays(
        StepState.ENDING,
        OLD_ENDED=Step(StepState.STARTING, (StepCommand.START,)),
    ),
    StepState.STARTING: _stays(
        StepState.STARTING,
        # Whatever becomes ready joins, and is checked then.
        READY=Step(StepState.CHECKING),
        EXITED=_GONE,
        LATE=_STOPPED,
        CANCEL=_STOPPED,
    ),
    # One that fails its checks may only be warming up: it has time for that.
    StepState.CHECKING: _stays(
        StepState.CHECKING,
        UP=Step(StepState.WATCHING, (StepCommand.ARM_WATCH,)),
        LEAVES=_DROPPED,
        EXITED=_GONE,
        LATE=_DROPPED,
        CANCEL=_DROPPED,
    ),
    StepState.WATCHING: _stays(
        StepState.WATCHING,
        FELL=_DROPPED,
        LEAVES=_DROPPED,
        EXITED=_GONE,
        WATCHED=_CONFIRMS,
        # Without a time to watch it, its first check was enough.
        CONFIRMED=_TAKES_OVER,
        COMPARE=Step(StepState.CANARY, (StepCommand.HOLD_OLD,)),
        CANCEL=_DROPPED,
    ),
    StepState.CONFIRMING: _stays(
        StepState.CONFIRMING,
        CONFIRMED=_TAKES_OVER,
        COMPARE=Step(StepState.CANARY, (StepCommand.HOLD_OLD,)),
        FELL=_UNCONFIRMED,
        LEAVES=_UNCONFIRMED,
        LATE=_UNCONFIRMED,
        EXITED=_UNCONFIRMED_GONE,
        CANCEL=_UNCONFIRMED,
    ),
    StepState.CANARY: _stays(
        StepState.CANARY,
        GOOD=_CONFIRMS,
        FELL=_UNCONFIRMED,
        LEAVES=_UNCONFIRMED,
        EXITED=_UNCONFIRMED_GONE,
        CANCEL=_UNCONFIRMED,
    ),
    # The slot has its new process. What becomes of that is a worker's everyday life.
    StepState.DRAINING: _stays(
        StepState.DRAINING,
        OLD_ENDED=Step(StepState.DONE, (StepCommand.FORGET_OLD,)),
    ),
    StepState.DONE: _stays(StepState.DONE),
    StepState.FAILING: _stays(StepState.FAILING, EXITED=_GONE),
    StepState.FAILED: _stays(StepState.FAILED),
}

WITHDRAWN: Final = "its roll-out does not go on with it"
"""The reason of a step that was taken back: nothing was wrong with it."""
ENDED: Final = (StepState.DONE, StepState.FAILED)
OVERLAP: Final = (
    StepState.STARTING,
    StepState.CHECKING,
    StepState.WATCHING,
    StepState.CONFIRMING,
    StepState.CANARY,
)
"""The new process can still fail without harm."""


class StepMachine:
    """The one owner of a step's state."""

    __slots__ = ("_state",)

    def __init__(self, state: StepState) -> None:
        """`state`: ENDING, STARTING, or DRAINING for a slot that is removed."""
        self._state = state

    @property
    def state(self) -> StepState:
        return self._state

    def handle(self, event: StepEvent) -> tuple[StepCommand, ...]:
        """Change the state and return the commands."""
        step = TRANSITIONS[self._state][event]
        self._state = step.to
        return step.commands
