"""One service's parts, joined.

Owns: which parts a service has, what each is told, and what happens when a worker enters or
leaves the rotation. The connections themselves decide nothing that concerns another one; what
concerns more than one is in the context below them, whose hooks are here.
"""

import asyncio
import logging
from collections.abc import Callable
from random import random

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.outlier_detection import OutlierDetection
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.balancing.probes import Probe, ProbeResult, with_proxy_header
from penstock_proxy.config import ServiceConfig
from penstock_proxy.handoff.dispatcher import Dispatcher
from penstock_proxy.http.context import HttpContext
from penstock_proxy.listener.filter_chain import Arrivals
from penstock_proxy.listener.listeners import Gates, port_of
from penstock_proxy.listener.overload import Overflow
from penstock_proxy.net.address import parse_address
from penstock_proxy.net.connector import socket_address
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import Deadlines
from penstock_proxy.service.fd_budget import Admission
from penstock_worker.telemetry.access_log import AccessLog

_log = logging.getLogger("penstock.proxy")


class Service(HttpContext):
    """One service in one proxy."""

    _is_waking = False
    """Those who wait are about to be served."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        config: ServiceConfig,
        deadlines: Deadlines,
        admission: Admission,
        log: AccessLog | None,
        rotated: Callable[[Member, str], None],
    ) -> None:
        """`rotated` is told of each worker that enters or leaves the rotation."""
        self._rotated = rotated
        port = port_of(config.listeners)
        super().__init__(
            loop, reactor, config, deadlines, admission, log, self._pool_of(config), port
        )
        self.outlier_detection = OutlierDetection(config.ejection, deadlines.now)
        self.delegate = Dispatcher(self) if config.scheme == "handoff" else None
        self.overflow = Overflow(self)
        self.arrivals = Arrivals(self, self.overflow, self.delegate)
        self.gates = self.overflow.gates = self._gates()
        self.tick(deadlines.now)

    # -- its parts

    def _pool_of(self, config: ServiceConfig) -> Pool:
        return Pool(
            config.targets,
            balance=config.balance,
            health=config.health,
            ejection=config.ejection,
            random=random,
            on_change=self._changed,
            on_panic=self._panicked,
            per_worker=config.limits.per_worker,
        )

    def _gates(self) -> Gates:
        return Gates(
            self.loop,
            self.config.listeners,
            self.admission,
            self.overflow,
            self.timeouts.queue,
            self.arrivals.way_in,
            None if self.delegate is None else self.delegate.flush,
        )

    def move(self, slot: int, address: str) -> None:
        """Another process is in this slot, and listens elsewhere."""
        self.addresses[slot] = socket_address(parse_address(address))

    @property
    def probe(self) -> Probe | None:
        """How to check a worker to which it is not enough to connect."""
        if self.delegate is not None:
            return self.delegate.check
        return self._check if self.proxy_version else None

    async def _check(self, member: Member) -> ProbeResult:
        where = self.addresses[member.slot]
        path = self.config.health.path
        return await with_proxy_header(where, member.address, self.proxy_version, path)

    # -- hooks of the context

    def capacity_changed(self) -> None:
        """There may be room for more connections: listeners may accept again."""
        self.overflow.resume()

    def serve_queue(self) -> None:
        """Let those who wait try again; who finds no worker goes to the end of the queue."""
        self._is_waking = False
        waiting, delegate = self.waiting, self.delegate
        for _ in range(len(waiting)):
            if not (waiting and self.pool.available) or not (delegate is None or delegate.has_room):
                break
            waiting.first()()
        if delegate is not None:
            delegate.flush()

    def serve_queue_soon(self) -> None:
        """Not at once: whoever has just ended is not done with its connections."""
        if not self._is_waking:
            self._is_waking = True
            self.loop.call_soon(self.serve_queue)

    # -- what happens to everybody

    def _changed(self, member: Member, reason: str) -> None:
        self._rotated(member, reason)
        if member.state is not MemberState.UP:
            self.connections.drop(member.slot)
        elif self.waiting:
            self.serve_queue_soon()

    def _panicked(self, panics: bool) -> None:
        self.counters.panic = int(panics)
        name = self.config.name
        if panics:
            _log.warning("%s: too few workers are in the rotation: all that live are used", name)
        else:
            _log.info("%s: enough workers are in the rotation again", name)
        if self.waiting:
            self.serve_queue_soon()

    def tick(self, now: float) -> None:
        """Four times a second: what is due, whoever it concerns."""
        self.pool.tick(now)
        if self.delegate is not None:
            self.delegate.tick(now)
        self.serve_queue()
        self.error_log.tick(now)
        self.connections.tick(now)
        counts = self.counters
        self.budget.seen(sum(counts.total.counts), now)
        if self.outlier_detection.is_due(now) and (
            worst := self.outlier_detection.worst(self._given(), now)
        ):
            self.pool.eject(worst.member, now, worst.description)
        self.overflow.tick(now)

    def _given(self) -> dict[Member, int]:
        """How much each worker was given since the start, well done or not."""
        counts, members = self.counters, self.pool.members
        if self.config.mode == "http" and self.delegate is None:
            ended = counts.by_slot()
            return {member: ended[member.slot] + member.retried_elsewhere for member in members}
        # Those that stood; one that failed never did.
        return {m: counts.worker_connections[m.slot] + m.total_failures for m in members}

    def drain(self) -> None:
        """Accept no more; end what is idle; let the rest finish."""
        self.gates.drain()
        self.stopping = self.connections.stopping = True
        self.arrivals.drain()
        for client in list(self.clients):
            client.stop()
