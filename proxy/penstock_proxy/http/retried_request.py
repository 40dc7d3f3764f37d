"""What follows from an attempt that has failed: another one, or the end of the request.

Owns: how each kind of failure is counted, at the worker and at the service, and that what `retry`
decides is carried out: another worker is asked, waited for and paid from the retry budget. Must not
know: how a worker is reached (`upstream_request`, its base), bodies, the response, and how the
exchange ends; that is `exchange`, which derives from this.
"""

from time import monotonic

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import (
    ANSWERED,
    CONNECT_FAILED,
    CONNECT_TIMEOUT,
    QUEUE_FULL,
    STOP_TIMEOUT,
    WORKER_CLOSED,
    Fault,
    Side,
)
from penstock_proxy.http.retry import (
    IDEMPOTENT,
    Failure,
    RetryDecision,
    RetryState,
    closed_while_idle,
)
from penstock_proxy.http.upstream_connection import UpstreamConnection
from penstock_proxy.http.upstream_request import UpstreamRequest


class RetriedRequest(UpstreamRequest):
    """A request that may be tried again."""

    def connect_failed(self, reason: str, fault: Fault = CONNECT_FAILED) -> None:
        """Connecting to the worker failed: no byte has reached it."""
        member = self.member
        if member is not None and fault.side is Side.WORKER:
            self.client.service.pool.failed(member, monotonic())
        self._attempt_failed(Failure.UNSENT, fault, reason, reason)

    def worker_connection_lost(
        self, connection: UpstreamConnection, fault: Fault, failure: Failure
    ) -> None:
        """The worker's connection ended before the response did."""
        service, member = self.client.service, self.member
        assert member is not None
        self.connection = None
        if closed_while_idle(failure):
            # A request that has waited in the queue is older than the connection's idle time.
            asked = self.started if self.started > connection.idle_since else monotonic()
            service.connections.note_idle_close(connection, asked)
        else:
            service.pool.failed(member, monotonic())
        final = "in the middle of an answer" if self.response_started else ""
        self._attempt_failed(failure, fault, "before it answered", final)

    def discard_408(self, connection: UpstreamConnection) -> bool:
        """The worker closes a kept connection with a 408, which may have been sent before this
        request came, and says that none has (RFC 9110 §15.5.9). True: the request is sent again."""
        retry_state = self.retry_state or RetryState(self.client.service.config.retries)
        if self._decide(retry_state, Failure.STALE, WORKER_CLOSED) is not RetryDecision.NEXT_WORKER:
            return False
        self.drop_connection()
        self.worker_connection_lost(connection, WORKER_CLOSED, Failure.STALE)
        return True

    def bad_response(self, fault: Fault, reason: str) -> None:
        """The response is malformed or missing: another worker may do better."""
        assert self.member is not None
        self.client.service.pool.failed(self.member, monotonic())
        self._attempt_failed(Failure.BROKEN, fault, reason, reason)

    def worker_out_of_time(self) -> None:
        """The time to finish of the worker that has it is over. It may be what hangs the worker."""
        failure, fault = Failure.BROKEN, STOP_TIMEOUT
        if self.connection is None:
            self.stop_trying()
            failure, fault = Failure.UNSENT, CONNECT_TIMEOUT
        reason = "its time to finish was over"
        self._attempt_failed(failure, fault, reason, reason)

    def _attempt_failed(self, failure: Failure, fault: Fault, reason: str, final: str) -> None:
        """Retry as the rules and the budget allow, or fail.

        `reason` is for the log. Where the rules allow no retry, `final` is logged instead.
        """
        service = self.client.service
        retry_state = self.retry_state = self.retry_state or RetryState(service.config.retries)
        decision = self._decide(retry_state, failure, fault)
        if decision is RetryDecision.FAIL:
            self.fail(fault, final)
        elif decision is RetryDecision.EXHAUSTED:
            service.counters.retries_exhausted += 1
            self.fail(fault, reason)
        elif decision is RetryDecision.RECONNECT:
            retry_state.new_connection_only = True
            service.counters.stale += 1
            self.release_member()
            self.dispatch()
        else:
            if failure is Failure.STALE:
                service.counters.stale += 1
            is_paid = decision is RetryDecision.NEXT_WORKER_IF_PAID
            self._try_another(retry_state, failure, fault, reason, is_paid=is_paid)

    def _decide(self, retry_state: RetryState, failure: Failure, fault: Fault) -> RetryDecision:
        idempotent = self.line.method in IDEMPOTENT
        return retry_state.decide(
            failure, fault, idempotent=idempotent, repeatable=self.is_repeatable
        )

    def discard(self, status: int) -> bool:
        """Discard the worker's answer with this status, if another worker can be asked now."""
        service, member = self.client.service, self.member
        assert member is not None
        retry_state = self.retry_state or RetryState(service.config.retries)
        fault = ANSWERED[status]
        decision = self._decide(retry_state, Failure.ANSWERED, fault)
        if decision is not RetryDecision.NEXT_WORKER_IF_PAID:
            service.counters.retries_exhausted += decision is RetryDecision.EXHAUSTED
            return False
        retry_state.record(member, Failure.ANSWERED, fault, monotonic())
        another = self._pick_another(retry_state)
        if another is None or not self._pay(another):
            return False
        self.retry_state = retry_state
        self._retry(retry_state, fault, "", another)
        self.dispatch()
        return True

    def _try_another(
        self,
        retry_state: RetryState,
        failure: Failure,
        fault: Fault,
        reason: str,
        *,
        is_paid: bool,
    ) -> None:
        """Ask another worker, or wait for one; fail if there will be none, or it is not paid."""
        member = self.member
        assert member is not None
        retry_state.record(member, failure, fault, monotonic())
        another = self._pick_another(retry_state)
        if another is None:
            if not self._may_wait(retry_state):
                self._give_up(fault, reason)
                return
            refused = self._enqueue()
            if refused is not None:
                self._give_up(fault, reason, refused)
                return
            # A round over workers that were tried in vain is additional load, too.
            is_paid = True
        if is_paid and not self._pay(another):
            self._give_up(fault, reason)
            return
        self._retry(retry_state, fault, reason, another)
        if another is None:
            retry_state.tried = ()
        else:
            self.dispatch()

    def _give_up(self, fault: Fault, reason: str, refused: Fault | None = None) -> None:
        """End the exchange: nothing follows the attempt that has failed with this fault.

        `refused`: why it may not wait in the queue.
        """
        service, member = self.client.service, self.member
        assert member is not None
        final = self.last_fault()
        if refused is QUEUE_FULL and not (self.retry_state and self.retry_state.executions):
            final = refused
        if final is fault:
            self.fail(fault, reason)
            return
        service.counters.errors[fault.kind] += 1
        service.error_log.worker_failed(member, fault, reason)
        self.drop_connection()
        self.release_member()
        if final is refused:
            self.fail(final, "")
        else:
            self.refuse(final)

    def _pay(self, another: Member | None) -> bool:
        """Take a retry from the budget. If it is spent, the picked worker gets nothing."""
        service = self.client.service
        if service.retry_budget.take(monotonic()):
            return True
        service.counters.retries_denied += 1
        if another is not None:
            service.pool.released(another)
        return False

    def _retry(
        self, retry_state: RetryState, fault: Fault, reason: str, another: Member | None
    ) -> None:
        """The attempt is over, and `another` is next; None: it waits in the queue."""
        client, service = self.client, self.client.service
        self.drop_connection()
        member = self.release_member()
        assert member is not None
        service.counters.errors[fault.kind] += 1
        service.error_log.attempt_failed(self.line, client.address, fault, reason, member, another)
        self.retries += 1
        service.counters.retries += 1
        member.retried_elsewhere += 1
        retry_state.chosen = another
