"""May a request be tried again, by whom, and how often in all?

Owns: the rule that says what the loss of a connection allows, and each service's budget of
retries. Must not know: connections, workers, who is next. No I/O, no clock.

A retry is load that nobody asked for. When every worker fails, retries multiply the load
just when there is least to spare; so those that a worker may have worked for are paid from
a budget: a share of the requests of the last ten seconds (the idea and the numbers are
those of Finagle's RetryBudget). What no worker has seen is free, as it costs none of them
anything: a connection that was refused goes to the next worker, once to each, and one that
had ended while it was idle is replaced by a new one.
"""

from collections import deque
from enum import Enum, auto
from typing import Final

from penstock_proxy.config import Retries

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110 §9.2.2."""
SLICES: Final = 10
"""A budget looks back this many seconds, one by one."""


class Loss(Enum):
    """What a worker can have seen of a request whose connection is lost."""

    UNSENT = auto()
    """Nothing: there was no connection."""
    UNREAD = auto()
    """Nothing: the kernel at the other end has taken none of it."""
    STALE = auto()
    """Perhaps all of it. But the connection was used before and has not said a word since,
    so most likely it had ended while it was idle."""
    BROKEN = auto()
    """Perhaps all of it, and it is to blame."""


class Again(Enum):
    """What may be done next."""

    NEVER = auto()
    AFRESH = auto()
    """At once, with the same worker on a new connection."""
    ELSEWHERE = auto()
    """With the next worker."""
    PAID = auto()
    """With the next worker, if the budget has one left."""


RULES: Final[dict[Loss, dict[bool, Again]]] = {
    Loss.UNSENT: {True: Again.ELSEWHERE, False: Again.ELSEWHERE},
    Loss.UNREAD: {True: Again.PAID, False: Again.PAID},
    Loss.STALE: {True: Again.AFRESH, False: Again.NEVER},
    Loss.BROKEN: {True: Again.PAID, False: Again.NEVER},
}
"""By what was lost, and whether the method is idempotent."""


def again(loss: Loss, *, idempotent: bool, used: bool) -> Again:
    """What may follow a loss before the client has seen anything of an answer.

    `used`: the connection had carried a request before this one.
    """
    if loss is Loss.UNREAD and used:
        # It had ended while it was idle: no fault of its worker's, and nothing is repeated.
        return Again.AFRESH
    return RULES[loss][idempotent]


class Budget:
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
