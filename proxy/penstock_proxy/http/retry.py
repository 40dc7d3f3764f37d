"""May a failed request be retried, and how?

Owns: the retry rules, and the retry state of one request: which workers may have read it. The
state is made when the first attempt fails, so that a request that succeeds at once costs nothing.
This module only decides; `retried_request` asks another worker and pays from the budget. No I/O, no
clock.

A request may be retried as long as nothing of a response was sent to the client and the whole
request can be sent again. A worker that may have read it has *executed* it, for all that anybody
can know. So many may do that as `retries.attempts` allows, and each process once: a request
that kills its workers must not kill all of them. What no worker can have read is not counted.

See docs/decisions/0012-retry-budget.md.
"""

from enum import Enum, auto
from typing import Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.balancing.retry_budget import Attempts
from penstock_proxy.config import Retries, RetryKind
from penstock_proxy.errors import (
    ANSWERED,
    BAD_RESPONSE,
    CONNECT_FAILED,
    CONNECT_TIMEOUT,
    NO_DESCRIPTORS,
    RESPONSE_TIMEOUT,
    STOP_TIMEOUT,
    WORKER_CLOSED,
    WORKER_RESET,
    Fault,
)

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110 §9.2.2."""

KINDS: Final[dict[Fault, RetryKind]] = {
    CONNECT_FAILED: "connect",
    CONNECT_TIMEOUT: "connect",
    NO_DESCRIPTORS: "connect",
    WORKER_RESET: "reset",
    WORKER_CLOSED: "reset",
    BAD_RESPONSE: "reset",
    RESPONSE_TIMEOUT: "timeout",
    STOP_TIMEOUT: "timeout",
    ANSWERED[502]: "502",
    ANSWERED[503]: "503",
    ANSWERED[504]: "504",
}
"""What each fault of an attempt is called in `retries.on`."""

_ENDED: Final = frozenset({WORKER_RESET, WORKER_CLOSED})
"""With these the worker may have died, and a new process may follow."""
_REPLACED_S: Final = 0.25
"""Within this time the proxy hears of the end of a process, with time to spare."""


class Failure(Enum):
    """How an attempt failed, by how much of the request the worker may have read."""

    UNSENT = auto()
    """Nothing: there was no connection."""
    CLOSED = auto()
    """Nothing: the worker had closed a kept connection before the request came."""
    UNREAD = auto()
    """Nothing: it closed a new connection, and its kernel has acknowledged none of it."""
    STALE = auto()
    """Perhaps all of it. But the connection had been reused and nothing was received on it, so
    the worker may have closed it while it was idle."""
    BROKEN = auto()
    """Perhaps all of it, and the worker is at fault."""
    ANSWERED = auto()
    """All of it. The answer is an error that is not sent to the client yet."""


class RetryDecision(Enum):
    """What to do after a failed attempt."""

    FAIL = auto()
    EXHAUSTED = auto()
    """Fail: as many workers may have executed it as are allowed to."""
    RECONNECT = auto()
    """Send it again at once over a new connection, to whichever worker is next. It is free."""
    NEXT_WORKER = auto()
    """Send it to another worker. It is free."""
    NEXT_WORKER_IF_PAID = auto()
    """Send it to another worker, if the retry budget allows it."""


RULES: Final[dict[Failure, dict[bool, RetryDecision]]] = {
    Failure.UNSENT: {True: RetryDecision.NEXT_WORKER, False: RetryDecision.NEXT_WORKER},
    Failure.CLOSED: {True: RetryDecision.RECONNECT, False: RetryDecision.RECONNECT},
    Failure.UNREAD: {
        True: RetryDecision.NEXT_WORKER_IF_PAID,
        False: RetryDecision.NEXT_WORKER_IF_PAID,
    },
    # Once only, because what follows uses new connections. A worker that closes after each response
    # would use up the budget otherwise, and nothing is wrong with it.
    Failure.STALE: {True: RetryDecision.NEXT_WORKER, False: RetryDecision.FAIL},
    Failure.BROKEN: {True: RetryDecision.NEXT_WORKER_IF_PAID, False: RetryDecision.FAIL},
    Failure.ANSWERED: {True: RetryDecision.NEXT_WORKER_IF_PAID, False: RetryDecision.FAIL},
}
"""By failure, and by whether the method is idempotent."""

NOT_EXECUTED: Final = frozenset({Failure.UNSENT, Failure.CLOSED, Failure.UNREAD})
"""No worker can have read the request."""


def closed_while_idle(failure: Failure) -> bool:
    """Had the worker closed an idle connection, perhaps before this request?

    Then the failure does not count against the worker.
    """
    return failure is Failure.CLOSED or failure is Failure.STALE


class RetryState(Attempts):
    """The failed attempts of one request."""

    __slots__ = (
        "_executed_by",
        "_may_be_replaced_until",
        "_retries",
        "chosen",
        "executions",
        "may_reconnect",
        "new_connection_only",
    )

    def __init__(self, retries: Retries) -> None:
        super().__init__()
        self._retries = retries
        self._executed_by: tuple[tuple[Member, int], ...] = ()
        """Workers that may have read it, each with its generation: its next process is another
        worker."""
        self._may_be_replaced_until = 0.0
        self.executions = 0
        self.chosen: Member | None = None
        """The worker that is asked next, if it was picked already."""
        self.may_reconnect = False
        """The worker that closed a kept connection may be asked again if there is no other."""
        self.new_connection_only = False
        """Reuse no idle connection any more: one had ended, or an attempt must not be wasted."""

    def decide(
        self, failure: Failure, fault: Fault, *, idempotent: bool, repeatable: bool
    ) -> RetryDecision:
        """Decide what follows a failed attempt.

        `repeatable`: nothing of a response was sent to the client, and the whole request can
        be sent again.
        """
        decision = RULES[failure][idempotent] if repeatable else RetryDecision.FAIL
        if decision is RetryDecision.FAIL or decision is RetryDecision.RECONNECT:
            return decision
        if KINDS[fault] not in self._retries.on:
            return RetryDecision.FAIL
        if failure not in NOT_EXECUTED and self.executions + 1 >= self._retries.attempts:
            return RetryDecision.EXHAUSTED
        return decision

    def record(self, member: Member, failure: Failure, fault: Fault, now: float) -> None:
        """Record a failed attempt with this member, before another one is picked."""
        if failure in NOT_EXECUTED:
            self.failed(member, fault)
            return
        self.executions += 1
        self._executed_by += ((member, member.generation),)
        self.last_fault = fault
        self.may_reconnect = failure is Failure.STALE
        # The end of a kept connection may look like another execution.
        self.new_connection_only = True
        if fault in _ENDED:
            self._may_be_replaced_until = now + _REPLACED_S

    def failed(self, member: Member, fault: Fault) -> None:
        """Record an attempt that no worker can have read: it does not hide an earlier fault."""
        last = self.last_fault
        super().failed(member, fault)
        if self.executions:
            self.last_fault = last

    def avoided(self) -> tuple[Member, ...]:
        """Members that must not get the request now."""
        return self.tried + tuple(m for m, began in self._executed_by if m.generation == began)

    def may_wait(self, now: float) -> bool:
        """May it wait for another worker although a worker has executed it?

        Only for a moment: a worker that has died is out of the rotation after it. One that is
        still there has failed, and lives.
        """
        return now < self._may_be_replaced_until
