"""Overload control: what happens when more clients connect than can be served.

Owns, for one service: when accepting is paused and why, which idle connections are closed to make
room, which waiting clients are refused, and the limit of connections per client. Must not know:
what is done with an accepted connection (`filter_chain`).

A client that finds no room waits in the kernel's queue, and most often is accepted a moment
later. That costs nothing. Room is made by closing the keep-alive connections that have been idle
for longest. But no client should wait for ever, so one that has waited for `timeouts.queue` is
accepted on a descriptor of the reserve, answered 503 (in mode tcp without an answer) and closed.
"""

import logging
from heapq import nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from penstock_proxy.errors import CLIENT_LIMIT, MAX_CONNECTIONS, NO_DESCRIPTORS, Fault
from penstock_proxy.http.context import ClientHandle, HttpContext
from penstock_proxy.listener.acceptor import Acceptor
from penstock_proxy.listener.listeners import AdmissionControl, Listeners
from penstock_proxy.listener.rejection import Rejections
from penstock_proxy.net.timer_wheel import NEVER
from penstock_worker.net.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock_worker.net import lingering_close

_MAX_REFUSED_A_TICK: Final = 256
_IDLE_S: Final = 1.0
"""A connection idle for less than this may be about to send its next request."""
_MIN_ENDED: Final = 32
"""Idle connections closed at a time; an eighth of them if that is more."""
_log = logging.getLogger("penstock.proxy")


class Overload(AdmissionControl):
    """The admission control of one service."""

    listeners: Listeners
    """Set after construction, because listeners need this object."""

    def __init__(self, service: HttpContext) -> None:
        self._service = service
        config = service.config
        self._per_client = service.config.limits.connections_per_client
        self.is_full = False
        """A connection was left waiting in a listener's queue."""
        self._warned = False
        self._ended_idle_at = NEVER
        self.spare: lingering_close.SpareDescriptor | None = None
        """The spare descriptor of the process, opened before the first accept."""
        # With TLS an answer would need a handshake first, which costs too much here.
        speaks_http = config.mode == "http" and config.scheme == "ports" and not config.tls
        self.rejections = Rejections(service, speaks_http=speaks_http)

    # -- admission

    def room(self) -> int:
        """How many more connections may be accepted; below 1: none."""
        room, limit = self._service.fd_budget.room(), self._service.config.max_connections
        return min(room, limit - self._connection_count()) if limit else room

    def _connection_count(self) -> int:
        counters = self._service.counters
        return counters.active + counters.in_flight + counters.opened

    def no_room(self) -> None:
        """A connection waits, and there is no room for it."""
        fault = self._limit_reached()
        if fault is None:
            return
        if not self.is_full:
            self.is_full = True
            self._service.counters.pauses[fault.kind] += 1
        self._warn(fault)
        self._end_idle()

    def _limit_reached(self) -> Fault | None:
        if self._service.fd_budget.room() < 1:
            return NO_DESCRIPTORS
        limit = self._service.config.max_connections
        return MAX_CONNECTIONS if 0 < limit <= self._connection_count() else None

    def resume(self) -> None:
        """A connection was closed: accept again."""
        if self.is_full:
            # Other services that wait for the same descriptors resume at the next tick.
            self.is_full = False
            self.listeners.resume()

    def resources_exhausted(self) -> None:
        """An accept failed for want of a descriptor or of memory, although we counted room."""
        self._service.counters.pauses["system"] += 1
        self._end_idle()

    def tick(self, now: float) -> None:
        """Four times a second: refuse those that waited too long, and resume if there is room."""
        fault = self._limit_reached()
        listeners = self.listeners
        self._update_client_limit()
        refused = listeners.refuse_overdue(now, fault or NO_DESCRIPTORS, _MAX_REFUSED_A_TICK)
        if refused:
            name = self._service.config.name
            _log.warning("%s: refused %d that had waited too long to be accepted", name, refused)
        if fault is None:
            self.is_full = False
            self._warned = False
            listeners.resume()

    # -- connections per client

    def _update_client_limit(self) -> None:
        per_client, service = self._per_client, self._service
        if isinstance(per_client, int):
            service.client_limit.max_per_client = per_client
            return
        limit = service.fd_budget.capacity
        if service.config.max_connections:
            limit = min(limit, service.config.max_connections)
        service.client_limit.max_per_client = max(1, int(limit * per_client))

    def admit(self, stream: Stream, address: str) -> bool:
        """May this client have one more connection? If not, it is rejected here.

        An empty address is not counted: a trusted proxy connects for many clients.
        """
        if not address or self._service.client_limit.acquire(address):
            return True
        self.rejections.reject(stream, CLIENT_LIMIT)
        self._service.client_closed("")
        self._service.error_log.connection_rejected(address, CLIENT_LIMIT, CLIENT_LIMIT.text)
        return False

    # -- refusing

    def refuse(self, acceptor: Acceptor, fault: Fault) -> bool:
        """Accept one from the queue and refuse it. False: there is none, or that failed."""
        stream = None if acceptor.is_exhausted else acceptor.accept_one()
        if stream is not None:
            self.rejections.reject(stream, fault)
        elif acceptor.is_exhausted and self.spare is not None:
            if not self.spare.refuse(acceptor.listener, self.rejections.answer(fault)):
                return False
            acceptor.accepted_elsewhere()
        else:
            return False
        self._service.counters.rejected[fault.kind] += 1
        return True

    # -- closing idle connections

    def _end_idle(self) -> None:
        """Close those that have been idle for longest, at most once a tick."""
        service = self._service
        now = service.timers.now
        if self._ended_idle_at == now:
            return
        self._ended_idle_at = now
        ended = _end_longest_idle(service.clients, now)
        # Idle connections to workers are closed only if there are more of them than of clients.
        service.connections.end_oldest(service.fd_budget.upstreams - service.fd_budget.clients)
        if ended:
            _log.info("%s: ended %d idle connections to make room", service.config.name, ended)

    def _warn(self, fault: Fault) -> None:
        if not self._warned:
            self._warned = True
            what = "no descriptors are left" if fault is NO_DESCRIPTORS else "it is full"
            _log.warning("%s accepts no more connections: %s", self._service.config.name, what)


def _end_longest_idle(clients: "Iterable[ClientHandle]", now: float) -> int:
    idle = [client for client in clients if client.idle_since + _IDLE_S < now]
    limit = max(_MIN_ENDED, len(idle) // 8)
    for client in nsmallest(limit, idle, key=attrgetter("idle_since")):
        client.end_idle()
    return min(limit, len(idle))
