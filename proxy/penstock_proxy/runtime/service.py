"""One service of a proxy process: it makes the parts of a service, and connects them.

Owns: which parts a service has, what each part is given, and what happens when a worker enters or
leaves the rotation. Connections share their state through the contexts that this derives from;
the hooks of these contexts are implemented here.
"""

import asyncio
import logging
from collections.abc import Callable
from random import random
from time import monotonic

from penstock_proxy.balancing.health_check import HealthChecker
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.outlier_detection import OutlierDetection
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.balancing.probes import Probe, ProbeResult, with_proxy_header
from penstock_proxy.config import ServiceConfig, Target
from penstock_proxy.handoff.dispatcher import Dispatcher
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.exchange import Exchange
from penstock_proxy.listener.filter_chain import FilterChain
from penstock_proxy.listener.listeners import Listeners, port_of
from penstock_proxy.listener.overload import Overload
from penstock_proxy.net.address import parse_address
from penstock_proxy.net.connector import socket_address
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.service.fd_budget import FdBudget
from penstock_proxy.tcp.duplex import ClientHalf
from penstock_worker.telemetry.access_log import AccessLog

_log = logging.getLogger("penstock.proxy")


class Service(HttpContext):
    """One service in one proxy."""

    _queue_wake_pending = False
    """The queue will be served in the next iteration of the event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        config: ServiceConfig,
        timers: TimerWheel,
        fd_budget: FdBudget,
        log: AccessLog | None,
        on_rotation: Callable[[Member, str], None],
        on_answer: Callable[[Member, bool], None] = lambda *_: None,
    ) -> None:
        """`on_rotation(member, reason)` is called when a worker enters or leaves the rotation,
        `on_answer(member, answered)` as `HealthChecker` says."""
        self._on_rotation = on_rotation
        port = port_of(config.listeners)
        super().__init__(
            loop, reactor, config, timers, fd_budget, log, self._make_pool(config), port
        )
        self.outlier_detection = OutlierDetection(config.ejection, timers.now)
        self.dispatcher = Dispatcher(self) if config.scheme == "handoff" else None
        self.overload = Overload(self)
        self.filter_chain = FilterChain(self, self.overload, self.dispatcher)
        self.listeners = self.overload.listeners = self._make_listeners()
        self.health_checker = HealthChecker(
            self.pool,
            config.health,
            self.counters,
            clock=monotonic,
            probe=self._probe(),
            on_answer=on_answer,
        )
        self.tick(timers.now)

    # -- its parts

    def _make_pool(self, config: ServiceConfig) -> Pool:
        return Pool(
            config.targets,
            balance=config.balance,
            health=config.health,
            ejection=config.ejection,
            random=random,
            on_change=self._rotation_changed,
            on_panic=self._panic_changed,
            per_worker=config.limits.per_worker,
        )

    def _make_listeners(self) -> Listeners:
        return Listeners(
            self.loop,
            self.config.listeners,
            self.fd_budget,
            self.overload,
            self.timeouts.queue,
            self.filter_chain.first_filter,
            None if self.dispatcher is None else self.dispatcher.flush,
        )

    def add_member(self, target: Target) -> Member:
        """Add a worker while the service runs. ValueError: its slot is taken."""
        member = self.pool.add(target)
        if target.address:
            self.addresses[target.slot] = socket_address(parse_address(target.address))
        if self.dispatcher is not None:
            self.dispatcher.add(member)
        self.health_checker.add(member)
        return member

    def remove_member(self, slot: int) -> None:
        """Remove a worker while the service runs: its process is gone, or has been drained."""
        self.health_checker.remove(slot)
        member = self.pool.remove(slot)
        self.connections.drop(slot)
        self.addresses.pop(slot, None)
        if self.dispatcher is not None:
            self.dispatcher.remove(member)

    def hold_member(self, slot: int, reason: str) -> None:
        """The worker may hang: it gets nothing new, and what it has not taken goes to others."""
        self.pool.hold(slot, reason)
        if self.dispatcher is not None:
            self.dispatcher.take_back(self.pool.member(slot))

    def release_member(self, slot: int) -> None:
        """The worker answers again."""
        self.pool.release(slot, monotonic())
        # Its checks may have failed meanwhile: it should not wait for the next one.
        self.health_checker.check_now(slot)

    def set_address(self, slot: int, address: str) -> None:
        """The slot's new process listens at another address."""
        self.addresses[slot] = socket_address(parse_address(address))

    def _probe(self) -> Probe | None:
        """How to check a worker where its address alone is not enough; None: it is enough."""
        if self.dispatcher is not None:
            return self.dispatcher.check
        return self._probe_with_proxy_header if self.proxy_version else None

    async def _probe_with_proxy_header(self, member: Member) -> ProbeResult:
        address = self.addresses[member.slot]
        path = self.config.health.path
        return await with_proxy_header(address, member.address, self.proxy_version, path)

    # -- hooks of the context

    def capacity_changed(self) -> None:
        """There may be capacity for more connections: listeners may accept again."""
        self.overload.resume()

    def serve_queue(self) -> None:
        """Serve each waiter once; one that finds no worker goes to the end of the queue."""
        self._queue_wake_pending = False
        queue, dispatcher = self.queue, self.dispatcher
        for _ in range(len(queue)):
            if not (queue and self.pool.available) or not (
                dispatcher is None or dispatcher.has_room
            ):
                break
            queue.pop_first()()
        if dispatcher is not None:
            dispatcher.flush()

    def serve_queue_soon(self) -> None:
        """Serve the queue later: an exchange that just ends still has to release connections."""
        if not self._queue_wake_pending:
            self._queue_wake_pending = True
            self.loop.call_soon(self.serve_queue)

    # -- events of the whole service

    def _rotation_changed(self, member: Member, reason: str) -> None:
        self._on_rotation(member, reason)
        if member.state is not MemberState.UP:
            self.connections.drop(member.slot)
        elif self.queue:
            self.serve_queue_soon()

    def _panic_changed(self, in_panic: bool) -> None:
        self.counters.panic = int(in_panic)
        name = self.config.name
        if in_panic:
            _log.warning("%s: too few workers are in the rotation: all that live are used", name)
        else:
            _log.info("%s: enough workers are in the rotation again", name)
        if self.queue:
            self.serve_queue_soon()

    def tick(self, now: float) -> None:
        """Called four times a second: do what is due."""
        self.pool.tick(now)
        if self.dispatcher is not None:
            self.dispatcher.tick(now)
        self.serve_queue()
        self.error_log.tick(now)
        self.connections.tick(now)
        counts = self.counters
        self.retry_budget.count_requests(sum(counts.total.counts), now)
        if self.outlier_detection.is_due(now) and (
            worst := self.outlier_detection.worst(self._requests_by_member(), now)
        ):
            self.pool.eject(worst.member, now, worst.description)
        self.overload.tick(now)
        if self.stopping:
            self._close_half_closed()

    def _close_half_closed(self) -> None:
        """End upgraded connections that their worker has ended."""
        for owner, relay in tuple(self.relays.items()):
            if isinstance(owner, Exchange) and isinstance(relay, ClientHalf):
                relay.close_if_worker_ended()

    def _requests_by_member(self) -> dict[Member, int]:
        """The number of requests or connections of each worker since the start, failed or not."""
        counts, members = self.counters, self.pool.members
        if self.config.mode == "http" and self.dispatcher is None:
            ended = counts.by_slot()
            return {member: ended[member.slot] + member.retried_elsewhere for member in members}
        # `worker_connections` has only those that were established: failed ones are added.
        return {m: counts.worker_connections[m.slot] + m.total_failures for m in members}

    def drain(self) -> None:
        """Accept no more connections, close idle ones, let the rest finish."""
        self.listeners.drain()
        self.stopping = self.connections.stopping = True
        self.filter_chain.drain()
        for client in list(self.clients):
            client.stop()
