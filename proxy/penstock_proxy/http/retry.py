"""May a request be tried again, and how?

Owns: the rules that say what a failed attempt allows, and the state of one request's attempts.
It is made when the first attempt fails, so that a request that succeeds at once costs nothing.
It decides and does nothing: who pays, picks and connects is `upstream_request`. No I/O, no clock.

A request may be tried again as long as the client has seen nothing of a response and all that
was sent of it is still here to be sent again.
"""

from enum import Enum, auto
from typing import Final

from penstock_proxy.balancing.retry_budget import Attempts
from penstock_proxy.errors import RESPONSE_TIMEOUT, Fault

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110 §9.2.2."""


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
    RECONNECT = auto()
    """At once, with the same worker on a new connection."""
    ELSEWHERE = auto()
    """With the next worker."""
    PAID = auto()
    """With the next worker, if the budget has one left."""


RULES: Final[dict[Loss, dict[bool, Again]]] = {
    Loss.UNSENT: {True: Again.ELSEWHERE, False: Again.ELSEWHERE},
    Loss.UNREAD: {True: Again.PAID, False: Again.PAID},
    Loss.STALE: {True: Again.RECONNECT, False: Again.NEVER},
    Loss.BROKEN: {True: Again.PAID, False: Again.NEVER},
}
"""By what was lost, and whether the method is idempotent."""


def had_ended_idle(loss: Loss, *, used: bool) -> bool:
    """Was it a kept connection that had ended before the request? It says nothing of its worker."""
    return loss is Loss.STALE or (loss is Loss.UNREAD and used)


class RetryState(Attempts):
    """The attempts of one request that have failed."""

    __slots__ = ("reconnects",)

    def __init__(self) -> None:
        super().__init__()
        self.reconnects = False
        """No kept connection any more: one has ended unnoticed."""

    def after(
        self, loss: Loss, fault: Fault, *, idempotent: bool, repeatable: bool, used: bool
    ) -> Again:
        """What may follow a failed attempt.

        `repeatable`: the client has seen nothing of a response, and all that was sent can be
        sent again. `used`: the connection had carried a request before this one.
        """
        if not repeatable:
            return Again.NEVER
        if fault is RESPONSE_TIMEOUT and self.last_fault is fault:
            # Each may be silent for as long as the first, and a third would be what the
            # request does.
            return Again.NEVER
        if loss is Loss.UNREAD and used:
            # It had ended while it was idle: no fault of its worker's, and nothing is repeated.
            return Again.RECONNECT
        return RULES[loss][idempotent]
