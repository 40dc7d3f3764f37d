"""What the connections of one service share.

Owns: the pool, the queue, the budgets, the counters and the error log of one service in one
proxy process, and the count of its open connections. Must not know: any kind of connection, and
how connections are accepted. All of them import this module, and it imports none of them.
`runtime.service` derives from it and supplies the hooks.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.balancing.queue import Queue, no_worker_fault, retry_after
from penstock_proxy.balancing.retry_budget import RetryBudget
from penstock_proxy.config import ServiceConfig
from penstock_proxy.errors import Fault
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.net.address import parse_address
from penstock_proxy.net.connector import socket_address
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.service.client_limit import ClientLimit
from penstock_proxy.service.error_log import ErrorLog
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.telemetry.access_log import AccessLog

_PROXY_VERSIONS: Final = {"": 0, "v1": 1, "v2": 2}


class RelayOwner(Protocol):
    """Whoever counts and logs a relayed connection at its end."""

    member: Member | None


class Relay(Protocol):
    """A relayed connection: its bytes are copied, and have no beginning and end that we know."""

    def cut(self) -> bool:
        """The time to finish is over: reset it, count and log it. True."""


class ServiceContext:
    """One service, as its connections see it."""

    stopping = False
    """The process is draining: no new requests are served."""

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
        self.loop = loop
        self.reactor = reactor
        self.config = config
        self.timeouts = config.timeouts
        self.timeouts_since = timers.now
        """When these time-outs were set. Who was there before is told of them a little later."""
        self.timers = timers
        self.fd_budget = fd_budget
        self.pool = pool
        self.counters = ServiceCounters()
        self.error_log = ErrorLog(config.name, self.counters, log)
        self.retry_budget = RetryBudget(config.retries, timers.now)
        self.client_limit = ClientLimit(0)
        self.relays: dict[RelayOwner, Relay] = {}
        """Relayed connections that are open: in mode tcp, and after an upgrade."""
        self.queue = Queue(config.limits, config.timeouts.queue)
        self.addresses = {
            t.member: socket_address(parse_address(t.address)) for t in config.targets if t.address
        }
        """By number of the member."""
        self.proxy_version = _PROXY_VERSIONS[config.send_proxy]
        """Version of the PROXY header that is sent to workers; 0: none is sent."""

    def configure(self, config: ServiceConfig) -> None:
        """Take another configuration: what is read here at each use is the new one at once."""
        self.config = config
        if config.timeouts != self.timeouts:
            self.timeouts_since = self.timers.now
        self.timeouts = config.timeouts
        self.proxy_version = _PROXY_VERSIONS[config.send_proxy]
        self.retry_budget.configure(config.retries)
        self.queue.configure(config.limits, config.timeouts.queue)

    # -- connections open and close

    def client_accepted(self) -> None:
        """Count a client's connection that was accepted."""
        self.counters.connections += 1
        self.counters.active += 1
        self.fd_budget.clients += 1

    def client_closed(self, counted_address: str) -> None:
        """Count the end of a client's connection, which was counted for `counted_address`."""
        self.counters.active -= 1
        self.fd_budget.clients -= 1
        if counted_address:
            self.client_limit.release(counted_address)
        self.capacity_changed()

    def release(self, member: Member) -> None:
        """A worker that was at its limit has capacity again: serve the queue."""
        if self.pool.released(member) and self.queue:
            self.serve_queue_soon()

    # -- the queue

    def enqueue(self, waiter: object, serve: Callable[[], None], started: float) -> Fault | float:
        """Put a waiter into the queue. Returns the seconds that the waiter may wait, or a fault.

        `serve` is called when it is the waiter's turn. `started`: when its request began.
        """
        return self.queue.add(waiter, serve, started, monotonic(), self.pool.in_rotation)

    def no_worker(self) -> Fault:
        """Why no worker was found."""
        return no_worker_fault(self.pool.in_rotation)

    def retry_after(self, fault: Fault) -> int:
        """Seconds after which a client that gets a 503 may try again."""
        return retry_after(fault, monotonic(), self.pool.ejection_ends(), self.timeouts.queue)

    # -- supplied by `runtime.service`

    def capacity_changed(self) -> None:
        """There may be capacity for more connections: listeners may accept again."""
        raise NotImplementedError

    def serve_queue(self) -> None:
        """Serve the queue now."""
        raise NotImplementedError

    def serve_queue_soon(self) -> None:
        """Serve the queue in the next iteration of the event loop."""
        raise NotImplementedError
