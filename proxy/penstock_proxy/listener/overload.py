"""What happens when more come than can be served.

Owns, for one service: when its listeners are left alone and why; who is ended to make room;
who has waited too long and is told so; and who has too many connections already. Must not
know what is done with a connection that comes in (`service`).

Who finds no room waits in the kernel's queue, and most often is let in a moment later: that
is the gentlest answer, and costs nothing. Room is made from what nobody misses, the keep-alive
connections that have been idle for longest. But a queue that does not move is no answer at
all, so whoever has waited for `timeouts.queue` is accepted on a descriptor of the reserve, told
503 (in tcp mode there are no words) and closed.
"""

import logging
from heapq import nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from penstock_proxy.errors import CLIENT_LIMIT, MAX_CONNECTIONS, NO_DESCRIPTORS, Fault
from penstock_proxy.http.context import HttpClient, HttpContext
from penstock_proxy.listener.acceptor import Acceptor
from penstock_proxy.listener.listeners import AdmissionControl, Listeners
from penstock_proxy.listener.rejection import Rejections
from penstock_proxy.net.timer_wheel import NEVER
from penstock_worker.net.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock_worker.net import lingering_close

_REFUSED_A_TICK: Final = 256
_IDLE_S: Final = 1.0
"""Who was served just now may be about to ask again."""
_FEWEST: Final = 32
"""Idle ones that are ended at a time; more, if there are many."""
_log = logging.getLogger("penstock.proxy")


class Overload(AdmissionControl):
    """The bounds of one service's front door."""

    listeners: Listeners
    """The listeners, which are made after this."""

    def __init__(self, service: HttpContext) -> None:
        self._service = service
        config = service.config
        self._share = service.config.limits.connections_per_client
        self.is_full = False
        """Somebody was left waiting in the listener's queue."""
        self._said = False
        self._made_room = NEVER
        self.spare: lingering_close.SpareDescriptor | None = None
        """The process's one; it is opened before anybody is accepted."""
        # Inside TLS there is nothing to say before the handshake, which costs too much here.
        speaks = config.mode == "http" and config.scheme == "ports" and not config.tls
        self.rejections = Rejections(service, speaks_http=speaks)

    # -- may one more come?

    def room(self) -> int:
        """How many more may come in. Below 1: nobody."""
        room, limit = self._service.fd_budget.room(), self._service.config.max_connections
        return min(room, limit - self._here()) if limit else room

    def _here(self) -> int:
        counters = self._service.counters
        return counters.active + counters.in_flight + counters.opened

    def crowded(self) -> None:
        """Somebody waits for whom there is no room."""
        fault = self._lacking()
        if fault is None:
            return
        if not self.is_full:
            self.is_full = True
            self._service.counters.pauses[fault.kind] += 1
        self._say(fault)
        self._make_room()

    def _lacking(self) -> Fault | None:
        if self._service.fd_budget.room() < 1:
            return NO_DESCRIPTORS
        return MAX_CONNECTIONS if 0 < self._service.config.max_connections <= self._here() else None

    def resume(self) -> None:
        """Somebody has left."""
        if self.is_full:
            # Other services that wait for the same descriptors are woken by the next tick.
            self.is_full = False
            self.listeners.resume()

    def exhausted(self) -> None:
        """The system has no descriptor or memory for an accept, whatever our account says."""
        self._service.counters.pauses["system"] += 1
        self._make_room()

    def tick(self, now: float) -> None:
        """Four times a second: let in who finds room by now, send off who waited too long."""
        fault = self._lacking()
        listeners = self.listeners
        self._count_share()
        refused = listeners.look(now, fault or NO_DESCRIPTORS, _REFUSED_A_TICK)
        if refused:
            name = self._service.config.name
            _log.warning("%s: refused %d that had waited too long to be accepted", name, refused)
        if fault is None:
            self.is_full = False
            self._said = False
            listeners.resume()

    # -- who has enough

    def _count_share(self) -> None:
        share, service = self._share, self._service
        if isinstance(share, int):
            service.client_limit.max_per_client = share
            return
        most = service.fd_budget.capacity
        if service.config.max_connections:
            most = min(most, service.config.max_connections)
        service.client_limit.max_per_client = max(1, int(most * share))

    def admits(self, stream: Stream, address: str) -> bool:
        """May this client have one more? If not, it is told so, and the connection is ours.

        Without an address it counts for nobody: a trusted proxy comes for many.
        """
        if not address or self._service.client_limit.acquire(address):
            return True
        self.rejections.reject(stream, CLIENT_LIMIT)
        self._service.client_closed("")
        self._service.error_log.connection_rejected(address, CLIENT_LIMIT, CLIENT_LIMIT.text)
        return False

    # -- sending off

    def refuse(self, acceptor: Acceptor, fault: Fault) -> bool:
        """Take one off the queue and tell it no. False: there is none, or no way to."""
        stream = None if acceptor.is_exhausted else acceptor.take()
        if stream is not None:
            self.rejections.reject(stream, fault)
        elif acceptor.is_exhausted and self.spare is not None:
            if not self.spare.refuse(acceptor.listener, self.rejections.answer(fault)):
                return False
            acceptor.taken()
        else:
            return False
        self._service.counters.rejected[fault.kind] += 1
        return True

    # -- making room

    def _make_room(self) -> None:
        """End who has been idle for longest, at most once a tick."""
        service = self._service
        now = service.timers.now
        if self._made_room == now:
            return
        self._made_room = now
        ended = _end_longest(service.clients, now)
        # A worker's connection is worth a client's only if there are more of them.
        service.connections.end_oldest(service.fd_budget.upstreams - service.fd_budget.clients)
        if ended:
            _log.info("%s: ended %d idle connections to make room", service.config.name, ended)

    def _say(self, fault: Fault) -> None:
        if not self._said:
            self._said = True
            what = "no descriptors are left" if fault is NO_DESCRIPTORS else "it is full"
            _log.warning("%s accepts no more connections: %s", self._service.config.name, what)


def _end_longest(clients: "Iterable[HttpClient]", now: float) -> int:
    idle = [client for client in clients if client.idle_since + _IDLE_S < now]
    most = max(_FEWEST, len(idle) // 8)
    for client in nsmallest(most, idle, key=attrgetter("idle_since")):
        client.end_idle()
    return min(most, len(idle))
