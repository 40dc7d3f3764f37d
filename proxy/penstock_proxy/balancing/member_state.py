"""The states of a member of a service, and the events that change them: the table of the `pool`.

Owns the states, the events, and the state that each event leads to from each state; all three
are here once, so that a test can walk every pair. Must not know: when an event happens, or
what follows from a state. No I/O, no clock.
"""

from enum import Enum, StrEnum, auto
from typing import Final


class MemberState(StrEnum):
    ABSENT = auto()
    """No process, as far as the supervisor says."""
    CHECKING = auto()
    """Joined, and not one good check yet."""
    UP = auto()
    """In the rotation. No other state is."""
    DOWN = auto()
    """Its checks fail."""
    EJECTED = auto()
    """Its checks pass but the traffic fails: out for a time."""
    DRAINING = auto()
    """About to be told to leave: it finishes what it has."""


class MemberEvent(Enum):
    JOIN = auto()
    LEAVE = auto()
    RISE = auto()
    """As many good checks in a row as it takes."""
    FALL = auto()
    """As many bad checks in a row as it takes."""
    EJECT = auto()
    UNEJECT = auto()
    """The ejection is over."""
    DRAIN = auto()
    """Nobody may pick it any more."""


# None means impossible. An event that changes nothing leads back to the same state: the
# supervisor may repeat itself, and a check may end after the member has left.
TRANSITIONS: Final[dict[MemberState, dict[MemberEvent, MemberState | None]]] = {
    MemberState.ABSENT: {
        MemberEvent.JOIN: MemberState.CHECKING,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.ABSENT,
        MemberEvent.FALL: MemberState.ABSENT,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.ABSENT,
    },
    MemberState.CHECKING: {
        MemberEvent.JOIN: MemberState.CHECKING,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.UP,
        # Not DOWN: it would have to rise again, and may only be slow to warm up.
        MemberEvent.FALL: MemberState.CHECKING,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.DRAINING,
    },
    MemberState.UP: {
        MemberEvent.JOIN: MemberState.UP,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.UP,
        MemberEvent.FALL: MemberState.DOWN,
        MemberEvent.EJECT: MemberState.EJECTED,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.DRAINING,
    },
    MemberState.DOWN: {
        MemberEvent.JOIN: MemberState.DOWN,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.UP,
        MemberEvent.FALL: MemberState.DOWN,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.DRAINING,
    },
    MemberState.EJECTED: {
        MemberEvent.JOIN: MemberState.EJECTED,
        MemberEvent.LEAVE: MemberState.ABSENT,
        # A health path that answers says little about the requests that failed.
        MemberEvent.RISE: MemberState.EJECTED,
        MemberEvent.FALL: MemberState.DOWN,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: MemberState.UP,
        MemberEvent.DRAIN: MemberState.DRAINING,
    },
    MemberState.DRAINING: {
        # Another process took the slot over.
        MemberEvent.JOIN: MemberState.CHECKING,
        MemberEvent.LEAVE: MemberState.ABSENT,
        MemberEvent.RISE: MemberState.DRAINING,
        MemberEvent.FALL: MemberState.DRAINING,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.DRAIN: MemberState.DRAINING,
    },
}


PROCESS_CHANGES: Final = (MemberEvent.JOIN, MemberEvent.LEAVE)
"""After these the slot has another process, or none."""


class ImpossibleEventError(Exception):
    """The pool made an event that cannot happen in this state: a bug there."""


def next_state(state: MemberState, event: MemberEvent, slot: int) -> MemberState:
    """The state after this event. ImpossibleEventError: it cannot happen in that state."""
    to = TRANSITIONS[state][event]
    if to is None:
        raise ImpossibleEventError(f"slot {slot}: {event.name} while {state.name}")
    return to
