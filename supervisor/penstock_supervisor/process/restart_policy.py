"""When a child that exited is started again, and when it is not worth it any more.

Two facts are kept apart. *Intensity*: more than `max_restarts` exits within `within_s`
is a giveup, as in Erlang's supervisors. *Back-off*: each exit in a row doubles the wait, so
that a program that cannot start does not eat a core while it is being counted.

The wait is drawn from its upper half (half fixed, half random): workers that crashed
together, say because a database went away, do not come back together.

No I/O, no clock: `now` and the random numbers are arguments.
"""

from collections import deque
from collections.abc import Callable


class RestartPolicy:
    """The exits of one child and what they mean."""

    def __init__(
        self,
        *,
        max_restarts: int,
        within_s: float,
        backoff_s: float,
        backoff_max_s: float,
        random: Callable[[], float],
        first_at_once: bool = False,
    ) -> None:
        """`random` gives [0, 1). `first_at_once`: no wait after the first exit in a row."""
        self._max_restarts = max_restarts
        self._within_s = within_s
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._random = random
        self._first_at_once = first_at_once
        self._exits: deque[float] = deque()
        self._streak = 0

    @property
    def recent_exits(self) -> int:
        """Exits within the window that ended at the last one, as in "restart 2 of 5"."""
        return len(self._exits)

    def exited(self, now: float, up_for_s: float) -> float | None:
        """Seconds to wait before the next start, or None: give up.

        `up_for_s` is how long the child was *ready*; a program that starts for a minute
        and then fails has never been up.
        """
        self._exits.append(now)
        while now - self._exits[0] > self._within_s:
            self._exits.popleft()
        if len(self._exits) > self._max_restarts:
            return None
        # Longer than the longest wait: whatever was wrong before is over.
        self._streak = 1 if up_for_s >= self._backoff_max_s else self._streak + 1
        return self._wait()

    def postponed(self) -> float:
        """Seconds to wait before the next try of a start that was not the child's failure: it
        counts as no exit."""
        self._streak += 1
        return self._wait()

    def forget(self) -> None:
        """Somebody asked for a new start: the past does not count against it."""
        self._exits.clear()
        self._streak = 0

    def _wait(self) -> float:
        doublings = self._streak - 1
        if self._first_at_once:
            if doublings == 0:
                return 0.0
            doublings -= 1
        # The exponent is bounded before it is used: 2.0 ** 2000 is an OverflowError.
        longest: float = min(self._backoff_max_s, self._backoff_s * 2.0 ** min(doublings, 64))
        return longest * (1 + self._random()) / 2
