"""How often requests may be tried again, in all and each of them.

Owns each service's budget of retries, and which members one request or connection was given to
in vain. Must not know: what a failure allows (`retry`), connections, who is next. No I/O, no
clock.

A retry is load that nobody asked for. When every worker fails, retries multiply the load
just when there is least to spare; so those that a worker may have worked for are paid from
a budget: a share of the requests of the last ten seconds (the idea and the numbers are
those of Finagle's RetryBudget). What no worker has seen is free, as it costs none of them
anything: a connection that was refused goes to the next worker, once to each, and one that
had ended while it was idle is replaced by a new one.
"""

from collections import deque
from typing import Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import Retries
from penstock_proxy.errors import NO_WORKER, Fault

MAX_RETRIES: Final = 16
"""Of one request or connection. Ends what the queue's time-out would otherwise end later."""
SLICES: Final = 10
"""A budget looks back this many seconds, one by one."""


class RetryBudget:
    """How many retries there may be: a share of the requests of the last ten seconds, but
    at least some a second."""

    __slots__ = ("_at", "_least", "_made", "_requests", "_share", "_total")

    def __init__(self, retries: Retries, now: float) -> None:
        self._share = retries.budget
        self._least = retries.min_per_second * SLICES
        self._at = int(now)
        self._total = 0
        self._requests = deque([0], maxlen=SLICES)
        """By second, the last one is now."""
        self._made = deque([0], maxlen=SLICES)

    def seen(self, total: int, now: float) -> None:
        """There were so many requests since the start; said by every tick."""
        self._turn(now)
        self._requests[-1] += total - self._total
        self._total = total

    def take(self, now: float) -> bool:
        """Pay for one retry; False if there is nothing left to pay with."""
        self._turn(now)
        # A little more than exact: 0.29 * 100 is 28.999… in binary.
        allowed = max(self._share * sum(self._requests) + 1e-9, self._least)
        if sum(self._made) + 1 > allowed:
            return False
        self._made[-1] += 1
        return True

    def _turn(self, now: float) -> None:
        """Let go of the seconds that are too long ago."""
        for _ in range(min(int(now) - self._at, SLICES)):
            self._requests.append(0)
            self._made.append(0)
        self._at = max(self._at, int(now))


class Attempts:
    """The attempts of one request or connection that have failed."""

    __slots__ = ("last_fault", "tried")

    def __init__(self) -> None:
        self.tried: tuple[Member, ...] = ()
        """Not to be picked again in this round."""
        self.last_fault = NO_WORKER

    def failed(self, member: Member | None, fault: Fault) -> None:
        """It was given to this member in vain."""
        self.last_fault = fault
        if member is not None:
            self.tried += (member,)

    def another_round(self, budget: RetryBudget, now: float) -> bool:
        """All have been tried: may they be tried again, once one is free?"""
        if self.tried and not budget.take(now):
            return False
        self.tried = ()
        return True
