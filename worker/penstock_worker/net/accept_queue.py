"""How many connections have waited too long in an accept queue from which nobody accepts.

Owns an estimate that never calls a connection overdue too early. The kernel tells how many
connections wait, but not since when. A queue keeps its order: a connection that was in it at
one look, and has not been accepted since, has waited at least since that look. Must not know
sockets, nor what happens to overdue connections. No I/O; the clock is an argument.
"""

from collections import deque


class AcceptQueue:
    """One queue. Call `overdue` now and then while nothing is accepted from it."""

    __slots__ = ("_samples", "max_wait_s")

    def __init__(self, max_wait_s: float) -> None:
        self.max_wait_s = max_wait_s
        """It can be changed at any time."""
        self._samples: deque[tuple[float, int]] = deque()
        """The time of a look, and how many connections had ever arrived by then."""

    def overdue(self, now: float, accepted: int, waiting: int) -> int:
        """How many of those that wait have waited too long.

        `accepted`: how many connections we have ever accepted from the queue.
        """
        if not waiting:
            self._samples.clear()
            return 0
        samples, due = self._samples, now - self.max_wait_s
        samples.append((now, accepted + waiting))
        while len(samples) > 1 and samples[1][0] <= due:
            samples.popleft()
        if samples[0][0] > due:
            return 0
        # Another process may accept from the same queue: then fewer of them are left.
        came = min(count for _, count in samples)
        return max(0, min(waiting, came - accepted))

    @property
    def was_occupied(self) -> bool:
        """Did a connection wait at the last look?"""
        return bool(self._samples)
