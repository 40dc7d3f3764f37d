"""The lifecycle of one child process, as a total table.

Every state and every transition is in TRANSITIONS. `child` executes the commands in order and
reports what happened. `restart_policy` decides whether there were too many exits; the result
arrives here as an event of its own.

What people see of a process is one of six words, `ProcessState`, in log, status, metrics and
docs. The table has more states, because it has to know for what it waits. Two words depend on
more than the table. A process is *draining* when another one has its slot: no proxy picks it any
more, and it finishes what it has. It is *stopping* when it was told to exit and nobody takes its
place. In both cases it has until `timeouts.stop`.

A child has one timer. Arming it replaces the previous deadline, so it is always clear which
deadline has passed.

Nothing here touches a process, a clock or the event loop. It is a table and not methods because
no other process restarts the supervisor: a pair of state and event that nobody thought of must
fail a test, and not stop a cluster.

See docs/decisions/0016-a-childs-life-is-a-total-table.md.
"""

from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from typing import Final, NamedTuple


class ProcessState(StrEnum):
    """What people are shown; the values are also those of the label `state`."""

    STARTING = auto()
    READY = auto()
    """It serves, as far as it says. Whether it is picked is its member state."""
    DRAINING = auto()
    STOPPING = auto()
    EXITED = auto()
    """There is no process: it was stopped, or the next start is due in a moment."""
    CRASH_LOOP = auto()
    """There is no process: it ended too often, and is started again only now and then."""


class State(Enum):
    DOWN = auto()
    STARTING = auto()
    LATE = auto()
    """Missed its start deadline and was killed, but has not exited yet."""
    UP = auto()
    STOPPING = auto()
    BACKOFF = auto()
    CRASH_LOOP = auto()
    """Ended too often; waits for the next try, for longer than in BACKOFF."""
    GIVEN_UP = auto()
    """Ended too often, and nobody but an operator starts it again."""


SHOWN: Final[Mapping[State, ProcessState]] = {
    State.DOWN: ProcessState.EXITED,
    State.STARTING: ProcessState.STARTING,
    State.LATE: ProcessState.STOPPING,
    State.UP: ProcessState.READY,
    State.STOPPING: ProcessState.STOPPING,
    State.BACKOFF: ProcessState.EXITED,
    State.CRASH_LOOP: ProcessState.CRASH_LOOP,
    State.GIVEN_UP: ProcessState.CRASH_LOOP,
}
_HAS_SERVED: Final = (State.UP, State.STOPPING)


def shown(state: State, *, replaced: bool) -> ProcessState:
    """The word for people. `replaced`: another process has, or gets, its slot."""
    return ProcessState.DRAINING if replaced and state in _HAS_SERVED else SHOWN[state]


class LifecycleEvent(Enum):
    START = auto()
    READY = auto()
    EXITED = auto()
    """The process is gone, or could not be started, and may be restarted."""
    TOO_OFTEN = auto()
    """The same, but it ended too often: the next start has to wait for longer."""
    NO_RESTART = auto()
    """The same, but it must not be restarted: too many exits, or a restart would not help."""
    DEADLINE = auto()
    STOP = auto()
    STOP_NOW = auto()
    """Kill it: the run was told to stop a second time, or failed."""


class Command(Enum):
    SPAWN = auto()
    TERMINATE = auto()
    KILL = auto()
    ARM_START = auto()
    ARM_KILL = auto()
    ARM_BACKOFF = auto()
    ARM_RETRY = auto()
    """As ARM_BACKOFF, with the longer wait of a crash loop."""
    ARM_PROOF = auto()
    """It is ready: wait until it has proved that it can stay so."""
    PROVED = auto()
    """It has: its earlier exits count no more."""
    DISARM = auto()
    JOIN = auto()
    """Tell the proxies that they can pick the slot."""
    LEAVE = auto()
    """Tell the proxies that they cannot."""
    GIVE_UP = auto()
    """Report that this child ended too often, or is not restarted for another reason."""


class Step(NamedTuple):
    """The next state, and the commands to execute, in this order."""

    to: State
    commands: tuple[Command, ...] = ()


class ImpossibleEventError(Exception):
    """An event was reported that cannot happen in this state."""


_SPAWN: Final = Step(State.STARTING, (Command.SPAWN, Command.ARM_START))
_STOP_NOW: Final = Step(State.STOPPING, (Command.DISARM, Command.KILL))
_REST: Final = Step(State.DOWN, (Command.DISARM,))
_CRASH_LOOP: Final = Step(State.CRASH_LOOP, (Command.ARM_RETRY, Command.GIVE_UP))

