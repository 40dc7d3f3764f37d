"""Who has waited how long in a listener's queue, while nobody accepts from it.

Owns an estimate that errs to the patient side. The kernel says how many wait, not since when;
but a queue keeps its order, so whoever was in it when it was last looked at and has not been
accepted since has waited for as long. Must not know sockets, nor what is done with those who
have waited too long. No I/O; the clock is an argument.
"""

from collections import deque


class Backlog:
    """One queue. Look at it now and then while it is left alone."""

    __slots__ = ("_patience_s", "_seen")

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._seen: deque[tuple[float, int]] = deque()
        """When it was looked at, and how many had come until then, from the first on."""

    def look(self, now: float, taken: int, waiting: int) -> int:
        """How many of those who wait have done so too long.

        `taken` counts up with each connection that leaves the queue by us.
        """
        if not waiting:
            self._seen.clear()
            return 0
        seen, due = self._seen, now - self._patience_s
        seen.append((now, taken + waiting))
        while len(seen) > 1 and seen[1][0] <= due:
            seen.popleft()
        if seen[0][0] > due:
            return 0
        # Somebody else may take from the same queue: then fewer of them are left.
        came = min(count for _, count in seen)
        return max(0, min(waiting, came - taken))

    @property
    def is_watched(self) -> bool:
        """Was somebody waiting when it was last looked at?"""
        return bool(self._seen)
