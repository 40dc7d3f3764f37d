"""The way of an accepted connection to whoever serves its client.

Owns the steps that a service wants on that way, each of which may keep a connection for a
while or end it: the PROXY header (`proxy_protocol`), the name that decides whose it is
(`sni_router`), TLS (`handshake`). Behind them is a `client_connection`, a `session`, or under
handoff the `dispatcher`. A service that wants none of them has none of them in its way. Must not
know: workers.
"""

from collections.abc import Callable, Mapping
from typing import Any

from penstock_proxy.errors import MAX_CONNECTIONS, Fault
from penstock_proxy.handoff.dispatcher import Dispatcher
from penstock_proxy.http.client_connection import ClientConnection
from penstock_proxy.http.context import HttpContext
from penstock_proxy.listener.overload import Overload
from penstock_proxy.listener.proxy_protocol import Gate, ProxyProtocolFilter
from penstock_proxy.listener.sni_router import Door, SniRouter
from penstock_proxy.net.peer import HeaderHandling, Peer
from penstock_proxy.net.proxy_header import client_header
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.tcp.session import Session
from penstock_proxy.tls.handshake import Handshake, TlsAcceptor
from penstock_proxy.tls.server_names import ByName
from penstock_proxy.tls.transport import TlsConnection
from penstock_worker.net.proxy_protocol import Endpoint
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import peer_address


class FilterChain:
    """The connections of one service that nobody serves yet."""

    routes: SniRouter | None = None
    """Some of them are another service's, by the name they ask for."""

    def __init__(
        self, service: HttpContext, overload: Overload, dispatcher: Dispatcher | None
    ) -> None:
        """`dispatcher`: under handoff, who connections are given to."""
        config = service.config
        self._service = service
        self._overload = overload
        self._dispatcher = dispatcher
        self.tls_acceptor = TlsAcceptor(service, self._secured) if config.tls else None
        self.proxy_protocol = self._proxy_protocol() if config.accept_proxy else None

    def _proxy_protocol(self) -> ProxyProtocolFilter:
        """A header is taken where we serve the client; else the worker takes it."""
        service = self._service
        handling: HeaderHandling = "take"
        gate: Gate = self
        if self._dispatcher is not None:
            handling, gate = self._dispatcher.header_handling, self._dispatcher
        trusted, head_s = service.rewriter.trusted, service.timeouts.head
        return ProxyProtocolFilter(
            service.loop, service.timers, head_s, trusted, gate, handling=handling
        )

    @property
    def way_in(self) -> Callable[[Stream, Any], None]:
        """What becomes of an accepted connection first."""
        if self.proxy_protocol is not None:
            return self.proxy_protocol.accepted
        return self._accepted if self._dispatcher is None else self._dispatcher.accepted

    def route(self, services: "Mapping[str, FilterChain]") -> None:
        """All services are there, by name: those that clients ask for are known."""
        service = self._service
        if sni := service.config.sni:
            doors = [(name, services[other]) for name, other in sni.items()]
            names = ByName[Door](doors, self)
            hello_s = service.timeouts.handshake
            self.routes = SniRouter(service.loop, service.timers, hello_s, names, self)

    def drain(self) -> None:
        """Who is on the way gets a moment, and no more."""
        if self.proxy_protocol is not None:
            self.proxy_protocol.drain()
        if self.routes is not None:
            self.routes.drain()

    # -- steps

    def _accepted(self, stream: Stream, peer: Any) -> None:
        self._service.client_accepted()
        if self.routes is None:
            self._deliver(stream, peer)
        else:
            self.routes.accepted(stream, Peer(peer))

    def arrived(self) -> None:
        """There is one more, which has not said whose it is."""
        self._service.client_accepted()

    def entered(self, stream: Stream, peer: Peer) -> None:
        """A client's connection was accepted, and it is known whose it is."""
        if self.routes is None:
            self._deliver(stream, peer.address, peer.destination, believed=peer.may_be_trusted)
        else:
            self.routes.accepted(stream, peer)

    def turned_away(self, address: str, fault: Fault | None, reason: str) -> None:
        """A client's connection did not come in."""
        self._service.client_closed("")
        if fault is not None:
            self._service.error_log.connection_rejected(address, fault, reason)

    def routed_away(self) -> None:
        """A connection that was looked at is nobody's for a moment."""
        self._service.counters.active -= 1
        self._service.fd_budget.clients -= 1

    def routed(self, stream: Stream, peer: Peer) -> None:
        """A connection comes by its name, maybe from another one's listener."""
        service = self._service
        if self._overload.room() < 1:
            self._overload.rejections.reject(stream, MAX_CONNECTIONS)
            service.error_log.connection_rejected(
                peer_address(peer.address), MAX_CONNECTIONS, "it is full"
            )
            return
        service.counters.active += 1
        service.fd_budget.clients += 1
        self._deliver(stream, peer.address, peer.destination, believed=peer.may_be_trusted)

    # -- to whom

    def _deliver(
        self, stream: Stream, peer: Any, destination: Endpoint = None, *, believed: bool = True
    ) -> None:
        service = self._service
        counted_as = service.counted_address(peer, may_be_trusted=believed)
        if not self._overload.admits(stream, counted_as):
            return
        version = service.proxy_version
        proxy_header = client_header(version, stream, peer, destination) if version else b""
        port = destination[1] if isinstance(destination, tuple) else 0
        if self.tls_acceptor is not None:
            self.tls_acceptor.accepted(
                stream, peer, proxy_header, port, counted_as, believed=believed
            )
        elif service.config.mode == "http":
            client = ClientConnection(
                service, peer, proxy_header, may_be_trusted=believed, port=port
            )
            service.clients.add(client)
            adopt(service.reactor, client, stream, service.config.limits.buffer)
        else:
            Session(service, stream, peer, proxy_header).start()

    def _secured(self, handshake: Handshake, connection: TlsConnection) -> None:
        """A client speaks TLS, and can be served."""
        service, peer = self._service, handshake.peer
        proxy_header = handshake.proxy_header
        facts = connection.facts(service.config.limits.log_field)
        if service.config.mode == "http":
            client = ClientConnection(
                service,
                peer,
                proxy_header,
                may_be_trusted=handshake.believed,
                fields=connection.certificate_field(),
                port=handshake.port,
                tls=facts,
            )
            service.clients.add(client)
            connection.carry(client)
        else:
            connection.pause_reading()
            Session(service, connection, peer, proxy_header, facts).start()
