"""A timer wheel: coarse deadlines for all connections of a proxy.

Owns: the buckets. A timer of the event loop for each connection would need more memory than all
else we keep of it, and to set one for each request would take longer than to parse its head.
Here a connection writes its deadline into a field of its own. The wheel reads it when the
connection's bucket is due, and moves the connection to a later bucket if the deadline has moved
meanwhile. So a request costs a comparison, and an idle connection is checked once each time its
time-out passes, however many there are.

A deadline fires up to a tick late, never early. No I/O; the clock is an argument.

See docs/decisions/0015-timer-wheel.md.
"""

import logging
from collections import deque
from collections.abc import Iterator
from typing import Final

TICK_S: Final = 0.25


class HasDeadline:
    """Something that has a deadline. Both fields start as NEVER: whoever derives from this sets
    them."""

    __slots__ = ("bucket", "deadline")

    deadline: float
    """When `expired` is due; NEVER: not at all. The owner may move it to a later time itself."""
    bucket: float
    """Written by the wheel only: when its bucket begins; NEVER: it is in none."""

    def expired(self, now: float) -> None:
        """The deadline has passed. A new one may be set with `TimerWheel.arm`."""
        raise NotImplementedError


_log = logging.getLogger("penstock.proxy")

NEVER: Final = float("inf")


class TimerWheel:
    """The wheel. `now` is the time of the last tick, precise enough for most uses."""

    __slots__ = ("_buckets", "_due", "_next_index", "now")

    def __init__(self, now: float) -> None:
        self.now = now
        self._next_index = int(now / TICK_S)
        """The oldest bucket that is not due yet."""
        self._buckets: dict[int, tuple[float, set[HasDeadline]]] = {}
        """By index: when it begins, and its content. All in it share that one float."""
        self._due: deque[tuple[float, set[HasDeadline]]] = deque()
        """Buckets that have passed, and what of them was not looked at yet."""

    def arm(self, timed: HasDeadline, deadline: float) -> None:
        """Set a deadline. Cheap if it is later than the previous one."""
        timed.deadline = deadline
        if deadline < timed.bucket:
            self._remove(timed)
            self._insert(timed)

    def arm_in(self, timed: HasDeadline, seconds: float) -> None:
        """Set a deadline that many seconds from now, without reading the clock.

        `now` may be a tick old, so a tick is added: a deadline is never early.
        """
        deadline = timed.deadline = self.now + TICK_S + seconds
        if deadline < timed.bucket:
            self._remove(timed)
            self._insert(timed)

    def disarm(self, timed: HasDeadline) -> None:
        """Remove the deadline."""
        timed.deadline = NEVER
        self._remove(timed)

    def tick(self, now: float) -> None:
        """Expire what is due in every bucket that has passed."""
        for _ in self.advance(now):
            pass

    def advance(self, now: float) -> Iterator[None]:
        """It is `now`. Going through what is returned expires what is due, one in each step:
        a bucket may have all clients of a proxy. Timers may be set and moved between two steps."""
        self.now = now
        current = int(now / TICK_S)
        while self._next_index < current:
            bucket = self._buckets.pop(self._next_index, None)
            self._next_index += 1
            if bucket is not None:
                self._due.append(bucket)
        return self._expire_due()

    def _expire_due(self) -> Iterator[None]:
        buckets = self._due
        while buckets:
            start, due = buckets[0]
            if not due:
                buckets.popleft()
                continue
            timed = due.pop()
            # The `expired` of another one may have moved or disarmed it meanwhile.
            if timed.bucket == start:
                timed.bucket = NEVER
                if timed.deadline <= self.now:
                    self._expire(timed)
                elif timed.deadline != NEVER:
                    self._insert(timed)
            yield

    def _expire(self, timed: HasDeadline) -> None:
        """Call `expired`. An exception in one call must not cost the others their deadlines."""
        try:
            timed.expired(self.now)
        except Exception:  # noqa: BLE001 — whatever it is, it is one connection's
            _log.exception("a deadline could not be handled")

    def _insert(self, timed: HasDeadline) -> None:
        # A deadline in the past expires at the next tick.
        index = max(int(timed.deadline / TICK_S), self._next_index)
        bucket = self._buckets.get(index)
        if bucket is None:
            bucket = self._buckets[index] = (index * TICK_S, set())
        timed.bucket = bucket[0]
        bucket[1].add(timed)

    def _remove(self, timed: HasDeadline) -> None:
        if timed.bucket != NEVER:
            bucket = self._buckets.get(int(timed.bucket / TICK_S))
            if bucket is not None:
                bucket[1].discard(timed)
            timed.bucket = NEVER
