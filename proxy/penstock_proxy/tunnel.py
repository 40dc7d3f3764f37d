"""What an exchange becomes when its worker agrees to another protocol (WebSocket).

Owns: the change of both connections from HTTP to a pump, and the account of the pipe when
it is closed. What the new protocol says is nobody's business here.
"""

from time import monotonic
from typing import TYPE_CHECKING

from penstock_proxy.errors import BAD_RESPONSE, WORKER_RESET
from penstock_proxy.forwarding import Response
from penstock_proxy.pump import OK, ClientHalf

if TYPE_CHECKING:
    from penstock_proxy.exchange import Exchange
    from penstock_proxy.upstream import WorkerConnection


def switch(exchange: "Exchange", link: "WorkerConnection", response: Response, rest: bytes) -> None:
    """The worker agreed to another protocol: from here on bytes are just bytes."""
    offers = exchange.prepared.framing.upgrade.lower().split(b", ")
    if not response.upgrade or response.upgrade.lower() not in offers or not exchange.request_done:
        exchange.useless(BAD_RESPONSE, "101 to something that nobody asked for")
        return
    if link.transport.is_closing():
        # Heard out after its end: nobody would tell the pipe, which would stay for ever.
        exchange.useless(WORKER_RESET, "101 and no more")
        return
    exchange.status = 101
    exchange.first_byte_s = monotonic() - exchange.started
    agreed = b"Connection: Upgrade\r\nUpgrade: " + response.upgrade + b"\r\n\r\n"
    exchange.relay(response.out + agreed + rest, len(rest))
    Tunnel(exchange, link)


class Tunnel:
    """One upgraded exchange."""

    def __init__(self, exchange: "Exchange", link: "WorkerConnection") -> None:
        """Make one pipe of the exchange's two connections."""
        client, service = exchange.client, exchange.client.service
        self._exchange = exchange
        half = ClientHalf(
            service.loop, service.counters, service.deadlines, service.timeouts.tunnel, self
        )
        half.transport, half.worker.transport = client.transport, link.transport
        client.transport.set_protocol(half)
        link.transport.set_protocol(half.worker)
        service.deadlines.disarm(client)
        half.start()
        if not link.blocked:
            client.transport.resume_reading()
        if not client.blocked:
            link.transport.resume_reading()
        # Last: it may be what makes the worker stall.
        if client.buffer:
            link.transport.write(client.buffer)

    def pump_closed(self, half: ClientHalf) -> None:
        """The pipe is closed."""
        exchange = self._exchange
        service = exchange.client.service
        service.admission.upstreams -= 1
        exchange.received += half.received
        exchange.sent += half.sent
        if half.outcome != OK:
            service.counters.errors[half.outcome] += 1
        exchange.count(monotonic() - exchange.started, half.outcome)
        exchange.leave_member()
        service.clients.discard(exchange.client)
        service.client_lost(exchange.client.counts_for)
