"""What an exchange becomes when its worker agrees to another protocol (WebSocket).

Owns: the change of both connections from HTTP to a pump, and the account of the pipe when
it is closed. What the new protocol says is nobody's business here.
"""

from time import monotonic
from typing import TYPE_CHECKING

from penstock_proxy.pump import OK, ClientHalf
from penstock_proxy.upstream import WorkerConnection

if TYPE_CHECKING:
    from penstock_proxy.exchange import Exchange


class Tunnel:
    """One upgraded exchange."""

    def __init__(self, exchange: "Exchange", link: WorkerConnection) -> None:
        """Make one pipe of the exchange's two connections."""
        client, service = exchange.client, exchange.client.service
        self._exchange = exchange
        half = ClientHalf(
            service.loop, service.counters, service.deadlines, service.timeouts.tunnel, self
        )
        half.transport, half.other.transport = client.transport, link.transport
        client.transport.set_protocol(half)
        link.transport.set_protocol(half.other)
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
        service.journal.count(
            exchange, exchange.member, monotonic() - exchange.started, half.outcome
        )
        exchange.leave_member()
        service.clients.discard(exchange.client)
        service.client_lost()
