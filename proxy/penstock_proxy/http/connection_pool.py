"""Connections to workers: new ones, and idle ones that are kept alive for the next request.

Owns: the connections of one service to its workers, from the connect until they are lost, and
whether an idle one may carry a request. Must not know: which worker is picked (`pool`), and what
happens to a request whose connection ends (`retry`).

A worker closes connections that have been idle for too long, perhaps just when a request is
sent. A request that can be repeated is then sent again. A request that must not be sent twice
gets an idle connection only if the worker is not expected to close it yet. The expected time is
the worker's own (`Keep-Alive: timeout`), or the shortest idle time after which it has recently
closed a connection, less one second. In addition the kernel is asked whether the connection is
still established. If it is closed all the same, `tcp_info` finds out whether the request was
read.

A connection on which anything has come since its last response, or its end, carries no request.
What the reactor found in this turn was read before the request was; where it may not have looked,
the kernel is asked (`Transport.is_quiet`). What is left is the time from the reactor's poll to the
write at the end of the turn. What comes then is in the kernel behind the request, and cannot be
told from a quick response: HTTP/1.1 does not number them. A 408 can: it says that the worker has
seen no request (`retried_request.discard_408`).

A connection that was authenticated as a whole is kept for one client, see
docs/decisions/0018-authenticated-connections.md.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heapreplace
from itertools import chain
from typing import Final

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.http.upstream_connection import Binding, ResponseReceiver, UpstreamConnection
from penstock_proxy.http.worker_connection import WorkerConnection
from penstock_proxy.http1.response import IDLE_S, ResponseHeads
from penstock_proxy.net import tcp_info
from penstock_proxy.net.connector import Connecting, connect, error_text, fault_of
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.service.context import ServiceContext
from penstock_worker.net.stream import Stream

MAX_IDLE: Final = 1024
"""Idle connections of one worker."""
_SPARE_S: Final = 1.0
"""How long before the worker's expected close a connection is not used any more. It is more
than the delay of both event loops in normal operation. A worker that closes sooner than this
gets such requests on new connections."""
_REMEMBERED_S: Final = 60.0
_MAX_OVERDUE: Final = 256
"""Connections that are closed at one tick. Who takes one of the others finds that it is overdue."""
_UP: Final = MemberState.UP
"""Python 3.11 takes longer to find a member of an enum than to compare it."""


class ConnectionPool:
    """The connections of one service to its workers."""

    __slots__ = (
        "_bound",
        "_closes_after",
        "_idle",
        "_max_idle",
        "_responses",
        "_service",
        "_single_responses",
        "_wanted_idle",
        "stopping",
    )

    def __init__(
        self, service: ServiceContext, response_limit: int, max_idle: int = MAX_IDLE
    ) -> None:
        """`response_limit`: bytes of a response's head. `max_idle`: idle connections of one
        worker."""
        self._service = service
        self._responses = ResponseHeads(response_limit)
        self._single_responses = ResponseHeads(response_limit, keeps_alive=False)
        """Of connections with a PROXY header: each belongs to one client, and carries one
        request, if it is not authenticated."""
        self._wanted_idle = max_idle
        # The others have no header, and would be used for clients that need one.
        self._max_idle = 0 if service.proxy_version else max_idle
        self._idle: dict[int, deque[UpstreamConnection]] = {}
        """By number of the worker; the most recently used is at the right."""
        self._bound: dict[UpstreamConnection, None] = {}
        """Those of one client each that are idle; the most recently used is the last."""
        self._closes_after: dict[int, tuple[float, float]] = {}
        """By number of the worker: after how many idle seconds it closed a connection, and until
        when this is remembered."""
        self.stopping = False

    def configure(self, response_limit: int) -> None:
        """Act on the service's configuration as it is now."""
        self._responses.configure(response_limit)
        self._single_responses.configure(response_limit)
        self._max_idle = 0 if self._service.proxy_version else self._wanted_idle
        if not self._max_idle:
            self.drop_all()

    # -- new connections

    def connect(self, member: Member, receiver: ResponseReceiver, proxy_header: bytes) -> None:
        """Connect to a worker; `proxy_header` is sent first.

        Calls the receiver's `connected` or `connect_failed`, perhaps before this returns.
        """
        service = self._service
        responses = self._single_responses if proxy_header else self._responses
        service.fd_budget.upstreams += 1
        service.counters.upstreams += 1

        def done(stream: Stream | None, error: int) -> None:
            receiver.connecting = None
            if stream is None:
                service.fd_budget.upstreams -= 1
                service.counters.upstreams -= 1
                receiver.connect_failed(error_text(error), fault_of(error))
            else:
                service.counters.worker_connections[member] += 1
                connection = WorkerConnection(
                    member, receiver, responses, self._connection_lost, self.note_idle_close
                )
                limit = service.config.limits.buffer
                adopt(service.reactor, connection, stream, limit, first=True)

        connecting = connect(service.loop, service.addresses[member.number], done, proxy_header)
        if connecting is not None:
            receiver.connecting = connecting

    def cancel(self, connecting: Connecting) -> None:
        """Cancel a connect in progress."""
        connecting.cancel()
        self._service.fd_budget.upstreams -= 1
        self._service.counters.upstreams -= 1

    def _connection_lost(self, connection: UpstreamConnection) -> None:
        self._service.fd_budget.upstreams -= 1
        self._service.counters.upstreams -= 1
        self._forget(connection)

    # -- idle connections

    def take(self, member: Member, now: float) -> UpstreamConnection | None:
        """Take a connection for a request that can be sent again."""
        idle = self._idle.get(member.number)
        while idle:
            connection = idle.pop()
            if not connection.transport.is_quiet():
                # It reads what has come, or its end, in its turn. For this request that is too
                # late: it would take those bytes for its response.
                continue
            # Each has a time-out of its own, and `tick` looks at the oldest only.
            if connection.idle_since + connection.max_idle_s >= now:
                return connection
            connection.transport.close()
        return None

    def take_fresh(self, member: Member, now: float) -> UpstreamConnection | None:
        """Take a connection for a request that must not be sent twice.

        It is one that the worker is not expected to close yet.
        """
        while (connection := self.take(member, now)) is not None:
            if self._may_close_soon(connection, now):
                # The others have been idle for longer.
                self._idle[member.number].append(connection)
                return None
            if self._is_established(connection, now):
                return connection
        return None

    def _may_close_soon(self, connection: UpstreamConnection, now: float) -> bool:
        closes_after, until = self._closes_after.get(connection.member.number, (IDLE_S, 0.0))
        if until < now:
            closes_after = IDLE_S
        return now - connection.idle_since >= min(closes_after, connection.max_idle_s) - _SPARE_S

    def _is_established(self, connection: UpstreamConnection, now: float) -> bool:
        """Ask the kernel. False: the worker has closed the connection, and now so have we."""
        connection.acked_before = tcp_info.acknowledged(connection.transport)
        if connection.acked_before != tcp_info.CLOSED:
            return True
        self.note_idle_close(connection, now)
        connection.transport.close()
        return False

    def put(self, connection: UpstreamConnection, now: float) -> None:
        """Put a connection back for the next request, or close it."""
        member, transport = connection.member, connection.transport
        if connection.binding is not None:
            self._put_bound(connection, now)
            return
        # Looked at first: a worker that was removed leaves nothing behind.
        if member.state is not _UP or self.stopping:
            transport.abort()
            return
        idle = self._idle.get(member.number)
        if idle is None:
            idle = self._idle[member.number] = deque()
        if len(idle) >= self._max_idle:
            transport.abort()
            return
        transport.resume_reading()
        connection.idle_since = now
        idle.append(connection)

    # -- connections that belong to one client
    #
    # They are no more than clients, and `fd_budget` counts two descriptors for each client. So they
    # need no other limit, and none is ended for others (`end_oldest`) while its client is there.

    def bind(self, connection: UpstreamConnection, binding: Binding) -> None:
        """Only this client may use the connection from now on, until one of both ends."""
        if connection.binding is None:
            binding.end()
            connection.bind(binding, self._responses)

    def take_bound(self, connection: UpstreamConnection, now: float, *, may_repeat: bool) -> bool:
        """Take a client's own connection for its next request. False: that would not be safe, and
        it is closed.

        `may_repeat`: the request can be sent again if the worker closes it meanwhile.
        """
        if connection not in self._bound:
            # It was dropped, and is about to be closed.
            return False
        del self._bound[connection]
        if not connection.transport.is_quiet():
            return False
        if may_repeat:
            if connection.idle_since + connection.max_idle_s >= now:
                return True
        elif not self._may_close_soon(connection, now):
            return self._is_established(connection, now)
        connection.transport.close()
        return False

    def _put_bound(self, connection: UpstreamConnection, now: float) -> None:
        """Keep it for its client. In panic mode that may be a worker that is not in the rotation:
        an authentication takes several requests."""
        member = connection.member
        if self.stopping or not (member.state is _UP or member in self._service.pool.eligible):
            connection.transport.abort()
            return
        connection.transport.resume_reading()
        connection.idle_since = now
        self._bound[connection] = None

    def note_idle_close(self, connection: UpstreamConnection, now: float) -> None:
        """Note that the worker closed a connection while it was idle, and after how long."""
        seconds = now - connection.idle_since
        before, until = self._closes_after.get(connection.member.number, (IDLE_S, 0.0))
        if until >= now:
            seconds = min(seconds, before)
        self._closes_after[connection.member.number] = (seconds, now + _REMEMBERED_S)

    def _forget(self, connection: UpstreamConnection) -> None:
        """Forget a connection that is lost."""
        binding = connection.binding
        if binding is not None:
            self._bound.pop(connection, None)
            if binding.connection is connection:
                binding.connection = None
            return
        idle = self._idle.get(connection.member.number)
        if idle and connection in idle:
            idle.remove(connection)

    def drop(self, number: int) -> None:
        """Close a worker's idle connections: it is out of the rotation, or removed."""
        self._closes_after.pop(number, None)
        if dropped := self._idle.pop(number, None):
            self._close(dropped)
        if self._bound:
            self._service.reactor.slices.run(self._dropping_bound(number))

    def _dropping_bound(self, number: int) -> Iterator[None]:
        """Likewise those of one client each: there may be as many as clients."""
        for connection in tuple(self._bound):
            if connection.member.number == number and connection in self._bound:
                del self._bound[connection]
                connection.transport.close()
            yield

    def _close(self, connections: Iterable[UpstreamConnection]) -> None:
        """Close all of these, which are not among the idle ones any more."""
        self._service.reactor.slices.run(_closing(connections))

    def drop_all(self) -> None:
        """Close the idle connections of all workers."""
        self._closes_after.clear()
        idle, self._idle = self._idle, {}
        bound, self._bound = self._bound, {}
        self._close(chain(chain.from_iterable(idle.values()), bound))

    def end_oldest(self, count: int) -> int:
        """Close up to `count` connections to free descriptors, those idle for longest first,
        whatever their worker; in slices. Returns how many."""
        there_are = 0
        for idle in self._idle.values():
            there_are += len(idle)
            if there_are >= count:
                break
        count = min(count, there_are)
        if count:
            self._service.reactor.slices.run(self._ending_oldest(count))
        return count

    def _ending_oldest(self, count: int) -> Iterator[None]:
        oldest = [(idle[0].idle_since, number) for number, idle in self._idle.items() if idle]
        heapify(oldest)
        while oldest and count:
            since, number = oldest[0]
            idle = self._idle.get(number)
            if not idle:
                # They were taken or dropped meanwhile.
                heappop(oldest)
            elif idle[0].idle_since > since:
                heapreplace(oldest, (idle[0].idle_since, number))
            else:
                idle.popleft().transport.close()
                count -= 1
            yield

    def tick(self, now: float) -> None:
        """Close connections that have been idle for as long as they may be, and tell responses the
        time of day."""
        wall = now + self._service.error_log.wall_offset
        self._responses.tick(wall)
        self._single_responses.tick(wall)
        overdue: list[UpstreamConnection] = []
        for idle in self._idle.values():
            while (
                idle
                and len(overdue) < _MAX_OVERDUE
                and idle[0].idle_since + idle[0].max_idle_s < now
            ):
                overdue.append(idle.popleft())
        while self._bound and len(overdue) < _MAX_OVERDUE:
            oldest = next(iter(self._bound))
            if oldest.idle_since + oldest.max_idle_s >= now:
                break
            del self._bound[oldest]
            overdue.append(oldest)
        if overdue:
            self._close(overdue)
        for number in [n for n, (_, until) in self._closes_after.items() if until < now]:
            del self._closes_after[number]


def _closing(connections: Iterable[UpstreamConnection]) -> Iterator[None]:
    for connection in connections:
        connection.transport.close()
        yield
