"""The way of one request to a worker: pick, connect or reuse, and try again.

Owns: which worker has the request and over which connection, and carrying out what `retry`
allows after a failed attempt. Must not know: bodies, the response, or how the exchange ends;
that is `exchange`, which derives from this.
"""

from time import monotonic

from penstock_proxy.balancing.pool import Member
from penstock_proxy.balancing.retry_budget import MAX_RETRIES
from penstock_proxy.errors import CONNECT_FAILED, NO_WORKER, QUEUE_FULL, Fault, Side
from penstock_proxy.http.downstream import Downstream
from penstock_proxy.http.retry import IDEMPOTENT, Again, Loss, RetryState, had_ended_idle
from penstock_proxy.http.worker_connection import ResponseReceiver, WorkerConnection
from penstock_proxy.http1.request import PreparedRequest
from penstock_proxy.http1.request_body import MAX_REPLAYED
from penstock_proxy.net.tcp_info import acknowledged


class UpstreamRequest(ResponseReceiver):
    """A request on its way to a worker."""

    # Defaults of the class, not slots: most of an exchange never changes from them, and
    # setting two dozen attributes would be a tenth of what the whole of it costs.
    connect_s: float | None = None
    member: Member | None = None
    link: WorkerConnection | None = None
    responding = False
    """The final response has begun."""
    retries = 0
    tries: RetryState | None = None
    """Since the first attempt has failed."""

    client: Downstream
    prepared: PreparedRequest
    started: float

    # -- to a worker

    def dispatch(self) -> None:
        """Choose a worker and send it the request; wait if there is none."""
        client, tries = self.client, self.tries
        service = client.service
        member = service.pool.pick(client.address, () if tries is None else tries.tried)
        if member is None:
            self.wait()
            return
        self.member = member
        member.active += 1
        link = self._reusable(member)
        if link is not None:
            link.begin(self)
            self.send_request(link)
            return
        self.expire_in(service.timeouts.connect)
        service.connections.connect(member, self, client.proxy_header)

    def _reusable(self, member: Member) -> WorkerConnection | None:
        """A kept connection whose end would not be the end of this request, if there is one."""
        connections, tries = self.client.service.connections, self.tries
        framing = self.prepared.framing
        if framing.length > MAX_REPLAYED or (tries is not None and tries.reconnects):
            return None
        if self.line.method in IDEMPOTENT and not framing.chunked:
            return connections.take(member)
        return connections.take_safe(member, monotonic())

    def connected(self, link: WorkerConnection) -> None:
        """A new connection to the worker stands."""
        self.connect_s = monotonic() - self.started
        self.client.service.counters.connect.observe(self.connect_s)
        if self.line.method not in IDEMPOTENT:
            link.acked = acknowledged(link.transport)
        self.send_request(link)

    def wait(self) -> None:
        """Wait for a worker, if there may be one in time."""
        service, tries = self.client.service, self.tries
        if tries is not None and not tries.another_round(service.retry_budget, monotonic()):
            service.counters.retries_denied += 1
            self.refuse(self.last_fault())
            return
        patience = service.enqueue(self, self.dispatch, self.started)
        if isinstance(patience, float):
            self.expire_in(patience)
        elif patience is QUEUE_FULL:
            self.fail(patience, "")
        else:
            self.refuse(self.last_fault())

    def last_fault(self) -> Fault:
        """What the last attempt ended with, or why there was none."""
        fault = NO_WORKER if self.tries is None else self.tries.last_fault
        return self.client.service.no_worker() if fault is NO_WORKER else fault

    # -- an attempt has failed

    def connect_failed(self, reason: str, fault: Fault = CONNECT_FAILED) -> None:
        """There is no connection to the worker: no byte has reached it."""
        member = self.member
        if member is not None and fault.side is Side.WORKER:
            self.client.service.pool.failed(member, monotonic())
        self._attempt_failed(Loss.UNSENT, fault, reason, reason)

    def lost(self, link: WorkerConnection, fault: Fault, loss: Loss) -> None:
        """The worker's connection ended too early."""
        service, member = self.client.service, self.member
        assert member is not None
        self.link = None
        if had_ended_idle(loss, used=link.used):
            service.connections.closed_idle(link, self.started)
        else:
            service.pool.failed(member, monotonic())
        final = "in the middle of an answer" if self.responding else ""
        self._attempt_failed(loss, fault, "before it answered", final, used=link.used)

    def useless(self, fault: Fault, reason: str) -> None:
        """What the worker says cannot be passed on, or it says nothing: others may do better."""
        assert self.member is not None
        self.client.service.pool.failed(self.member, monotonic())
        self._attempt_failed(Loss.BROKEN, fault, reason, reason)

    def _attempt_failed(
        self, loss: Loss, fault: Fault, reason: str, final: str, *, used: bool = False
    ) -> None:
        """Try again as the rules and the budget allow, or fail.

        `reason` is for the log; `final` instead of it, where the rules allow no other attempt.
        """
        service = self.client.service
        tries = self.tries = self.tries or RetryState()
        again = tries.after(
            loss,
            fault,
            idempotent=self.line.method in IDEMPOTENT,
            repeatable=self.is_repeatable,
            used=used,
        )
        if again is Again.NEVER:
            self.fail(fault, final)
        elif again is Again.RECONNECT:
            tries.reconnects = True
            service.counters.stale += 1
            self.release_member()
            self.dispatch()
        elif again is Again.PAID and not service.retry_budget.take(monotonic()):
            service.counters.retries_denied += 1
            self.fail(fault, reason)
        else:
            self.drop_link()
            self._try_elsewhere(tries, fault, reason)

    def _try_elsewhere(self, tries: RetryState, fault: Fault, reason: str) -> None:
        client, service = self.client, self.client.service
        member = self.release_member()
        service.counters.errors[fault.kind] += 1
        service.error_log.fault(self.line, client.address, fault, reason, member)
        tries.failed(member, fault)
        if self.retries >= MAX_RETRIES:
            self.refuse(fault)
            return
        self.retries += 1
        service.counters.retries += 1
        if member is not None:
            member.retried_elsewhere += 1
        self.dispatch()

    # -- letting go

    def stop_trying(self) -> None:
        """It is neither connected nor waited for any more."""
        service = self.client.service
        if self.connecting is not None:
            service.connections.cancel(self.connecting)
            self.connecting = None
        service.queue.leave(self)

    def drop_link(self) -> None:
        """Cut the connection to the worker off, if there is one."""
        link, self.link = self.link, None
        if link is not None:
            link.receiver = None
            link.transport.abort()

    def release_member(self) -> Member | None:
        """The worker has one request less."""
        member, self.member = self.member, None
        if member is not None:
            member.active -= 1
            if member.is_full:
                self.client.service.release(member)
        return member

    def expire_in(self, seconds: float) -> None:
        """Set the deadline of what is waited for now."""
        client = self.client
        total = client.service.timeouts.total
        deadline = monotonic() + seconds
        if total and deadline > self.started + total:
            deadline = self.started + total
        client.deadline = deadline
        if deadline < client.bucket:
            client.service.timers.arm(client, deadline)

    # -- supplied by the exchange

    @property
    def is_repeatable(self) -> bool:
        """Has the client seen nothing, and is all that was sent still here?"""
        raise NotImplementedError

    def send_request(self, link: WorkerConnection) -> None:
        """Send what there is of the request over this connection."""
        raise NotImplementedError

    def fail(self, fault: Fault, reason: str) -> None:
        """Count a fault, say why, and end the exchange with it."""
        raise NotImplementedError

    def refuse(self, fault: Fault) -> None:
        """End the exchange: there is no worker left to try."""
        raise NotImplementedError
