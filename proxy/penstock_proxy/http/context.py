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
from penstock_proxy.http.open_clients import OpenClients
from penstock_proxy.http1.request import rewriter_for
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.service.context import ServiceContext
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.net.trusted_proxies import peer_address
from penstock_worker.telemetry.access_log import AccessLog


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
    ) -> None:
        super().__init__(loop, reactor, config, timers, fd_budget, log, pool)
        self.rewriter = rewriter_for(config, 0)
        """Of clients that connect from now on; the port is that of the newest listener."""
        self.connections = ConnectionPool(self, config.limits.response_head)
        self.retried_statuses = _retried_statuses(config)
        """Answers of a worker with these are discarded if another worker can be asked."""
        self.clients = OpenClients()
        """HTTP connections only: they may be idle, and have to be stopped for a drain."""

    def configure(self, config: ServiceConfig) -> None:
        """Take another configuration; the rewriter is not changed by this."""
        super().configure(config)
        self.connections.configure(config.limits.response_head)
        self.retried_statuses = _retried_statuses(config)

    def counted_address(self, peer: Any, *, may_be_trusted: bool) -> str:
        """The address that the client limit counts a connection for.

        Empty: not counted, because a trusted proxy connects for many clients.
        """
        address = peer_address(peer)
        is_proxy = may_be_trusted and self.config.mode == "http" and self.rewriter.trusts(address)
        return "" if is_proxy else address


def _retried_statuses(config: ServiceConfig) -> frozenset[int]:
    return frozenset(int(on) for on in config.retries.on if on.isdigit())
