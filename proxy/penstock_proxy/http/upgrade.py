"""An upgraded connection (WebSocket): two HTTP connections become a duplex.

Owns: which protocol a worker may switch to, and the switch of both connections. Must not know:
the new protocol, and how the exchange ends. The owner of the duplex is called when both
connections are closed.
"""

from penstock_proxy.http.downstream import Downstream
from penstock_proxy.http.upstream_connection import UpstreamConnection
from penstock_proxy.http1.response import Response
from penstock_proxy.tcp.duplex import ClientHalf, DuplexOwner


def was_offered(response: Response, offers: bytes) -> bool:
    """Is the protocol of a 101 one of those that the request offered?"""
    return bool(response.upgrade) and response.upgrade.lower() in offers.lower().split(b", ")


def head(response: Response) -> bytes:
    """The head of a 101 for the client."""
    return response.head + b"Connection: Upgrade\r\nUpgrade: " + response.upgrade + b"\r\n\r\n"


def join(client: Downstream, connection: UpstreamConnection, owner: DuplexOwner) -> None:
    """Join the two connections of an exchange to one duplex."""
    service = client.service
    half = ClientHalf(service.reactor, service.counters, service.timers, service.timeouts, owner)
    service.relays[owner] = half
    half.transport, half.worker.transport = client.transport, connection.transport
    client.transport.set_protocol(half)
    connection.transport.set_protocol(half.worker)
    service.timers.disarm(client)
    half.start()
    if not connection.blocked:
        client.transport.resume_reading()
    if not client.blocked:
        connection.transport.resume_reading()
    # Last: this write may block the worker's transport.
    if client.buffer:
        connection.transport.write(client.buffer)
    if client.at_eof:
        half.eof_received()
