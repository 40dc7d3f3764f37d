"""The states of a member of a service, and the events that change them: the table of the `pool`.

Owns: the states, the events, and the state that follows from each pair of them, so that a test
can walk every pair. Must not know: when an event happens, and what follows from a state. No I/O,
no clock.

See docs/decisions/0016-a-childs-life-is-a-total-table.md.
"""

from enum import Enum, StrEnum, auto
from typing import Final


class MemberState(StrEnum):
    ABSENT = auto()
    """It has no process, as the supervisor reports."""
    CHECKING = auto()
    """Joined, and no health check has passed yet."""
    UP = auto()
    """In the rotation. No other state is."""
    DOWN = auto()
    """Its health checks fail, or its process does not answer the supervisor."""
    EJECTED = auto()
    """Its health checks pass, but requests fail: out of the rotation for a time."""
    DRAINING = auto()
    """About to be stopped: it finishes what it has in flight."""


SHOWN: Final = {
    MemberState.ABSENT: MemberState.DOWN,
    MemberState.CHECKING: MemberState.DOWN,
    MemberState.UP: MemberState.UP,
    MemberState.DOWN: MemberState.DOWN,
    MemberState.EJECTED: MemberState.EJECTED,
    MemberState.DRAINING: MemberState.DRAINING,
}
"""What people are shown. For them a worker that is not there, or has not passed its first check,
is down; the reason says which."""


class MemberEvent(Enum):
    JOIN = auto()
    LEAVE = auto()
    RISE = auto()
    """Enough checks in a row have passed."""
    FALL = auto()
    """Enough checks in a row have failed."""
    EJECT = auto()
    UNEJECT = auto()
    """The ejection is over."""
    DRAIN = auto()
    """It is not picked any more."""
    HOLD = auto()
    """The supervisor doubts that its process lives."""


# None means impossible. An event without effect leads back to the same state: the supervisor
# may repeat a message, and a check may end after the member has left.
TRANSITIONS: Final[dict[MemberState, dict[MemberEvent, MemberState | None]]] = {
    MemberState.ABSENT: {
        MemberEvent.JOIN: MemberState.CHECKING,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.ABSENT,
        MemberEvent.FALL: MemberState.ABSENT,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.ABSENT,
        MemberEvent.HOLD: MemberState.ABSENT,
    },
    MemberState.CHECKING: {
        MemberEvent.JOIN: MemberState.CHECKING,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.UP,
        # Not DOWN, which takes more checks to leave: it may only be slow to start.
        MemberEvent.FALL: MemberState.CHECKING,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.DRAINING,
        MemberEvent.HOLD: MemberState.CHECKING,
    },
    MemberState.UP: {
        MemberEvent.JOIN: MemberState.UP,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.UP,
        MemberEvent.FALL: MemberState.DOWN,
        MemberEvent.EJECT: MemberState.EJECTED,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.DRAINING,
        MemberEvent.HOLD: MemberState.DOWN,
    },
    MemberState.DOWN: {
        MemberEvent.JOIN: MemberState.DOWN,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.UP,
        MemberEvent.FALL: MemberState.DOWN,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.DRAINING,
        MemberEvent.HOLD: MemberState.DOWN,
    },
    MemberState.EJECTED: {
        MemberEvent.JOIN: MemberState.EJECTED,
        MemberEvent.LEAVE: MemberState.ABSENT,
        # A health check that passes says little about the requests that failed.
        MemberEvent.RISE: MemberState.EJECTED,
        MemberEvent.FALL: MemberState.DOWN,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: MemberState.UP,
        MemberEvent.DRAIN: MemberState.DRAINING,
        MemberEvent.HOLD: MemberState.DOWN,
    },
    MemberState.DRAINING: {
        # Another process of it is there already.
        MemberEvent.JOIN: MemberState.CHECKING,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.DRAINING,
        MemberEvent.FALL: MemberState.DRAINING,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.DRAINING,
        MemberEvent.HOLD: MemberState.DRAINING,
    },
}


PROCESS_CHANGES: Final = (MemberEvent.JOIN, MemberEvent.LEAVE)
"""After these events the member has another process, or none."""


class ImpossibleEventError(Exception):
    """The event cannot happen in this state: a bug of the pool."""


def next_state(state: MemberState, event: MemberEvent, number: int) -> MemberState:
    """The state after this event. ImpossibleEventError: it cannot happen in that state."""
    to = TRANSITIONS[state][event]
    if to is None:
        raise ImpossibleEventError(f"member {number}: {event.name} while {state.name}")
    return to
