"""TLS that is not ours: whose connection it is, by the name that its client asks for.

Owns connections whose ClientHello is looked at, from the moment they are let in until it is
known to which service they go. Nothing is taken: that service, or its worker, gets the
connection as if nobody had looked (`peek`). Must not know: what becomes of one then (`Door`),
or how a hello is read (`client_hello`).

Bytes that are no TLS and a hello without a name that is known go to the service itself.
"""

import asyncio
from typing import Protocol

from penstock_proxy.errors import HELLO_TIMEOUT, Fault
from penstock_proxy.listener.peek import PEEK, STOPPING_S, Peeked
from penstock_proxy.net.peer import Peer
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.tls.client_hello import MAX_HELLO, HelloError, server_name
from penstock_proxy.tls.server_names import ServerNameMap
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import peer_address


class Door(Protocol):
    """Where a connection may go: a service."""

    def routed(self, stream: Stream, peer: Peer) -> None:
        """Owns the descriptor from now on, and counts it."""


class Home(Protocol):
    """The service whose listener it came from, which has counted it."""

    def routed_away(self) -> None:
        """It goes to another one, or is its own and counted anew."""

    def turned_away(self, address: str, fault: Fault | None, reason: str) -> None:
        """It is closed; no fault: it left without a word."""


class SniRouter:
    """All connections of one service that are looked at."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timers: TimerWheel,
        hello_s: float,
        doors: ServerNameMap[Door],
        home: Home,
    ) -> None:
        self.loop = loop
        self.timers = timers
        self.doors = doors
        self.home = home
        self.inside: set[Peeked] = set()
        self._hello_s = hello_s

    def accepted(self, stream: Stream, peer: Peer) -> None:
        """Send it on as soon as its name is known."""
        _Looked(self, stream, peer).begin(self._hello_s)

    def drain(self) -> None:
        """Who is inside gets a moment, and no more."""
        self._hello_s = min(self._hello_s, STOPPING_S)
        for looked in self.inside:
            looked.hurry(self._hello_s)


class _Looked(Peeked):
    """One connection that belongs to nobody yet."""

    __slots__ = ("_peer", "_routes")

    def __init__(self, routes: SniRouter, stream: Stream, peer: Peer) -> None:
        super().__init__(routes.loop, routes.timers, routes.inside, stream)
        self._routes = routes
        self._peer = peer

    def _too_late(self) -> None:
        self._turn_away(HELLO_TIMEOUT, "its TLS hello took too long")

    def _look(self) -> None:
        try:
            seen = self._sock.recv(MAX_HELLO, PEEK)
        except BlockingIOError:
            self._await()
            return
        except OSError:
            self._turn_away(None, "")
            return
        if not seen:
            self._turn_away(None, "")
            return
        try:
            name = server_name(seen)
        except HelloError:
            name = ""
        if name is not None:
            self._go(name)
        elif self._is_all(len(seen)):
            self._turn_away(None, "")
        else:
            self._await_beyond(len(seen), 1)

    def _go(self, name: str) -> None:
        stream = self._release()
        self._routes.home.routed_away()
        self._routes.doors.lookup(name).routed(stream, self._peer)

    def _turn_away(self, fault: Fault | None, reason: str) -> None:
        self._close()
        self._routes.home.turned_away(peer_address(self._peer.address), fault, reason)
