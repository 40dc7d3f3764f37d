"""The retry budget of a service, and the failed attempts of one request.

Owns: how many retries a service may make, and which members have failed one request or
connection already. Must not know: which failures may be retried (`retry`), connections, which
member is next. No I/O, no clock.

A retry is additional load. When every worker fails, retries multiply the load just when there is
least capacity. So a retry is paid from a budget, a share of the requests of the last ten seconds
(the idea and the numbers are those of Finagle's RetryBudget). Two kinds are free. If connecting
failed, nothing was sent, and the next worker gets the request, once each. If a kept connection had
ended, the request is sent again over a new one, once if the worker may have read it. Any other
retry is paid for, and so is a second round over workers that could not be connected to.

See docs/decisions/0012-retry-budget.md.
"""

from collections import deque
from typing import Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import Retries
from penstock_proxy.errors import NO_WORKER, Fault

MAX_TRIED: Final = 16
"""Members that are tried in one round: each of them is a few calls deeper if it refuses at once."""
SLICES: Final = 10
"""The window of the budget, in slices of a second."""


class RetryBudget:
    """Retries are limited to a share of the requests of the last ten seconds, and never to less
    than some per second."""

    __slots__ = ("_minimum", "_ratio", "_requests", "_retries", "_second", "_total")

    def __init__(self, retries: Retries, now: float) -> None:
        self.configure(retries)
        self._second = int(now)
        self._total = 0
        self._requests = deque([0], maxlen=SLICES)
        """By second; the last one is the current second."""
        self._retries = deque([0], maxlen=SLICES)

    def configure(self, retries: Retries) -> None:
        """Set the budget. What was taken in the last ten seconds still counts."""
        self._ratio = retries.budget
        self._minimum = retries.min_per_second * SLICES

    def count_requests(self, total: int, now: float) -> None:
        """Update the number of requests; `total`: since the start. Called by every tick."""
        self._advance(now)
        self._requests[-1] += total - self._total
        self._total = total

    def take(self, now: float) -> bool:
        """Take one retry from the budget; False if it is used up."""
        self._advance(now)
        # Rounded up a little: 0.29 * 100 is 28.999… in binary.
        allowed = max(self._ratio * sum(self._requests) + 1e-9, self._minimum)
        if sum(self._retries) + 1 > allowed:
            return False
        self._retries[-1] += 1
        return True

    def _advance(self, now: float) -> None:
        """Advance the window to the current second."""
        for _ in range(min(int(now) - self._second, SLICES)):
            self._requests.append(0)
            self._retries.append(0)
        self._second = max(self._second, int(now))


class Attempts:
    """The failed attempts of one request or connection."""

    __slots__ = ("last_fault", "tried")

    def __init__(self) -> None:
        self.tried: tuple[Member, ...] = ()
        """Members that have failed in this round: they are not picked again in it. It is over
        when no other is left, and the request or connection waits in the queue."""
        self.last_fault = NO_WORKER

    def failed(self, member: Member, fault: Fault) -> None:
        """Record a failed attempt with this member."""
        self.last_fault = fault
        self.tried += (member,)
