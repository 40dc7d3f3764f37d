"""Decides when a child that exited is restarted, and when it is given up.

There are two rules. *Intensity*: more than `max_restarts` exits within `within_s` are a giveup,
as in Erlang's supervisors. *Back-off*: each exit in a row doubles the wait, so that a program
that cannot start does not use up a core until it is given up.

Half of the wait is fixed and half is random. So workers that crashed together, for example
because a database went away, do not restart together.

No I/O, no clock: `now` and the random numbers are arguments.
"""

from collections import deque
from collections.abc import Callable


class RestartPolicy:
    """The recent exits of one child, and the decision after each."""

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
        """`random` returns a number in [0, 1). `first_at_once`: no wait after the first exit in a
        row."""
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
        """Seconds to wait before the next start; None: give up.

        `up_for_s` is how long the child was *ready*: zero if it failed while it was starting,
        however long that took.
        """
        self._exits.append(now)
        while now - self._exits[0] > self._within_s:
            self._exits.popleft()
        if len(self._exits) > self._max_restarts:
            return None
        # Ready for longer than the maximal wait: this exit is not connected to earlier ones.
        self._streak = 1 if up_for_s >= self._backoff_max_s else self._streak + 1
        return self._wait()

    def postponed(self) -> float:
        """Seconds to wait before the next try after a start that failed because the supervisor
        lacked something. It does not count as an exit."""
        self._streak += 1
        return self._wait()

    def forget(self) -> None:
        """Forget all exits, because somebody asked for a new start."""
        self._exits.clear()
        self._streak = 0

    def _wait(self) -> float:
        doublings = self._streak - 1
        if self._first_at_once:
            if doublings == 0:
                return 0.0
            doublings -= 1
        # The exponent is bounded, because 2.0 ** 2000 is an OverflowError.
        max_wait_s: float = min(self._backoff_max_s, self._backoff_s * 2.0 ** min(doublings, 64))
        return max_wait_s * (1 + self._random()) / 2
