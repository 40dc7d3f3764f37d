"""When something waits too long: one coarse clock for all connections of a proxy.

Owns: the buckets of a timing wheel. A timer of the event loop for each connection would
cost more memory than all else we keep of it, and setting one a request more time than
reading its head. Here a connection writes its deadline into a field of its own; the wheel
looks at it when the bucket that it was put in comes up, and puts it further on if the
deadline has moved meanwhile. So a request costs a comparison, and an idle connection one
look each time its time-out passes, however many there are.

TimerWheel are late by up to a tick, never early. No I/O; the clock is an argument.
"""

import logging
from typing import Final, Protocol

TICK_S: Final = 0.25


class Waiting(Protocol):
    """Something that can wait too long. Both fields are written by its owner."""

    deadline: float
    """When `expired` is due; infinity when nothing is waited for."""
    bucket: float
    """Written by the wheel only: when it will look again; infinity when it will not."""

    def expired(self, now: float) -> None:
        """The deadline has passed. A new one may be set with `TimerWheel.arm`."""


_log = logging.getLogger("penstock.proxy")

NEVER: Final = float("inf")
_NOBODY: Final[tuple[float, set[Waiting]]] = (NEVER, set())


class TimerWheel:
    """The wheel. `now` is the time of the last tick, for those who need no better."""

    __slots__ = ("_buckets", "_next", "now")

    def __init__(self, now: float) -> None:
        self.now = now
        self._next = int(now / TICK_S)
        """The oldest bucket that has not come up."""
        self._buckets: dict[int, tuple[float, set[Waiting]]] = {}
        """By index: when it begins, and who is in it. All in it share the one float."""

    def arm(self, waiting: Waiting, deadline: float) -> None:
        """Set a deadline. Cheap when it is later than the one before."""
        waiting.deadline = deadline
        if deadline < waiting.bucket:
            self._take(waiting)
            self._put(waiting)

    def arm_in(self, waiting: Waiting, seconds: float) -> None:
        """Set a deadline from now on, for those who do not know the time themselves.

        `now` may be a tick old, and a deadline is never early.
        """
        self.arm(waiting, self.now + TICK_S + seconds)

    def disarm(self, waiting: Waiting) -> None:
        """Forget it altogether: its owner is gone."""
        waiting.deadline = NEVER
        self._take(waiting)

    def tick(self, now: float) -> None:
        """Look at every bucket that has passed."""
        self.now = now
        current = int(now / TICK_S)
        while self._next < current:
            start, due = self._buckets.pop(self._next, _NOBODY)
            self._next += 1
            for waiting in due:
                # Another one's `expired` may have moved or forgotten it meanwhile.
                if waiting.bucket == start:
                    waiting.bucket = NEVER
                    if waiting.deadline <= now:
                        self._expire(waiting)
                    elif waiting.deadline != NEVER:
                        self._put(waiting)

    def _expire(self, waiting: Waiting) -> None:
        """Tell one. A mistake in there must not cost the others their timers."""
        try:
            waiting.expired(self.now)
        except Exception:  # noqa: BLE001 — whatever it is, it is one connection's
            _log.exception("a deadline could not be handled")

    def _put(self, waiting: Waiting) -> None:
        # A deadline in the past still waits for the next tick.
        index = max(int(waiting.deadline / TICK_S), self._next)
        bucket = self._buckets.get(index)
        if bucket is None:
            bucket = self._buckets[index] = (index * TICK_S, set())
        waiting.bucket = bucket[0]
        bucket[1].add(waiting)

    def _take(self, waiting: Waiting) -> None:
        if waiting.bucket != NEVER:
            bucket = self._buckets.get(int(waiting.bucket / TICK_S))
            if bucket is not None:
                bucket[1].discard(waiting)
            waiting.bucket = NEVER
