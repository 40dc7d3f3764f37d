"""An upgraded connection (WebSocket): two HTTP connections become a duplex.

Owns: which change of protocol a worker may agree to, and the change of both connections. Must
not know what the new protocol says, nor what becomes of the exchange: its owner is told when
both connections are gone.
"""

from penstock_proxy.http.downstream import Downstream
from penstock_proxy.http.worker_connection import WorkerConnection
from penstock_proxy.http1.response import Response
from penstock_proxy.tcp.duplex import ClientHalf, DuplexOwner


def was_offered(response: Response, offers: bytes) -> bool:
    """Is the protocol of a 101 one of those that the request offered?"""
    return bool(response.upgrade) and response.upgrade.lower() in offers.lower().split(b", ")


def head(response: Response) -> bytes:
    """The head of a 101 for the client."""
    return response.out + b"Connection: Upgrade\r\nUpgrade: " + response.upgrade + b"\r\n\r\n"


def join(client: Downstream, link: WorkerConnection, owner: DuplexOwner) -> None:
    """Make one duplex of the two connections of an exchange."""
    service = client.service
    half = ClientHalf(
        service.loop, service.counters, service.timers, service.timeouts.tunnel, owner
    )
    half.transport, half.worker.transport = client.transport, link.transport
    client.transport.set_protocol(half)
    link.transport.set_protocol(half.worker)
    service.timers.disarm(client)
    half.start()
    if not link.blocked:
        client.transport.resume_reading()
    if not client.blocked:
        link.transport.resume_reading()
    # Last: it may be what makes the worker stall.
    if client.buffer:
        link.transport.write(client.buffer)
