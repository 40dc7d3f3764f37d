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
    HOLD = auto()
    """Nobody may pick it any more."""


# None means impossible. A cell that is merely dull leads back to its own standing: the
# supervisor may repeat itself, and a check may end after the member has left.
TRANSITIONS: Final[dict[Standing, dict[MemberEvent, Standing | None]]] = {
    Standing.ABSENT: {
        MemberEvent.JOIN: Standing.CHECKING,
        MemberEvent.LEAVE: Standing.ABSENT,
        MemberEvent.RISE: Standing.ABSENT,
        MemberEvent.FALL: Standing.ABSENT,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.HOLD: Standing.ABSENT,
    },
    Standing.CHECKING: {
        MemberEvent.JOIN: Standing.CHECKING,
        MemberEvent.LEAVE: Standing.ABSENT,
        MemberEvent.RISE: Standing.UP,
        # Not DOWN: it would have to rise again, and may only be slow to warm up.
        MemberEvent.FALL: Standing.CHECKING,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.HOLD: Standing.HELD,
    },
    Standing.UP: {
        MemberEvent.JOIN: Standing.UP,
        MemberEvent.LEAVE: Standing.ABSENT,
        MemberEvent.RISE: Standing.UP,
        MemberEvent.FALL: Standing.DOWN,
        MemberEvent.EJECT: Standing.EJECTED,
        MemberEvent.UNEJECT: None,
        MemberEvent.HOLD: Standing.HELD,
    },
    Standing.DOWN: {
        MemberEvent.JOIN: Standing.DOWN,
        MemberEvent.LEAVE: Standing.ABSENT,
        MemberEvent.RISE: Standing.UP,
        MemberEvent.FALL: Standing.DOWN,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.HOLD: Standing.HELD,
    },
    Standing.EJECTED: {
        MemberEvent.JOIN: Standing.EJECTED,
        MemberEvent.LEAVE: Standing.ABSENT,
        # A health path that answers says little about the requests that failed.
        MemberEvent.RISE: Standing.EJECTED,
        MemberEvent.FALL: Standing.DOWN,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: Standing.UP,
        MemberEvent.HOLD: Standing.HELD,
    },
    Standing.HELD: {
        # Another process took the slot over.
        MemberEvent.JOIN: Standing.CHECKING,
        MemberEvent.LEAVE: Standing.ABSENT,
        MemberEvent.RISE: Standing.HELD,
        MemberEvent.FALL: Standing.HELD,
        MemberEvent.EJECT: None,
        MemberEvent.UNEJECT: None,
        MemberEvent.HOLD: Standing.HELD,
    },
}


PROCESS_CHANGES: Final = (MemberEvent.JOIN, MemberEvent.LEAVE)
"""From here on it is another process, or none."""


class ImpossibleEventError(Exception):
    """The pool made an event that cannot happen in this standing: a bug there."""


def next_state(standing: Standing, event: MemberEvent, slot: int) -> Standing:
    """Where a member stands after this event. ImpossibleEventError: it cannot happen there."""
    to = TRANSITIONS[standing][event]
    if to is None:
        raise ImpossibleEventError(f"slot {slot}: {event.name} while {standing.name}")
    return to
