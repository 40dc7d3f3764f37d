"""The life of one child process, as a total table.

Every state and every transition is in TRANSITIONS. `child` executes the commands in order
and reports back what happened; whether an exit was one too many is decided by `restart_policy`
and arrives here as its own event.

A child has one timer. Arming it replaces what was armed before, so there is never a
question whose deadline just passed.

Nothing here touches a process, a clock or the event loop. Why a table and not methods: the
supervisor is the only part with nobody above it. A pair of state and event that nobody
thought of has to be a failing test, not a dead cluster.
"""

from enum import Enum, auto
from typing import Final, NamedTuple


class State(Enum):
    DOWN = auto()
    STARTING = auto()
    LATE = auto()
    """Missed its start deadline and was killed; its exit is still to come."""
    UP = auto()
    STOPPING = auto()
    BACKOFF = auto()
    GIVEN_UP = auto()


class LifecycleEvent(Enum):
    START = auto()
    READY = auto()
    EXITED = auto()
    """The process is gone, or could not be made, and may be started again."""
    SPENT = auto()
    """The same, and it may not: too many exits, or the child said it is no use."""
    DEADLINE = auto()
    STOP = auto()
    HALT = auto()
    """Stop without asking: somebody said stop twice."""


class Command(Enum):
    SPAWN = auto()
    TERMINATE = auto()
    KILL = auto()
    ARM_START = auto()
    ARM_KILL = auto()
    ARM_BACKOFF = auto()
    DISARM = auto()
    JOIN = auto()
    """Tell the proxy that the slot can be picked."""
    LEAVE = auto()
    """Tell the proxy that it cannot."""
    GIVE_UP = auto()
    """Raise the alarm: nobody will start this child again."""


class Step(NamedTuple):
    """Where an event leads, and what has to be done on the way, in this order."""

    to: State
    commands: tuple[Command, ...] = ()


class ImpossibleEventError(Exception):
    """Something was reported that cannot happen in this state."""


_SPAWN: Final = Step(State.STARTING, (Command.SPAWN, Command.ARM_START))
_HALT: Final = Step(State.STOPPING, (Command.DISARM, Command.KILL))
_REST: Final = Step(State.DOWN, (Command.DISARM,))

# None means impossible. A cell that is merely dull leads back to its own state.
TRANSITIONS: Final[dict[State, dict[LifecycleEvent, Step | None]]] = {
    State.DOWN: {
        LifecycleEvent.START: _SPAWN,
        LifecycleEvent.READY: None,
        LifecycleEvent.EXITED: None,
        # A replacement that would have been one too many.
        LifecycleEvent.SPENT: Step(State.GIVEN_UP, (Command.GIVE_UP,)),
        LifecycleEvent.DEADLINE: None,
        LifecycleEvent.STOP: Step(State.DOWN),
        LifecycleEvent.HALT: Step(State.DOWN),
    },
    State.STARTING: {
        LifecycleEvent.START: Step(State.STARTING),
        LifecycleEvent.READY: Step(State.UP, (Command.DISARM, Command.JOIN)),
        LifecycleEvent.EXITED: Step(State.BACKOFF, (Command.ARM_BACKOFF,)),
        LifecycleEvent.SPENT: Step(State.GIVEN_UP, (Command.DISARM, Command.GIVE_UP)),
        # Killed, not terminated: a child that never got ready has nothing to drain.
        LifecycleEvent.DEADLINE: Step(State.LATE, (Command.KILL,)),
        LifecycleEvent.STOP: Step(State.STOPPING, (Command.TERMINATE, Command.ARM_KILL)),
        LifecycleEvent.HALT: _HALT,
    },
    State.LATE: {
        LifecycleEvent.START: Step(State.LATE),
        # It answered between the deadline and its death. Nobody may be sent there.
        LifecycleEvent.READY: Step(State.LATE),
        LifecycleEvent.EXITED: Step(State.BACKOFF, (Command.ARM_BACKOFF,)),
        LifecycleEvent.SPENT: Step(State.GIVEN_UP, (Command.GIVE_UP,)),
        LifecycleEvent.DEADLINE: None,
        LifecycleEvent.STOP: Step(State.STOPPING),
        LifecycleEvent.HALT: Step(State.STOPPING),
    },
    State.UP: {
        LifecycleEvent.START: Step(State.UP),
        LifecycleEvent.READY: Step(State.UP),
        LifecycleEvent.EXITED: Step(State.BACKOFF, (Command.LEAVE, Command.ARM_BACKOFF)),
        LifecycleEvent.SPENT: Step(State.GIVEN_UP, (Command.LEAVE, Command.GIVE_UP)),
        LifecycleEvent.DEADLINE: None,
        LifecycleEvent.STOP: Step(
            State.STOPPING, (Command.LEAVE, Command.TERMINATE, Command.ARM_KILL)
        ),
        LifecycleEvent.HALT: Step(State.STOPPING, (Command.LEAVE, Command.KILL)),
    },
    State.STOPPING: {
        # A stop is never taken back: the child may already have closed its listener.
        LifecycleEvent.START: Step(State.STOPPING),
        LifecycleEvent.READY: Step(State.STOPPING),
        LifecycleEvent.EXITED: _REST,
        LifecycleEvent.SPENT: _REST,
        LifecycleEvent.DEADLINE: Step(State.STOPPING, (Command.KILL,)),
        LifecycleEvent.STOP: Step(State.STOPPING),
        LifecycleEvent.HALT: _HALT,
    },
    State.BACKOFF: {
        # Asked for by somebody who knows more than the timer: the wait is over.
        LifecycleEvent.START: _SPAWN,
        LifecycleEvent.READY: None,
        LifecycleEvent.EXITED: None,
        LifecycleEvent.SPENT: None,
        LifecycleEvent.DEADLINE: _SPAWN,
        LifecycleEvent.STOP: _REST,
        LifecycleEvent.HALT: _REST,
    },
    State.GIVEN_UP: {
        # Given up by us, not by the person who asks.
        LifecycleEvent.START: _SPAWN,
        LifecycleEvent.READY: None,
        LifecycleEvent.EXITED: None,
        LifecycleEvent.SPENT: None,
        LifecycleEvent.DEADLINE: None,
        LifecycleEvent.STOP: Step(State.DOWN),
        LifecycleEvent.HALT: Step(State.DOWN),
    },
}


class Life:
    """The one owner of a child's state."""

    __slots__ = ("_state", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._state = State.DOWN

    @property
    def state(self) -> State:
        return self._state

    @property
    def at_rest(self) -> bool:
        """Without a process, a timer or an intention."""
        return self._state in (State.DOWN, State.GIVEN_UP)

    def handle(self, event: LifecycleEvent) -> tuple[Command, ...]:
        """Move on and return what to do; ImpossibleEventError is a bug of the caller."""
        step = TRANSITIONS[self._state][event]
        if step is None:
            raise ImpossibleEventError(f"{self.name}: {event.name} while {self._state.name}")
        self._state = step.to
        return step.commands
