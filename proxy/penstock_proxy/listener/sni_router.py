"""TLS passthrough: routes connections by the name in their ClientHello, without ending TLS.

Owns: connections whose ClientHello is peeked at, from accept until it is known to which service
they go. No byte is read off: that service, or its worker, gets the connection untouched (`peek`).
Must not know: what becomes of a connection then (`SniDestination`), or how a ClientHello is parsed
(`client_hello`).

A connection that is no TLS, or asks for no known name, stays with the service itself.
"""

import asyncio
from collections.abc import Iterator
from typing import Protocol

from penstock_proxy.errors import HELLO_TIMEOUT, Fault
from penstock_proxy.listener.peek import DRAIN_S, PEEK, PeekedConnection
from penstock_proxy.net.peer import Peer
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.tls.client_hello import MAX_HELLO, HelloError, server_name
from penstock_proxy.tls.server_names import ServerNameMap
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import peer_address


class SniDestination(Protocol):
    """A service that a connection can be routed to."""

    def accept_routed(self, stream: Stream, peer: Peer) -> None:
        """A connection was routed here: own its descriptor from now on, and count it."""


class SniOrigin(Protocol):
    """The service whose listener has accepted the connection, and which has counted it."""

    def connection_routed(self, counted_address: str) -> None:
        """It goes to its destination, which counts it anew: stop counting it."""

    def hello_failed(
        self, counted_address: str, address: str, fault: Fault | None, reason: str
    ) -> None:
        """It is closed. No fault: the client closed before its ClientHello was complete, or
        another one needed its place."""


class SniRouter:
    """The connections of one service whose ClientHello has not come yet."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timers: TimerWheel,
        timeout_s: float,
        destinations: ServerNameMap[SniDestination],
        origin: SniOrigin,
    ) -> None:
        self.loop = loop
        self.timers = timers
        self.destinations = destinations
        self.origin = origin
        self.timeout_s = timeout_s
        """`destinations` and this can be changed at any time, for those that come then."""
        self.waiting: dict[PeekedConnection, None] = {}
        """The oldest first."""

    def accepted(self, stream: Stream, peer: Peer, counted_address: str) -> None:
        """Route a connection as soon as its server name is known."""
        _HelloReader(self, stream, peer, counted_address).start(self.timeout_s)

    def draining(self) -> Iterator[None]:
        """Shorten the time that waiting connections have, of one in each step."""
        self.timeout_s = min(self.timeout_s, DRAIN_S)
        for reader in tuple(self.waiting):
            if reader in self.waiting:
                reader.limit_time(self.timeout_s)
            yield


class _HelloReader(PeekedConnection):
    """One connection whose ClientHello has not come yet."""

    __slots__ = ("_peer", "_router")

    def __init__(self, router: SniRouter, stream: Stream, peer: Peer, counted_address: str) -> None:
        super().__init__(router.loop, router.timers, router.waiting, stream, counted_address)
        self._router = router
        self._peer = peer

    def _timed_out(self) -> None:
        self._reject(HELLO_TIMEOUT, "its TLS hello took too long")

    def end_idle(self, fault: Fault) -> bool:
        self._reject(None, "")
        return True

    def _peek(self) -> None:
        try:
            seen = self._sock.recv(MAX_HELLO, PEEK)
        except BlockingIOError:
            self._wait_readable()
            return
        except OSError:
            self._reject(None, "")
            return
        if not seen:
            self._reject(None, "")
            return
        try:
            name = server_name(seen)
        except HelloError:
            name = ""
        if name is not None:
            self._route(name)
        elif self._is_at_end(len(seen)):
            self._reject(None, "")
        else:
            self._wait_for_more(len(seen), 1)

    def _route(self, name: str) -> None:
        stream = self._release()
        self._router.origin.connection_routed(self.counted_address)
        self._router.destinations.lookup(name).accept_routed(stream, self._peer)

    def _reject(self, fault: Fault | None, reason: str) -> None:
        self._close()
        address = peer_address(self._peer.address)
        self._router.origin.hello_failed(self.counted_address, address, fault, reason)
