"""Who is checked next: the health checks of one pool in the order in which they are due.

Owns: one timer for all of them, and how many begin in one turn of the loop. Checks that are due at
the same time, because all begin or the process was held up, begin a few in each turn. Must not
know: what a check is.
"""

from asyncio import AbstractEventLoop, Handle
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Final

AT_ONCE: Final = 4
"""Checks that begin in one turn of the loop."""
_GRID_S: Final = 0.01
"""Checks begin at multiples of this: with many of them, several at one wake-up of the process."""
_TIMER_S: Final = 0.001
"""The timers of the loop count milliseconds, and may fire so much earlier."""


class CheckSchedule:
    """Each is known by its number, and is due once at a time."""

    def __init__(self, loop: AbstractEventLoop, begin: Callable[[int], None]) -> None:
        """`begin(number)` is called when it is due, and must not raise."""
        self._loop = loop
        self._begin = begin
        self._heap: list[tuple[float, int, int]] = []
        """When, the entry, and the number."""
        self._entries = count()
        self._entry_of: dict[int, int] = {}
        """By number; all other entries of it hold no more."""
        self._timer: Handle | None = None
        self._timer_at = 0.0

    def put(self, number: int, seconds: float) -> None:
        """It is due after so many seconds, and not when it was due before."""
        at, entry = self._loop.time() + seconds, next(self._entries)
        if seconds > _GRID_S:
            at -= at % _GRID_S
        self._entry_of[number] = entry
        heappush(self._heap, (at, entry, number))
        self._wake_at(at)

    def discard(self, number: int) -> None:
        """It is not due any more."""
        self._entry_of.pop(number, None)

    def close(self) -> None:
        """Nobody is due any more."""
        self._entry_of.clear()
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
            _, entry, number = heappop(heap)
            if self._entry_of.get(number) == entry:
                del self._entry_of[number]
                self._begin(number)
        if heap:
            self._wake_at(heap[0][0])
