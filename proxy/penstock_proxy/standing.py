"""Where a member of a service stands, and what moves it: the table behind the `pool`.

Owns the standings, the events, and what each event makes of each standing; all three are
here once, so that a test can walk every pair. Must not know: when an event happens, or what
follows from a standing. No I/O, no clock.
"""

from enum import Enum, StrEnum, auto
from typing import Final


class Standing(StrEnum):
    ABSENT = auto()
    """No process, as far as the supervisor says."""
    CHECKING = auto()
    """Joined, and not one good check yet."""
    UP = auto()
    """In the rotation. No other standing is."""
    DOWN = auto()
    """Its checks fail."""
    EJECTED = auto()
    """Its checks pass but the traffic fails: out for a time."""
    HELD = auto()
    """About to be told to leave: it finishes what it has."""


class Event(Enum):
    JOIN = auto()
    LEAVE = auto()
    GOOD = auto()
    """As many good checks in a row as it takes."""
    BAD = auto()
    """As many bad checks in a row as it takes."""
    EJECT = auto()
    RETURN = auto()
    """The ejection is over."""
    HOLD = auto()
    """Nobody may pick it any more."""


# None means impossible. A cell that is merely dull leads back to its own standing: the
# supervisor may repeat itself, and a check may end after the member has left.
TRANSITIONS: Final[dict[Standing, dict[Event, Standing | None]]] = {
    Standing.ABSENT: {
        Event.JOIN: Standing.CHECKING,
        Event.LEAVE: Standing.ABSENT,
        Event.GOOD: Standing.ABSENT,
        Event.BAD: Standing.ABSENT,
        Event.EJECT: None,
        Event.RETURN: None,
        Event.HOLD: Standing.ABSENT,
    },
    Standing.CHECKING: {
        Event.JOIN: Standing.CHECKING,
        Event.LEAVE: Standing.ABSENT,
        Event.GOOD: Standing.UP,
        # Not DOWN: it would have to rise again, and may only be slow to warm up.
        Event.BAD: Standing.CHECKING,
        Event.EJECT: None,
        Event.RETURN: None,
        Event.HOLD: Standing.HELD,
    },
    Standing.UP: {
        Event.JOIN: Standing.UP,
        Event.LEAVE: Standing.ABSENT,
        Event.GOOD: Standing.UP,
        Event.BAD: Standing.DOWN,
        Event.EJECT: Standing.EJECTED,
        Event.RETURN: None,
        Event.HOLD: Standing.HELD,
    },
    Standing.DOWN: {
        Event.JOIN: Standing.DOWN,
        Event.LEAVE: Standing.ABSENT,
        Event.GOOD: Standing.UP,
        Event.BAD: Standing.DOWN,
        Event.EJECT: None,
        Event.RETURN: None,
        Event.HOLD: Standing.HELD,
    },
    Standing.EJECTED: {
        Event.JOIN: Standing.EJECTED,
        Event.LEAVE: Standing.ABSENT,
        # A health path that answers says little about the requests that failed.
        Event.GOOD: Standing.EJECTED,
        Event.BAD: Standing.DOWN,
        Event.EJECT: None,
        Event.RETURN: Standing.UP,
        Event.HOLD: Standing.HELD,
    },
    Standing.HELD: {
        # Another process took the slot over.
        Event.JOIN: Standing.CHECKING,
        Event.LEAVE: Standing.ABSENT,
        Event.GOOD: Standing.HELD,
        Event.BAD: Standing.HELD,
        Event.EJECT: None,
        Event.RETURN: None,
        Event.HOLD: Standing.HELD,
    },
}


ANOTHER: Final = (Event.JOIN, Event.LEAVE)
"""From here on it is another process, or none."""


class ImpossibleEventError(Exception):
    """The pool made an event that cannot happen in this standing: a bug there."""


def after(standing: Standing, event: Event, slot: int) -> Standing:
    """Where a member stands after this event. ImpossibleEventError: it cannot happen there."""
    to = TRANSITIONS[standing][event]
    if to is None:
        raise ImpossibleEventError(f"slot {slot}: {event.name} while {standing.name}")
    return to
