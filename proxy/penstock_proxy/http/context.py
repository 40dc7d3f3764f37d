"""What the HTTP connections of one service share, in addition to `service.context`.

Owns: the header rewriter, the pool of connections to workers, and the set of client
connections. Must not know: how a request is read or forwarded (`client_connection`,
`exchange`).
"""

import asyncio
from typing import Any

from penstock_proxy.balancing.pool import Pool
from penstock_proxy.config import ServiceConfig
from penstock_proxy.http.connection_pool import ConnectionPool
from penstock_proxy.http1.request import rewriter_for
from penstock_proxy.http1.response import ResponseHeads
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.service.context import ServiceContext
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.net.trusted_proxies import peer_address
from penstock_worker.telemetry.access_log import AccessLog


class ClientHandle:
    """A client's connection as the service needs it."""

    __slots__ = ()

    @property
    def idle_since(self) -> float:
        """Since when this connection has been idle; NEVER while it is not."""
        raise NotImplementedError

    def end_idle(self) -> None:
        """Close this idle connection: another client needs its descriptor."""
        raise NotImplementedError

    def stop(self) -> None:
        """Serve no new requests: close an idle connection, let others finish."""
        raise NotImplementedError

    def cut(self) -> bool:
        """The time to finish is over: end what is open, and let the client see that it was cut.

        True: a response was due. Connections that were upgraded are `relays`, and stay.
        """
        raise NotImplementedError


class HttpContext(ServiceContext):
    """One service, as its HTTP connections see it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        config: ServiceConfig,
        timers: TimerWheel,
        fd_budget: FdBudget,
        log: AccessLog | None,
        pool: Pool,
        port: int,
    ) -> None:
        """`port`: the port that clients connect to; 0 for a unix socket."""
        super().__init__(loop, reactor, config, timers, fd_budget, log, pool)
        self.rewriter = rewriter_for(config, port)
        self.connections = ConnectionPool(self, ResponseHeads(config.limits.response_head))
        self.clients: set[ClientHandle] = set()
        """HTTP connections only: they may be idle, and have to be stopped for a drain."""

    def counted_address(self, peer: Any, *, may_be_trusted: bool) -> str:
        """The address that the client limit counts a connection for.

        Empty: not counted, because a trusted proxy connects for many clients.
        """
        address = peer_address(peer)
        is_proxy = may_be_trusted and self.config.mode == "http" and self.rewriter.trusts(address)
        return "" if is_proxy else address
