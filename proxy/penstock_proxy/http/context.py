"""What the HTTP connections of one service share, beside what all of its connections do.

Owns: the rewriting of heads, the connections to workers, and which clients there are. Must not
know: how a request is read or tried (`client_connection`, `exchange`).
"""

import asyncio
from typing import Any

from penstock_proxy.balancing.pool import Pool
from penstock_proxy.config import ServiceConfig
from penstock_proxy.http.connection_pool import ConnectionPool
from penstock_proxy.http1.request import of_service
from penstock_proxy.http1.response import ResponseHeads
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.service.context import ServiceContext
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.net.trusted_proxies import peer_address
from penstock_worker.telemetry.access_log import AccessLog


class HttpClient:
    """What a service asks of a client's connection."""

    __slots__ = ()

    @property
    def idle_since(self) -> float:
        """Since when nothing is asked or answered here; NEVER while something is."""
        raise NotImplementedError

    def end_idle(self) -> None:
        """End it: it is idle, and somebody else needs its descriptor."""
        raise NotImplementedError

    def stop(self) -> None:
        """Serve no new requests: end an idle connection, let others finish."""
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
        """`port`: where clients connect; 0 for a unix socket."""
        super().__init__(loop, reactor, config, timers, fd_budget, log, pool)
        self.rewriter = of_service(config, port)
        self.connections = ConnectionPool(self, ResponseHeads(config.limits.response_head))
        self.clients: set[HttpClient] = set()
        """Under http only: who may be idle and has to be told when we stop."""

    def counted_as(self, peer: Any, *, believed: bool) -> str:
        """The address that a connection counts for; empty: a trusted proxy comes for many."""
        address = peer_address(peer)
        is_proxy = believed and self.config.mode == "http" and self.rewriter.trusts(address)
        return "" if is_proxy else address
