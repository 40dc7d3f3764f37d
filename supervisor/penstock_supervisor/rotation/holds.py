"""Which members are held, so that nobody picks them, and by whom.

A worker may be held for two causes at the same time: its process may hang, and its successor is
compared with the others. Whoever holds it lets go of its own hold only; it is picked again when
nobody holds it any more. A doubt is about one process; the comparison is about the slot's version,
so it also holds the process that is started after a crash. No I/O, no clock.
"""

from collections.abc import Iterator
from enum import Enum, auto

from penstock_supervisor.children.plan import MemberKey


class HoldCause(Enum):
    DOUBTED = auto()
    """Its process may hang."""
    COMPARED = auto()
    """Its successor, a canary, has its clients."""


class Holds:
    def __init__(self) -> None:
        self._held: dict[MemberKey, dict[HoldCause, str]] = {}

    def add(self, key: MemberKey, cause: HoldCause, reason: str) -> None:
        self._held.setdefault(key, {})[cause] = reason

    def remove(self, key: MemberKey, cause: HoldCause) -> bool:
        """Returns whether nobody holds it now."""
        causes = self._held.get(key, {})
        causes.pop(cause, None)
        if not causes:
            self._held.pop(key, None)
        return not causes

    def process_changed(self, key: MemberKey) -> None:
        """It has another process, or none."""
        self.remove(key, HoldCause.DOUBTED)

    def forget(self, key: MemberKey) -> None:
        """Nobody holds it any more: it leaves for good."""
        self._held.pop(key, None)

    def has(self, key: MemberKey, cause: HoldCause) -> bool:
        return cause in self._held.get(key, {})

    def reason(self, key: MemberKey) -> str:
        """KeyError: nobody holds it."""
        return "; ".join(self._held[key].values())

    def is_compared(self, key: MemberKey) -> bool:
        """Is it held for that alone, with nothing wrong?"""
        return self._held.get(key, {}).keys() == {HoldCause.COMPARED}

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[MemberKey]:
        return iter(self._held)
