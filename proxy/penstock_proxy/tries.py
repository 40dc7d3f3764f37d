"""The tries of one request after the first.

Owns: which workers a request was given to in vain, and what the next step is. It is made
when the first try fails, so that a request that succeeds at once costs nothing. Must not
know: what may follow a failure (`retrying`), how a request is sent (`exchange`).
"""

from time import monotonic
from typing import TYPE_CHECKING, Final

from penstock_proxy.errors import NO_WORKER, RESPONSE_TIMEOUT, Fault, Side
from penstock_proxy.retrying import Again, Loss, again

if TYPE_CHECKING:
    from penstock_proxy.exchange import Exchange
    from penstock_proxy.pool import Member
    from penstock_proxy.upstream import WorkerConnection

_MAX_TRIES: Final = 16
"""Ends what the queue's time-out would otherwise end later."""


class Tries:
    """Of one exchange."""

    __slots__ = ("_exchange", "fresh", "last_fault", "tried")

    def __init__(self, exchange: "Exchange") -> None:
        self._exchange = exchange
        self.tried: tuple[Member, ...] = ()
        """Not to be asked again in this round."""
        self.fresh = False
        """No kept connection any more: one has ended unnoticed."""
        self.last_fault = NO_WORKER

    def unsent(self, fault: Fault, reason: str) -> None:
        """No byte has reached the worker: the next one may be tried."""
        exchange = self._exchange
        if exchange.member is not None and fault.side is Side.WORKER:
            exchange.client.service.pool.failed(exchange.member, monotonic())
        self._again_or_fail(fault, reason, again(Loss.UNSENT, idempotent=False, used=False))

    def lost(self, link: "WorkerConnection", fault: Fault, loss: Loss) -> None:
        """The worker's connection ended too early."""
        exchange = self._exchange
        service, member = exchange.client.service, exchange.member
        assert member is not None
        verdict = again(loss, idempotent=exchange.is_idempotent, used=link.used)
        if loss is Loss.STALE or verdict is Again.AFRESH:
            # One that was kept too long says nothing about its worker.
            service.kept.ended(link, exchange.started)
        else:
            service.pool.failed(member, monotonic())
        if not exchange.is_repeatable or verdict is Again.NEVER:
            exchange.fail(fault, "in the middle of an answer" if exchange.responding else "")
        elif verdict is Again.AFRESH:
            self.fresh = True
            service.counters.stale += 1
            exchange.leave_member()
            exchange.dispatch()
        else:
            self._again_or_fail(fault, "before it answered", verdict)

    def useless(self, fault: Fault, reason: str) -> None:
        """What the worker says cannot be passed on, or it says nothing: others may do better."""
        exchange = self._exchange
        assert exchange.member is not None
        exchange.client.service.pool.failed(exchange.member, monotonic())
        verdict = again(Loss.BROKEN, idempotent=exchange.is_idempotent, used=False)
        # Each may be silent for as long as the first, and a third would be what the request does.
        twice = fault is RESPONSE_TIMEOUT and self.last_fault is fault
        if twice or not exchange.is_repeatable or verdict is Again.NEVER:
            exchange.fail(fault, reason)
            return
        exchange.drop_link()
        self._again_or_fail(fault, reason, verdict)

    def _again_or_fail(self, fault: Fault, reason: str, verdict: Again) -> None:
        exchange = self._exchange
        service = exchange.client.service
        if verdict is Again.PAID and not self._pay():
            exchange.fail(fault, reason)
            return
        member = exchange.leave_member()
        service.counters.errors[fault.kind] += 1
        client = exchange.client
        service.error_log.fault(exchange.line, client.address, fault, reason, member)
        self.last_fault = fault
        if exchange.retries >= _MAX_TRIES:
            exchange.refuse(fault)
            return
        exchange.retries += 1
        service.counters.retries += 1
        if member is not None:
            member.elsewhere += 1
            self.tried += (member,)
        exchange.dispatch()

    def another_round(self) -> bool:
        """All have been tried: may they be tried again, once one is free?"""
        if self.tried and not self._pay():
            return False
        self.tried = ()
        return True

    def _pay(self) -> bool:
        service = self._exchange.client.service
        paid = service.budget.take(monotonic())
        service.counters.retries_denied += not paid
        return paid
