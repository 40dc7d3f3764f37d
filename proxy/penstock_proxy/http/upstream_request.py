"""One request on its way to a worker: pick a worker, connect or reuse a connection, or wait.

Owns: which worker has the request and over which connection. Must not know: what follows when an
attempt fails (`retried_request`, which derives from this), bodies, the response, and how the
exchange ends.
"""

from time import monotonic

from penstock_proxy.balancing.pool import Member
from penstock_proxy.balancing.retry_budget import MAX_TRIED
from penstock_proxy.errors import (
    NO_WORKER,
    QUEUE_FULL,
    Fault,
)
from penstock_proxy.http.downstream import Downstream
from penstock_proxy.http.retry import (
    IDEMPOTENT,
    RetryState,
)
from penstock_proxy.http.upstream_connection import Binding, ResponseReceiver, UpstreamConnection
from penstock_proxy.http1.request import PreparedRequest
from penstock_proxy.http1.request_body import MAX_REPLAYED
from penstock_proxy.net.tcp_info import acknowledged


class UpstreamRequest(ResponseReceiver):
    """A request on its way to a worker."""

    # Defaults of the class, not slots: most exchanges change few of them, and to set two dozen
    # attributes would be a tenth of an exchange's cost.
    connect_s: float | None = None
    member: Member | None = None
    connection: UpstreamConnection | None = None
    response_started = False
    """The final response has begun."""
    retries = 0
    retry_state: RetryState | None = None
    """Made when the first attempt fails."""

    client: Downstream
    prepared: PreparedRequest
    started: float

    # -- to a worker

    def dispatch(self) -> None:
        """Pick a worker and send it the request; wait if there is none."""
        client, retry_state = self.client, self.retry_state
        service = client.service
        if retry_state is None:
            binding = client.binding
            if (
                binding is not None
                and binding.connection is not None
                and self._dispatch_bound(binding.connection)
            ):
                return
            member = service.pool.pick(client.address)
        else:
            member = self._pick_another(retry_state)
        if member is None:
            self.wait()
            return
        self.member = member
        member.active += 1
        connection = self._reusable(member)
        if connection is not None:
            connection.start_request(self)
            self.send_request(connection)
            return
        self.expire_in(service.timeouts.connect)
        service.connections.connect(member, self, client.proxy_header)

    def _dispatch_bound(self, connection: UpstreamConnection) -> bool:
        """Send it over the client's own connection, or let it wait for the worker of that. False:
        any worker may have it, because that connection has ended, or can carry it no more."""
        service, member = self.client.service, connection.member
        if member.is_full and not connection.transport.is_closing():
            self.wait()
            return True
        framing = self.prepared.framing
        may_repeat = (
            self.line.method in IDEMPOTENT
            and not framing.chunked
            and framing.length <= MAX_REPLAYED
        )
        if not service.connections.take_bound(connection, monotonic(), may_repeat=may_repeat):
            return False
        service.pool.reserve(member)
        self.member = member
        member.active += 1
        connection.start_request(self)
        self.send_request(connection)
        return True

    def bind(self, connection: UpstreamConnection) -> None:
        """The connection is being authenticated: only this client may use it from now on."""
        client = self.client
        if client.binding is None:
            client.binding = Binding()
        client.service.connections.bind(connection, client.binding)

    def _reusable(self, member: Member) -> UpstreamConnection | None:
        """An idle connection that is safe for this request even if its worker closes it, if any."""
        connections, retry_state = self.client.service.connections, self.retry_state
        framing = self.prepared.framing
        if framing.length > MAX_REPLAYED or (
            retry_state is not None and retry_state.new_connection_only
        ):
            return None
        if self.line.method in IDEMPOTENT and not framing.chunked:
            return connections.take(member, self.started)
        return connections.take_fresh(member, monotonic())

    def connected(self, connection: UpstreamConnection) -> None:
        """A new connection to the worker is established."""
        self.connect_s = monotonic() - self.started
        self.client.service.counters.connect.observe(self.connect_s)
        if self.line.method not in IDEMPOTENT:
            connection.acked_before = acknowledged(connection.transport)
        self.send_request(connection)

    def wait(self) -> None:
        """Wait in the queue for a worker, or fail if that is not allowed."""
        retry_state = self.retry_state
        if retry_state is not None and not self._may_wait(retry_state):
            self.refuse(self.last_fault())
            return
        refused = self._enqueue()
        if refused is None:
            if retry_state is not None:
                retry_state.tried = ()
        elif refused is QUEUE_FULL:
            self.fail(refused, "")
        else:
            self.refuse(self.last_fault())

    def _enqueue(self) -> Fault | None:
        """Join the queue. Returns why that was refused."""
        service = self.client.service
        wait_s = service.enqueue(self, self.dispatch, self.started)
        if isinstance(wait_s, Fault):
            return wait_s
        self.expire_in(wait_s)
        return None

    def last_fault(self) -> Fault:
        """The fault of the last attempt, or why there was none."""
        fault = NO_WORKER if self.retry_state is None else self.retry_state.last_fault
        return self.client.service.no_worker() if fault is NO_WORKER else fault

    def _pick_another(self, retry_state: RetryState) -> Member | None:
        """A worker for the next attempt; None if none may have the request now."""
        another, retry_state.chosen = retry_state.chosen, None
        if another is not None:
            return another
        if len(retry_state.tried) >= MAX_TRIED:
            return None
        pool, address = self.client.service.pool, self.client.address
        another = pool.pick(address, retry_state.avoided())
        if another is None and retry_state.may_reconnect:
            another = pool.pick(address, retry_state.tried)
        return another

    def _may_wait(self, retry_state: RetryState) -> bool:
        """May a request that has failed wait for a worker?

        What no worker can have read may go round again. What one may have read waits only if
        there is another worker, which is full, or may soon be one.
        """
        if not retry_state.executions or retry_state.may_wait(monotonic()):
            return True
        avoided = retry_state.avoided()
        return any(member not in avoided for member in self.client.service.pool.eligible)

    # -- release

    def stop_trying(self) -> None:
        """Cancel the connect, and leave the queue."""
        service = self.client.service
        if self.connecting is not None:
            service.connections.cancel(self.connecting)
            self.connecting = None
        service.queue.remove(self)

    def drop_connection(self) -> None:
        """Abort the connection to the worker, if there is one."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.receiver = None
            connection.transport.abort()

    def release_member(self) -> Member | None:
        """The worker does not have this request any more. Returns the worker, if there was one."""
        member, self.member = self.member, None
        if member is not None:
            member.active -= 1
            if member.is_full or member.is_ordered:
                self.client.service.release(member)
        return member

    def expire_in(self, seconds: float) -> None:
        """Set the deadline of the current wait."""
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
        """Was nothing sent to the client yet, and can the whole request be sent again?"""
        raise NotImplementedError

    def send_request(self, connection: UpstreamConnection) -> None:
        """Send all of the request that has arrived over this connection."""
        raise NotImplementedError

    def fail(self, fault: Fault, reason: str) -> None:
        """Count and log a fault, and end the exchange with it."""
        raise NotImplementedError

    def refuse(self, fault: Fault) -> None:
        """End the exchange: no attempt is left."""
        raise NotImplementedError
