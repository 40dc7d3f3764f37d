"""Connections to workers: new ones, and those that are kept for the next request.

Owns: the connections of one service to its workers, from the connect until they are lost, and
whether an idle one may carry a request. Must not know: who is picked (`pool`), what becomes of a
request whose connection ends (`retry`).

A worker closes what has been idle too long for it, perhaps just when a request is sent. For
a request that can be repeated that is no harm: it is sent again. One that must not be is
sent only where no end is due: the worker's own word (Keep-Alive: timeout), or else the
shortest idle time after which it has lately closed a connection, with a second to spare; and
the kernel is asked whether the connection still stands. The last word is `tcp_info`'.
"""

from collections import deque
from typing import Final

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.http.worker_connection import ResponseReceiver, WorkerConnection
from penstock_proxy.http1.response import IDLE_S, ResponseHeads
from penstock_proxy.net import tcp_info
from penstock_proxy.net.connector import Connecting, connect, error_text, fault_of
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.service.context import ServiceContext
from penstock_worker.net.stream import Stream

MAX_IDLE: Final = 1024
"""Idle connections kept for one worker."""
_SPARE_S: Final = 1.0
"""Before a worker is expected to close. More than both sides' event loops are ever late in
good order; whoever closes after less than this gets such requests on new connections."""
_REMEMBERED_S: Final = 60.0
_UP: Final = MemberState.UP
"""Python 3.11 takes longer to find a member of an enum than to compare it."""


class ConnectionPool:
    """Of one service."""

    __slots__ = ("_closes_after", "_idle", "_most", "_responses", "_service", "stopping")

    def __init__(
        self, service: ServiceContext, responses: ResponseHeads, most: int = MAX_IDLE
    ) -> None:
        """`most`: how many are kept for one worker."""
        self._service = service
        self._responses = responses
        # One that began with a PROXY header is one client's, and serves one request.
        self._most = 0 if service.proxy_version else most
        self._idle: dict[int, deque[WorkerConnection]] = {}
        """By slot; the one that was used last is at the right."""
        self._closes_after: dict[int, tuple[float, float]] = {}
        """By slot: after how many idle seconds its worker closed a connection, and until when
        that counts."""
        self.stopping = False

    # -- new ones

    def connect(self, member: Member, receiver: ResponseReceiver, proxy_header: bytes) -> None:
        """Open a connection to a worker, which begins with `proxy_header`.

        The receiver is told by `connected` or `connect_failed`, perhaps before this returns.
        """
        service = self._service
        service.fd_budget.upstreams += 1
        service.counters.upstreams += 1

        def done(stream: Stream | None, error: int) -> None:
            receiver.connecting = None
            if stream is None:
                service.fd_budget.upstreams -= 1
                service.counters.upstreams -= 1
                receiver.connect_failed(error_text(error), fault_of(error))
            else:
                service.counters.worker_connections[member.slot] += 1
                link = WorkerConnection(
                    member, receiver, self._responses, self._gone, self.closed_idle
                )
                adopt(service.reactor, link, stream, service.config.limits.buffer)

        connecting = connect(service.loop, service.addresses[member.slot], done, proxy_header)
        if connecting is not None:
            receiver.connecting = connecting

    def cancel(self, connecting: Connecting) -> None:
        """Nobody waits for this connection any more."""
        connecting.cancel()
        self._service.fd_budget.upstreams -= 1
        self._service.counters.upstreams -= 1

    def _gone(self, link: WorkerConnection) -> None:
        self._service.fd_budget.upstreams -= 1
        self._service.counters.upstreams -= 1
        self.lost(link)

    # -- idle ones

    def take(self, member: Member) -> WorkerConnection | None:
        """One for a request that can be sent again if it fails."""
        idle = self._idle.get(member.slot)
        while idle:
            link = idle.pop()
            if not link.transport.is_closing():
                return link
        return None

    def take_safe(self, member: Member, now: float) -> WorkerConnection | None:
        """One for a request that must not be sent twice."""
        closes_after, until = self._closes_after.get(member.slot, (IDLE_S, 0.0))
        if until < now:
            closes_after = IDLE_S
        while (link := self.take(member)) is not None:
            if now - link.idle_since >= min(closes_after, link.keep_s) - _SPARE_S:
                # The others have been idle for longer.
                self._idle[member.slot].append(link)
                return None
            link.acked = tcp_info.acknowledged(link.transport)
            if link.acked != tcp_info.CLOSED:
                return link
            self.closed_idle(link, now)
            link.transport.close()
        return None

    def keep(self, link: WorkerConnection, now: float) -> None:
        """Put one back for the next request."""
        member = link.member
        idle = self._idle.get(member.slot)
        if idle is None:
            idle = self._idle[member.slot] = deque()
        transport = link.transport
        if len(idle) >= self._most or self.stopping or member.state is not _UP:
            transport.abort()
            return
        transport.resume_reading()
        link.idle_since = now
        idle.append(link)

    def closed_idle(self, link: WorkerConnection, now: float) -> None:
        """Its worker closed it while it was idle, or at least before it read on."""
        seconds = now - link.idle_since
        before, until = self._closes_after.get(link.member.slot, (IDLE_S, 0.0))
        if until >= now:
            seconds = min(seconds, before)
        self._closes_after[link.member.slot] = (seconds, now + _REMEMBERED_S)

    def lost(self, link: WorkerConnection) -> None:
        """It is gone."""
        idle = self._idle.get(link.member.slot)
        if idle and link in idle:
            idle.remove(link)

    def drop(self, slot: int) -> None:
        """Nobody picks its worker any more, or another process has taken the slot over."""
        self._closes_after.pop(slot, None)
        for link in self._idle.pop(slot, ()):
            link.transport.close()

    def end_oldest(self, count: int) -> None:
        """Their descriptors are needed: close so many, of each worker those idle for longest."""
        for idle in self._idle.values():
            while idle and count > 0:
                count -= 1
                idle.popleft().transport.close()

    def tick(self, now: float) -> None:
        """Close what has been idle for long enough, or nearly too long for its worker."""
        for idle in self._idle.values():
            while idle and idle[0].idle_since + idle[0].keep_s < now:
                idle.popleft().transport.close()
        for slot in [s for s, (_, until) in self._closes_after.items() if until < now]:
            del self._closes_after[slot]
