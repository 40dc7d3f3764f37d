"""How long an event loop keeps others waiting, as a histogram.

Owns the buckets, the counts of one process, and for a loop that is not ours (a worker's, the
supervisor's) the timer whose delay is counted. A proxy counts the length of each turn of its loop
itself: its reactor, its tick and its work in slices say how long they took. A number of one moment
would not do: a loop that was stuck for 40 ms is on time again when somebody asks.
"""

from asyncio import AbstractEventLoop, TimerHandle
from bisect import bisect_left
from typing import Final

BUCKETS_S: Final[tuple[float, ...]] = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
"""From half of what a turn of a proxy may take to where clients notice; the last is +Inf."""
_FIRST_S: Final = 0.0005
_INTERVAL_S: Final = 0.1
"""What keeps the loop for as long as this is always seen, and half as long half of the time."""
RESOLUTION_S: Final = 0.001
"""Of timers: up to this much late is on time."""


class LagHistogram:
    """Counts by bucket, not cumulative, and a sum."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one turn of the loop, or one delay."""
        self.sum_s += seconds
        # Nearly all are in the first bucket.
        self.counts[0 if seconds <= _FIRST_S else bisect_left(BUCKETS_S, seconds)] += 1

    def flat(self) -> list[int | float]:
        """The counts by bucket, and the sum."""
        return [*self.counts, self.sum_s]


class LoopLag:
    """How late a loop calls a timer, from `start` to `stop`."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.histogram = LagHistogram()
        self._loop = loop
        self._due = 0.0
        self._timer: TimerHandle | None = None

    def start(self) -> None:
        self._due = self._loop.time() + _INTERVAL_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    close = stop

    def _tick(self) -> None:
        self.histogram.observe(max(0.0, self._loop.time() - self._due - RESOLUTION_S))
        self.start()
