"""The way of an accepted connection to whoever serves its client.

Owns the steps that a service wants on that way, each of which may keep a connection for a
while or end it: the PROXY header (`entrance`), the name that decides whose it is (`sni`), TLS
(`handshakes`). Behind them is a `client`, a `relay`, or under handoff the `delegate`. A
service that wants none of them has none of them in its way. Must not know: workers.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from penstock_proxy.client import ClientConnection
from penstock_proxy.entrance import Entrance, Gate, Reading, Visitor
from penstock_proxy.errors import FULL, Fault
from penstock_proxy.handshakes import Handshakes
from penstock_proxy.preface import of_client
from penstock_proxy.relay import Relay
from penstock_proxy.server_names import ByName
from penstock_proxy.sni import Door, Routes
from penstock_proxy.transport import adopt
from penstock_worker.peers import peer_address
from penstock_worker.proxy_protocol import Place
from penstock_worker.streams import Stream

if TYPE_CHECKING:
    from penstock_proxy.service import ServiceFront
    from penstock_proxy.tls_connection import TlsConnection
    from penstock_proxy.tls_handshake import Handshake


class Arrivals:
    """The connections of one service that nobody serves yet."""

    routes: Routes | None = None
    """Some of them are another service's, by the name they ask for."""

    def __init__(self, service: "ServiceFront") -> None:
        config = service.config
        self._service = service
        self.handshakes = Handshakes(service, self._secured) if config.tls else None
        self.entrance = self._entrance() if config.accept_proxy else None

    def _entrance(self) -> Entrance:
        """A header is taken where we serve the client; else the worker takes it."""
        service = self._service
        reading: Reading = "take"
        gate: Gate = self
        if service.delegate is not None:
            reading, gate = service.delegate.reading, service.delegate
        trusted, head_s = service.forwarding.trusted, service.timeouts.head
        return Entrance(service.loop, service.deadlines, head_s, trusted, gate, reading=reading)

    @property
    def way_in(self) -> Callable[[Stream, Any], None]:
        """What becomes of an accepted connection first."""
        if self.entrance is not None:
            return self.entrance.accepted
        delegate = self._service.delegate
        return self._accepted if delegate is None else delegate.accepted

    def route(self, services: "Mapping[str, ServiceFront]") -> None:
        """All services are there: those that clients ask for by name are known."""
        service = self._service
        if sni := service.config.sni:
            doors = [(name, services[other].arrivals) for name, other in sni.items()]
            names = ByName[Door](doors, self)
            hello_s = service.timeouts.handshake
            self.routes = Routes(service.loop, service.deadlines, hello_s, names, self)

    def drain(self) -> None:
        """Who is on the way gets a moment, and no more."""
        if self.entrance is not None:
            self.entrance.drain()
        if self.routes is not None:
            self.routes.drain()

    # -- steps

    def _accepted(self, stream: Stream, peer: Any) -> None:
        self._service.arrived()
        if self.routes is None:
            self._deliver(stream, peer)
        else:
            self.routes.accepted(stream, Visitor(peer))

    def arrived(self) -> None:
        """There is one more, which has not said whose it is."""
        self._service.arrived()

    def entered(self, stream: Stream, visitor: Visitor) -> None:
        """A client's connection was accepted, and it is known whose it is."""
        if self.routes is None:
            self._deliver(stream, visitor.peer, visitor.destination, believed=visitor.believed)
        else:
            self.routes.accepted(stream, visitor)

    def turned_away(self, address: str, fault: Fault | None, reason: str) -> None:
        """A client's connection did not come in."""
        self._service.client_lost("")
        if fault is not None:
            self._service.error_log.turned_away(address, fault, reason)

    def routed_away(self) -> None:
        """A connection that was looked at is nobody's for a moment."""
        self._service.counters.active -= 1
        self._service.admission.clients -= 1

    def routed(self, stream: Stream, visitor: Visitor) -> None:
        """A connection comes by its name, maybe from another one's listener."""
        service = self._service
        if service.overflow.room() < 1:
            service.overflow.turn_away(stream, FULL)
            service.error_log.turned_away(peer_address(visitor.peer), FULL, "it is full")
            return
        service.counters.active += 1
        service.admission.clients += 1
        self._deliver(stream, visitor.peer, visitor.destination, believed=visitor.believed)

    # -- to whom

    def _deliver(
        self, stream: Stream, peer: Any, destination: Place = None, *, believed: bool = True
    ) -> None:
        service = self._service
        if not service.overflow.admits(stream, service.counted_as(peer, believed=believed)):
            return
        version = service.proxy_version
        preface = of_client(version, stream, peer, destination) if version else b""
        port = destination[1] if isinstance(destination, tuple) else 0
        if self.handshakes is not None:
            self.handshakes.accepted(stream, peer, preface, port, believed=believed)
        elif service.config.mode == "http":
            client = ClientConnection(service, peer, preface, believed=believed, port=port)
            service.clients.add(client)
            adopt(service.reactor, client, stream, service.config.limits.buffer)
        else:
            Relay(service, stream, peer, preface).start()

    def _secured(self, handshake: "Handshake", connection: "TlsConnection") -> None:
        """A client speaks TLS, and can be served."""
        service, peer, preface = self._service, handshake.peer, handshake.preface
        facts = connection.facts(service.config.limits.log_field)
        if service.config.mode == "http":
            client = ClientConnection(
                service,
                peer,
                preface,
                believed=handshake.believed,
                fields=connection.certificate_field(),
                port=handshake.port,
                tls=facts,
            )
            service.clients.add(client)
            connection.carry(client)
        else:
            connection.pause_reading()
            Relay(service, connection, peer, preface, facts).start()
