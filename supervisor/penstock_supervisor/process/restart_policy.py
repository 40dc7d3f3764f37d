"""Decides when a child that exited is started again, and when that is a crash loop.

There are three rules. *Intensity*: more than `max_restarts` exits within `within_s` are a giveup,
as in Erlang's supervisors. *Back-off*: each exit in a row doubles the wait, so that a program
that cannot start does not use up a core until then. *Crash loop*: a giveup is an alarm and no
end. From then on there is one start every `retry_after_s`, because what was wrong is often put
right by somebody else: a deploy is completed, a database comes back. Each exit in a crash loop
leads to the next such wait, without quick restarts. A child that has been ready for as long as
the longest back-off has left the crash loop, and its earlier exits count no more.

Half of each wait is fixed and half is random. So workers that crashed together, for example
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
        retry_after_s: float = 0.0,
        first_at_once: bool = False,
    ) -> None:
        """`random` returns a number in [0, 1). `retry_after_s`: between two starts in a crash
        loop; 0: none. `first_at_once`: no wait after the first exit in a row."""
        self.configure(
            max_restarts=max_restarts,
            within_s=within_s,
            backoff_s=backoff_s,
            backoff_max_s=backoff_max_s,
            retry_after_s=retry_after_s,
        )
        self._random = random
        self._first_at_once = first_at_once
        self._exits: deque[float] = deque()
        self._streak = 0
        self.in_crash_loop = False
        """It ended too often, and has not proved since that it can stay ready."""

    def configure(
        self,
        *,
        max_restarts: int,
        within_s: float,
        backoff_s: float,
        backoff_max_s: float,
        retry_after_s: float,
    ) -> None:
        """Decide by these numbers from now on; the exits so far count as before."""
        self._max_restarts = max_restarts
        self._within_s = within_s
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._retry_after_s = retry_after_s

    @property
    def recent_exits(self) -> int:
        """Exits within the window that ended at the last one, as in "restart 2 of 5"."""
        return len(self._exits)

    @property
    def proof_s(self) -> float:
        """So long it has to be ready before its earlier exits count no more."""
        return self._backoff_max_s

    def exited(self, now: float, ready_for_s: float) -> float | None:
        """Seconds to wait before the next start; None: there is none.

        `ready_for_s` is how long the child was *ready*: zero if it failed while it was starting,
        however long that took. `in_crash_loop` says afterwards which rule gave the wait.
        """
        proved = ready_for_s >= self.proof_s
        if proved:
            self.proved()
        self._exits.append(now)
        while now - self._exits[0] > self._within_s:
            self._exits.popleft()
        if self.in_crash_loop or len(self._exits) > self._max_restarts:
            self.in_crash_loop = True
            return self._jittered(self._retry_after_s) if self._retry_after_s else None
        # Ready for long enough: this exit is not connected to earlier ones.
        self._streak = 1 if proved else self._streak + 1
        return self._backoff()

    def proved(self) -> bool:
        """It has been ready for `proof_s`. True: it leaves the crash loop by that."""
        left = self.in_crash_loop
        if left:
            self.forget()
        return left

    def postponed(self) -> float:
        """Seconds to wait before the next try after a start that failed because the supervisor
        lacked something. It does not count as an exit."""
        self._streak += 1
        return self._backoff()

    def forget(self) -> None:
        """Forget all exits, because somebody asked for a new start."""
        self._exits.clear()
        self._streak = 0
        self.in_crash_loop = False

    def _backoff(self) -> float:
        doublings = self._streak - 1
        if self._first_at_once:
            if doublings == 0:
                return 0.0
            doublings -= 1
        # The exponent is bounded, because 2.0 ** 2000 is an OverflowError.
        return self._jittered(min(self._backoff_max_s, self._backoff_s * 2.0 ** min(doublings, 64)))

    def _jittered(self, longest_s: float) -> float:
        return longest_s * (1 + self._random()) / 2
