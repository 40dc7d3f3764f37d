"""The filter chain of a service: what an accepted connection passes before it is served.

Owns: the order of the filters. Each may hold a connection for a while or close it: the PROXY
header (`proxy_protocol`), routing by server name (`sni_router`), the limit of connections per
client (`overload`), TLS (`handshake`). At the end of the chain is a `client_connection` or a
`session`. Under handoff a connection bypasses the chain: the `dispatcher` gets it at once, or from
`proxy_protocol`. Filters that a service does not use cost nothing. Must not know: workers.

A filter is made when the configuration first asks for it, and stays: connections may be in it when
it is switched off, and they are to leave it as they would have.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from penstock_proxy.errors import MAX_CONNECTIONS, Fault
from penstock_proxy.handoff.dispatcher import Dispatcher
from penstock_proxy.http.client_connection import ClientConnection
from penstock_proxy.http.context import HttpContext
from penstock_proxy.listener.overload import Overload
from penstock_proxy.listener.proxy_protocol import FilterCallbacks, ProxyProtocolFilter
from penstock_proxy.listener.sni_router import SniDestination, SniRouter
from penstock_proxy.net.peer import HeaderHandling, Peer
from penstock_proxy.net.proxy_header import client_header
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.tcp.session import Session
from penstock_proxy.tls.handshake import Handshake, TlsAcceptor
from penstock_proxy.tls.server_names import ServerNameMap
from penstock_proxy.tls.transport import TlsConnection
from penstock_worker.net.proxy_protocol import Endpoint
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import peer_address


class FilterChain:
    """The filters of one service."""

    sni_router: SniRouter | None = None
    """Set while connections are routed to other services by server name."""
    _known_sni_router: SniRouter | None = None
    proxy_protocol: ProxyProtocolFilter | None = None
    """Set if connections began with a PROXY header at any time."""
    tls_acceptor: TlsAcceptor | None = None
    """Set if the service has had certificates, or waits for them."""
    _accepts_proxy = False
    _uses_tls = False

    def __init__(
        self, service: HttpContext, overload: Overload, dispatcher: Dispatcher | None
    ) -> None:
        """`dispatcher`: where connections go under handoff."""
        self._service = service
        self._overload = overload
        self._dispatcher = dispatcher
        self.configure()

    def configure(self) -> None:
        """Act on the service's configuration as it is now: for connections that come from now on.

        `first_filter` may be another one then, and `set_sni_routes` has to be called.
        """
        config = self._service.config
        self._uses_tls = config.tls
        if config.tls or self.tls_acceptor is not None:
            self.make_tls_acceptor().configure()
        self._accepts_proxy = config.accept_proxy
        if config.accept_proxy or self.proxy_protocol is not None:
            self._configure_proxy_protocol()

    def make_tls_acceptor(self) -> TlsAcceptor:
        """What holds the certificates: they may come before the configuration that uses them."""
        if self.tls_acceptor is None:
            self.tls_acceptor = TlsAcceptor(self._service, self._tls_established)
            self._overload.unserved.append(self.tls_acceptor.oldest_first)
        return self.tls_acceptor

    @property
    def has_certificates(self) -> bool:
        """TLS can be spoken."""
        return self.tls_acceptor is not None and self.tls_acceptor.has_certificates

    def _configure_proxy_protocol(self) -> None:
        """The header is consumed if we serve the client; under handoff the worker reads it."""
        service = self._service
        handling: HeaderHandling = "consume"
        callbacks: FilterCallbacks = self
        if self._dispatcher is not None:
            handling, callbacks = self._dispatcher.header_handling, self._dispatcher
        trusted, timeout_s = service.rewriter.trusted, service.timeouts.head
        if self.proxy_protocol is None:
            self.proxy_protocol = ProxyProtocolFilter(
                service.loop, service.timers, timeout_s, trusted, callbacks, handling=handling
            )
            self._overload.unserved.append(self.proxy_protocol.waiting)
        else:
            self.proxy_protocol.configure(timeout_s, trusted, handling)

    @property
    def first_filter(self) -> Callable[[Stream, Any], None]:
        """Where an accepted connection goes first."""
        if self._accepts_proxy and self.proxy_protocol is not None:
            return self.proxy_protocol.accepted
        return self._accepted if self._dispatcher is None else self._dispatcher.accepted

    def set_sni_routes(self, services: "Mapping[str, FilterChain]") -> None:
        """Set up routing by server name, now that all services are there, by name. Of those that
        are not there the connections stay here."""
        service = self._service
        sni, router = service.config.sni, self._known_sni_router
        destinations = [(name, services[to]) for name, to in sni.items() if to in services]
        names = ServerNameMap[SniDestination](destinations, self)
        timeout_s = service.timeouts.handshake
        if router is not None:
            router.destinations, router.timeout_s = names, timeout_s
        elif sni:
            router = SniRouter(service.loop, service.timers, timeout_s, names, self)
            self._known_sni_router = router
            self._overload.unserved.append(router.waiting)
        self.sni_router = router if sni else None

    def draining(self) -> Iterator[None]:
        """Shorten the time that connections in the chain have, of one in each step."""
        if self.proxy_protocol is not None:
            yield from self.proxy_protocol.draining()
        if self._known_sni_router is not None:
            yield from self._known_sni_router.draining()

    # -- filters

    def _accepted(self, stream: Stream, peer: Any) -> None:
        self._service.client_accepted()
        if self.sni_router is None:
            self._deliver(stream, peer)
        else:
            self._await_hello(self.sni_router, stream, Peer(peer))

    def connection_opened(self) -> None:
        """A connection was accepted; its peer is not known yet."""
        self._service.client_accepted()

    def peer_known(self, stream: Stream, peer: Peer) -> None:
        """The peer of an accepted connection is known."""
        if self.sni_router is None:
            self._deliver(
                stream, peer.address, peer.destination, may_be_trusted=peer.may_be_trusted
            )
        else:
            self._await_hello(self.sni_router, stream, peer)

    def _await_hello(self, router: SniRouter, stream: Stream, peer: Peer) -> None:
        """Until its name is known a connection counts for its client here."""
        may_be_trusted = peer.may_be_trusted
        address = self._service.counted_address(peer.address, may_be_trusted=may_be_trusted)
        if self._overload.admit(stream, address):
            router.accepted(stream, peer, address)

    def connection_rejected(self, address: str, fault: Fault | None, reason: str) -> None:
        """An accepted connection was closed by a filter."""
        self._service.client_closed("")
        if fault is not None:
            self._service.error_log.connection_rejected(address, fault, reason)

    def hello_failed(
        self, counted_address: str, address: str, fault: Fault | None, reason: str
    ) -> None:
        """A connection was closed before its name was known."""
        self._service.client_closed(counted_address)
        if fault is not None:
            self._service.error_log.connection_rejected(address, fault, reason)

    def connection_routed(self, counted_address: str) -> None:
        """A connection leaves for its destination, which counts it anew."""
        self._service.client_closed(counted_address)

    def accept_routed(self, stream: Stream, peer: Peer) -> None:
        """A connection was routed here by its server name, maybe from another service."""
        service = self._service
        if not self._overload.has_room_for_routed():
            self._overload.rejections.reject(stream, MAX_CONNECTIONS)
            service.error_log.connection_rejected(
                peer_address(peer.address), MAX_CONNECTIONS, "it is full"
            )
            return
        service.counters.active += 1
        service.fd_budget.clients += 1
        self._deliver(stream, peer.address, peer.destination, may_be_trusted=peer.may_be_trusted)

    # -- the end of the chain

    def _deliver(
        self,
        stream: Stream,
        peer: Any,
        destination: Endpoint = None,
        *,
        may_be_trusted: bool = True,
    ) -> None:
        service = self._service
        counted_address = service.counted_address(peer, may_be_trusted=may_be_trusted)
        if not self._overload.admit(stream, counted_address):
            return
        version = service.proxy_version
        proxy_header = client_header(version, stream, peer, destination) if version else b""
        port = destination[1] if isinstance(destination, tuple) else 0
        if self._uses_tls and self.tls_acceptor is not None:
            self.tls_acceptor.accepted(
                stream, peer, proxy_header, port, counted_address, may_be_trusted=may_be_trusted
            )
        elif service.config.mode == "http":
            client = ClientConnection(
                service, peer, proxy_header, may_be_trusted=may_be_trusted, port=port
            )
            service.clients.add(client)
            adopt(service.reactor, client, stream, service.config.limits.buffer)
        else:
            Session(service, stream, peer, proxy_header).start()

    def _tls_established(self, handshake: Handshake, connection: TlsConnection) -> None:
        """A TLS handshake has succeeded: serve the client."""
        service, peer = self._service, handshake.peer
        proxy_header = handshake.proxy_header
        log_fields = connection.log_fields(service.config.limits.log_field)
        if service.config.mode == "http":
            client = ClientConnection(
                service,
                peer,
                proxy_header,
                may_be_trusted=handshake.may_be_trusted,
                fields=connection.client_cert_field(),
                port=handshake.port,
                tls=log_fields,
            )
            # Who is a trusted proxy may have changed during the handshake.
            service.client_limit.move(handshake.counted_address, client.counted_address)
            service.clients.add(client)
            connection.attach(client)
        else:
            connection.pause_reading()
            Session(service, connection, peer, proxy_header, log_fields).start()
