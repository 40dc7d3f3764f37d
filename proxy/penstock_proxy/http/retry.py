"""May a failed request be retried, and how?

Owns: the retry rules, and the retry state of one request. The state is made when the first
attempt fails, so that a request that succeeds at once costs nothing. This module only decides;
`upstream_request` pays from the budget, picks and connects. No I/O, no clock.

A request may be retried as long as nothing of a response was sent to the client and the whole
request can be sent again.

See docs/decisions/0012-retry-budget.md.
"""

from enum import Enum, auto
from typing import Final

from penstock_proxy.balancing.retry_budget import Attempts
from penstock_proxy.errors import RESPONSE_TIMEOUT, Fault

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110 §9.2.2."""


class Failure(Enum):
    """How an attempt failed, by how much of the request the worker may have read."""

    UNSENT = auto()
    """Nothing: there was no connection."""
    UNREAD = auto()
    """Nothing: the worker's kernel has acknowledged none of it."""
    STALE = auto()
    """Perhaps all of it. But the connection had been reused and nothing was received on it, so
    most likely the worker had closed it while it was idle."""
    BROKEN = auto()
    """Perhaps all of it, and the worker is at fault."""


class RetryDecision(Enum):
    """What to do after a failed attempt."""

    FAIL = auto()
    RECONNECT = auto()
    """Send it again at once over a new connection. It is free."""
    NEXT_WORKER = auto()
    """Send it to the next worker. It is free."""
    NEXT_WORKER_IF_PAID = auto()
    """Send it to the next worker, if the retry budget allows it."""


RULES: Final[dict[Failure, dict[bool, RetryDecision]]] = {
    Failure.UNSENT: {True: RetryDecision.NEXT_WORKER, False: RetryDecision.NEXT_WORKER},
    Failure.UNREAD: {
        True: RetryDecision.NEXT_WORKER_IF_PAID,
        False: RetryDecision.NEXT_WORKER_IF_PAID,
    },
    Failure.STALE: {True: RetryDecision.RECONNECT, False: RetryDecision.FAIL},
    Failure.BROKEN: {True: RetryDecision.NEXT_WORKER_IF_PAID, False: RetryDecision.FAIL},
}
"""By failure, and by whether the method is idempotent."""


def closed_while_idle(failure: Failure, *, used: bool) -> bool:
    """Had the worker closed an idle connection before this request?

    Then the failure does not count against the worker.
    """
    return failure is Failure.STALE or (failure is Failure.UNREAD and used)


class RetryState(Attempts):
    """The failed attempts of one request."""

    __slots__ = ("new_connection_only",)

    def __init__(self) -> None:
        super().__init__()
        self.new_connection_only = False
        """Reuse no idle connection any more: one had been closed unnoticed."""

    def decide(
        self, failure: Failure, fault: Fault, *, idempotent: bool, repeatable: bool, used: bool
    ) -> RetryDecision:
        """Decide what follows a failed attempt.

        `repeatable`: nothing of a response was sent to the client, and the whole request can
        be sent again. `used`: the connection had carried a request before this one.
        """
        if not repeatable:
            return RetryDecision.FAIL
        if fault is RESPONSE_TIMEOUT and self.last_fault is fault:
            # Two workers did not respond in time, so the request itself is the likely reason.
            # Each further attempt would take as long again.
            return RetryDecision.FAIL
        if failure is Failure.UNREAD and used:
            # Closed while idle: not the worker's fault, and nothing is done twice.
            return RetryDecision.RECONNECT
        return RULES[failure][idempotent]
