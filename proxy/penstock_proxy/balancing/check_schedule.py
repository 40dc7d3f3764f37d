"""Who is checked next: the health checks of a process in the order in which they are due.

Owns: one timer for all of them, and how many begin in one turn of the loop. Checks that are due at
the same time, because all begin or the process was held up, begin a few in each turn, those of all
services together. Must not know: what a check is.
"""

from asyncio import AbstractEventLoop, Handle
from heapq import heappop, heappush
from itertools import count
from typing import Final, Protocol

AT_ONCE: Final = 4
"""Checks that begin in one turn of the loop."""
_GRID_S: Final = 0.01
"""Checks begin at multiples of this: with many of them, several at one wake-up of the process."""
_TIMER_S: Final = 0.001
"""The timers of the loop count milliseconds, and may fire so much earlier."""


class Due(Protocol):
    """What can be due. It is known by its identity."""

    def begin(self) -> None:
        """It is due. Must not raise."""


class CheckSchedule:
    """Each is due once at a time."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int]] = []
        """When, and the number of the entry. Who was removed is not kept alive by it."""
        self._entries = count()
        self._entry_of: dict[Due, int] = {}
        self._who: dict[int, Due] = {}
        """By entry. All others hold no more."""
        self._timer: Handle | None = None
        self._timer_at = 0.0

    def __len__(self) -> int:
        """How many are due at some time."""
        return len(self._entry_of)

    def put(self, one: Due, seconds: float) -> None:
        """It is due after so many seconds, and not when it was due before."""
        at, entry = self._loop.time() + seconds, next(self._entries)
        if seconds > _GRID_S:
            at -= at % _GRID_S
        self._who.pop(self._entry_of.get(one, -1), None)
        self._entry_of[one] = entry
        self._who[entry] = one
        heappush(self._heap, (at, entry))
        self._wake_at(at)

    def discard(self, one: Due) -> None:
        """It is not due any more."""
        self._who.pop(self._entry_of.pop(one, -1), None)
        if not self._who:
            self._heap.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _wake_at(self, at: float) -> None:
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        seconds = at - self._loop.time()
        if seconds > 0:
            self._timer = self._loop.call_later(seconds, self._run)
        else:
            self._timer = self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._timer, heap = None, self._heap
        until = self._loop.time() + _TIMER_S
        for _ in range(AT_ONCE):
            if not heap or heap[0][0] > until:
                break
            _, entry = heappop(heap)
            if (one := self._who.pop(entry, None)) is not None:
                del self._entry_of[one]
                one.begin()
        if heap:
            self._wake_at(heap[0][0])