# None means impossible. An event without effect leads back to the same state.
TRANSITIONS: Final[dict[State, dict[LifecycleEvent, Step | None]]] = {
    State.DOWN: {
        LifecycleEvent.START: _SPAWN,
        LifecycleEvent.READY: None,
        LifecycleEvent.EXITED: None,
        LifecycleEvent.TOO_OFTEN: None,
        LifecycleEvent.NO_RESTART: None,
        LifecycleEvent.DEADLINE: None,
        LifecycleEvent.STOP: Step(State.DOWN),
        LifecycleEvent.STOP_NOW: Step(State.DOWN),
    },
    State.STARTING: {
        LifecycleEvent.START: Step(State.STARTING),
        LifecycleEvent.READY: Step(State.UP, (Command.ARM_PROOF, Command.JOIN)),
        LifecycleEvent.EXITED: Step(State.BACKOFF, (Command.ARM_BACKOFF,)),
        LifecycleEvent.TOO_OFTEN: _CRASH_LOOP,
        LifecycleEvent.NO_RESTART: Step(State.GIVEN_UP, (Command.DISARM, Command.GIVE_UP)),
        # Killed, not terminated: a child that never got ready has nothing to drain.
        LifecycleEvent.DEADLINE: Step(State.LATE, (Command.KILL,)),
        LifecycleEvent.STOP: Step(State.STOPPING, (Command.TERMINATE, Command.ARM_KILL)),
        LifecycleEvent.STOP_NOW: _STOP_NOW,
    },
    State.LATE: {
        LifecycleEvent.START: Step(State.LATE),
        # It became ready between the deadline and its exit, and must not get connections.
        LifecycleEvent.READY: Step(State.LATE),
        LifecycleEvent.EXITED: Step(State.BACKOFF, (Command.ARM_BACKOFF,)),
        LifecycleEvent.TOO_OFTEN: _CRASH_LOOP,
        LifecycleEvent.NO_RESTART: Step(State.GIVEN_UP, (Command.GIVE_UP,)),
        LifecycleEvent.DEADLINE: None,
        LifecycleEvent.STOP: Step(State.STOPPING),
        LifecycleEvent.STOP_NOW: Step(State.STOPPING),
    },
    State.UP: {
        LifecycleEvent.START: Step(State.UP),
        LifecycleEvent.READY: Step(State.UP),
        LifecycleEvent.EXITED: Step(State.BACKOFF, (Command.LEAVE, Command.ARM_BACKOFF)),
        LifecycleEvent.TOO_OFTEN: Step(
            State.CRASH_LOOP, (Command.LEAVE, Command.ARM_RETRY, Command.GIVE_UP)
        ),
        LifecycleEvent.NO_RESTART: Step(
            State.GIVEN_UP, (Command.LEAVE, Command.DISARM, Command.GIVE_UP)
        ),
        LifecycleEvent.DEADLINE: Step(State.UP, (Command.PROVED,)),
        LifecycleEvent.STOP: Step(
            State.STOPPING, (Command.LEAVE, Command.TERMINATE, Command.ARM_KILL)
        ),
        LifecycleEvent.STOP_NOW: Step(
            State.STOPPING, (Command.LEAVE, Command.DISARM, Command.KILL)
        ),
    },
    State.STOPPING: {
        # A stop is never taken back: the child may already have closed its listener.
        LifecycleEvent.START: Step(State.STOPPING),
        LifecycleEvent.READY: Step(State.STOPPING),
        LifecycleEvent.EXITED: _REST,
        LifecycleEvent.TOO_OFTEN: _REST,
        LifecycleEvent.NO_RESTART: _REST,
        LifecycleEvent.DEADLINE: Step(State.STOPPING, (Command.KILL,)),
        LifecycleEvent.STOP: Step(State.STOPPING),
        LifecycleEvent.STOP_NOW: _STOP_NOW,
    },
    State.BACKOFF: {
        # An operator asked for it: do not wait any longer.
        LifecycleEvent.START: _SPAWN,
        LifecycleEvent.READY: None,
        LifecycleEvent.EXITED: None,
        LifecycleEvent.TOO_OFTEN: None,
        LifecycleEvent.NO_RESTART: None,
        LifecycleEvent.DEADLINE: _SPAWN,
        LifecycleEvent.STOP: _REST,
        LifecycleEvent.STOP_NOW: _REST,
    },
    State.CRASH_LOOP: {
        # An operator asked for it, who has probably put right what was wrong.
        LifecycleEvent.START: _SPAWN,
        LifecycleEvent.READY: None,
        LifecycleEvent.EXITED: None,
        LifecycleEvent.TOO_OFTEN: None,
        LifecycleEvent.NO_RESTART: None,
        LifecycleEvent.DEADLINE: _SPAWN,
        LifecycleEvent.STOP: _REST,
        LifecycleEvent.STOP_NOW: _REST,
    },
    State.GIVEN_UP: {
        # Only automatic restarts were given up: an operator may still ask for a start.
        LifecycleEvent.START: _SPAWN,
        LifecycleEvent.READY: None,
        LifecycleEvent.EXITED: None,
        LifecycleEvent.TOO_OFTEN: None,
        LifecycleEvent.NO_RESTART: None,
        LifecycleEvent.DEADLINE: None,
        LifecycleEvent.STOP: Step(State.DOWN),
        LifecycleEvent.STOP_NOW: Step(State.DOWN),
    },
}


class Lifecycle:
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
        """It has no process, and no start is planned."""
        return self._state in (State.DOWN, State.GIVEN_UP)

    @property
    def waits_for_start(self) -> bool:
        """It has no process, and is started by itself in a while."""
        return self._state in (State.BACKOFF, State.CRASH_LOOP)

    def handle(self, event: LifecycleEvent) -> tuple[Command, ...]:
        """Change the state and return the commands. ImpossibleEventError: a bug of the caller."""
        step = TRANSITIONS[self._state][event]
        if step is None:
            raise ImpossibleEventError(f"{self.name}: {event.name} while {self._state.name}")
        self._state = step.to
        return step.commands
