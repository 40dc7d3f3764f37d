"""One service of a proxy process: it makes the parts of a service, and connects them.

Owns: which parts a service has, what each part is given, and what happens when a worker enters or
leaves the rotation. Connections share their state through the contexts that this derives from;
the hooks of these contexts are implemented here.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from random import random
from time import monotonic
from typing import Final

from penstock_proxy.balancing.check_schedule import CheckSchedule
from penstock_proxy.balancing.health_check import HealthChecker
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.outlier_detection import Outlier, OutlierDetection, Recent
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.balancing.probes import Probe, ProbeResult, host_of, with_proxy_header
from penstock_proxy.config import ServiceConfig, Target
from penstock_proxy.handoff.dispatcher import Dispatcher
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.exchange import Exchange
from penstock_proxy.http1.request import rewriter_for
from penstock_proxy.listener.filter_chain import FilterChain
from penstock_proxy.listener.listeners import Listeners
from penstock_proxy.listener.overload import Overload
from penstock_proxy.net.address import parse_address
from penstock_proxy.net.connector import socket_address
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.runtime.changed_settings import rewriting, telling
from penstock_proxy.runtime.request_counts import counting
from penstock_proxy.service.fd_budget import FdBudget
from penstock_proxy.tcp.duplex import ClientHalf
from penstock_worker.telemetry.access_log import AccessLog

_SERVED_AT_ONCE: Final = 16
"""Of those that wait for a worker: to serve one costs as much as half a request."""

_log = logging.getLogger("penstock.proxy")


class Service(HttpContext):
    """One service in one proxy."""

    wanted: ServiceConfig
    """What it was configured with last. `config` is the same, but that TLS is not spoken before
    the certificates are there."""
    has_drained = False
    """All that there is has been told to end, and nobody comes any more."""
    _accepting = False
    _queue_wake_pending = False
    """The queue will be served in the next iteration of the event loop."""
    _telling: Iterator[None]
    """Clients are being told of the last change."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        config: ServiceConfig,
        timers: TimerWheel,
        fd_budget: FdBudget,
        log: AccessLog | None,
        on_rotation: Callable[[Member, str, Recent], None],
        on_answer: Callable[[Member, bool], None] = lambda *_: None,
        check_schedule: CheckSchedule | None = None,
    ) -> None:
        """`on_rotation(member, reason, recent)` is called when a worker enters or leaves the
        rotation, `on_answer(member, answered)` as `HealthChecker` says. `recent`: of one that is
        ejected, what it and all others had since it came. `check_schedule`: that of all services
        of the process."""
        self._on_rotation = on_rotation
        self._telling = iter(())
        self.wanted = config
        super().__init__(loop, reactor, config, timers, fd_budget, log, self._make_pool(config))
        self.outlier_detection = OutlierDetection(config.ejection, timers.now)
        self.dispatcher = Dispatcher(self) if config.scheme == "handoff" else None
        self.overload = Overload(self)
        self.filter_chain = FilterChain(self, self.overload, self.dispatcher)
        self.listeners = self.overload.listeners = self._make_listeners()
        self._port = 0
        self._update_port()
        self.health_checker = HealthChecker(
            self.pool,
            self.counters,
            clock=monotonic,
            probe=self._probe(),
            on_answer=on_answer,
            schedule=check_schedule,
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
            on_waiting=self._member_waits,
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

    # -- its configuration

    def configure(self, config: ServiceConfig) -> None:
        """Take another configuration, of the same scheme and mode, for connections and requests
        that come from now on. What is in flight may see old settings or new ones.

        Its listeners, its members, their checks and its access log are not changed by this.
        """
        for _ in self.configuring(config):
            pass

    def configuring(self, config: ServiceConfig) -> Iterator[None]:
        """`configure`, for the last one of these steps. Those that are open are told in slices."""
        # They are told of one change after the other.
        yield from self._telling
        self.wanted = config
        if config.tls and not (self.config.tls or self.filter_chain.has_certificates):
            # Until then its clients go on to speak as they do.
            config = config.model_copy(update={"tls": False, "verifies": False})
        before, limit, now = self.config, config.limits.per_worker, self.timers.now
        balance, ejection = config.balance, config.ejection
        yield from self.pool.configuring(balance, config.health, ejection, limit, now)
        super().configure(config)
        self.outlier_detection.configure(config.ejection)
        if self.dispatcher is not None:
            self.dispatcher.configure()
        self.overload.configure()
        if rewriting(config) != rewriting(before):
            self.rewriter = rewriter_for(config, self._port)
        self._telling = telling(self, before)
        self.reactor.slices.run(self._telling)
        self.filter_chain.configure()
        self.listeners.configure(self.filter_chain.first_filter, config.timeouts.queue)
        self.capacity_changed()
        self.serve_queue_soon()

    def certificates_changed(self) -> Iterator[None]:
        """A set of certificates is complete: it may be the first one."""
        if self.config.tls != self.wanted.tls:
            yield from self.configuring(self.wanted)
        self._start_listeners()

    def start(self) -> None:
        """Accept from now on, if it has all that it needs for that."""
        self._accepting = True
        self._start_listeners()

    def _start_listeners(self) -> None:
        if self._accepting and not (self.config.tls and not self.filter_chain.has_certificates):
            self.listeners.start()

    def listen(self, listener: socket.socket) -> None:
        """Accept from this socket as well, which is ours from now on."""
        self.listeners.add(listener)
        self._update_port()

    def keep_newest_listeners(self, count: int) -> Iterator[None]:
        """Close the listeners but the newest ones; what waits in their queues is accepted, one in
        each step."""
        yield from self.listeners.keep_newest(count)
        self._update_port()

    def _update_port(self) -> None:
        """The port that clients connect to may have changed. Those that are there had another."""
        if self._port != self.listeners.port:
            self._port = self.listeners.port
            self.rewriter = rewriter_for(self.config, self._port)

    def add_member(self, target: Target, *, tells_rotation: bool = True) -> Member:
        """Add a worker while the service runs. ValueError: it is there already."""
        member = self.pool.add(target, tells_rotation=tells_rotation)
        if target.address:
            self.addresses[target.member] = socket_address(parse_address(target.address))
        if self.dispatcher is not None:
            self.dispatcher.add(member)
        self.health_checker.add(member)
        return member

    def remove_member(self, number: int) -> None:
        """Remove a worker for good: its process is gone, or has been drained."""
        self.health_checker.remove(number)
        member = self.pool.remove(number)
        self.connections.drop(number)
        self.addresses.pop(number, None)
        if self.dispatcher is not None:
            self.dispatcher.remove(member)
        self.counters.keep_only(self.pool.members)

    def configuring_checks(self, targets: Sequence[Target]) -> Iterator[None]:
        """Check these members as their targets, or else the service's configuration, say. A worker
        may keep what it was added with: it is about to be replaced, and its successor has the
        new settings. One in each step."""
        for target in targets:
            if self.pool.has(target.member):
                self.pool.set_health(target.member, target.health or self.config.health)
        yield from self.health_checker.configuring(self._probe())

    def hold_member(self, number: int, reason: str) -> None:
        """The worker may hang: it gets nothing new, and what it has not taken goes to others."""
        self.pool.hold(number, reason)
        if self.dispatcher is not None:
            self.dispatcher.take_back(self.pool.member(number))

    def release_member(self, number: int) -> None:
        """The worker answers again."""
        self.pool.release(number, monotonic())
        # Its checks may have failed meanwhile: it should not wait for the next one.
        self.health_checker.check_now(number)

    def set_address(self, number: int, address: str) -> None:
        """The worker's new process listens at another address."""
        self.addresses[number] = socket_address(parse_address(address))

    def _probe(self) -> Probe | None:
        """How to check a worker where its address alone is not enough; None: it is enough."""
        if self.dispatcher is not None:
            return self.dispatcher.check
        return self._probe_with_proxy_header if self.proxy_version else None

    async def _probe_with_proxy_header(self, member: Member) -> ProbeResult:
        address = self.addresses[member.number]
        path = member.health.path
        return await with_proxy_header(address, host_of(member), self.proxy_version, path)

    # -- hooks of the context

    def capacity_changed(self) -> None:
        """There may be capacity for more connections: listeners may accept again."""
        self.overload.resume()

    def serve_queue(self) -> None:
        """Serve each waiter once; one that finds no worker goes to the end of the queue."""
        self._queue_wake_pending = False
        self._serve(len(self.queue))

    def _serve(self, count: int) -> None:
        """Serve so many of those that wait: the first few now, the others in later turns."""
        queue, dispatcher = self.queue, self.dispatcher
        for _ in range(min(count, _SERVED_AT_ONCE)):
            if not (queue and self.pool.available) or not (
                dispatcher is None or dispatcher.has_room
            ):
                count = 0
                break
            queue.pop_first()()
        if dispatcher is not None:
            dispatcher.flush()
        if count > _SERVED_AT_ONCE and not self._queue_wake_pending:
            # Who asks meanwhile for all to be served has it done from the beginning.
            self._queue_wake_pending = True
            self.loop.call_soon(self._serve_more, count - _SERVED_AT_ONCE)

    def _serve_more(self, count: int) -> None:
        self._queue_wake_pending = False
        self._serve(count)

    def serve_queue_soon(self) -> None:
        """Serve the queue later: an exchange that just ends still has to release connections."""
        if not self._queue_wake_pending:
            self._queue_wake_pending = True
            self.loop.call_soon(self.serve_queue)

    # -- events of the whole service

    def _rotation_changed(self, member: Member, reason: str) -> None:
        self._on_rotation(member, reason, self._recent(member))
        if member.state is not MemberState.UP:
            self.connections.drop(member.number)
        elif self.queue:
            self.serve_queue_soon()

    def _recent(self, member: Member) -> Recent:
        """Only of workers: nobody rolls out upstreams, and there may be a thousand of them."""
        if not member.is_upstream:
            if member.state is MemberState.EJECTED:
                requests = self.requests_by_member()
                return self.outlier_detection.compared(member, requests, self.timers.now)
            if member.state is MemberState.UP:
                self.outlier_detection.entered(member, self.requests_by_member)
        return []

    def _member_waits(self, member: Member, reason: str) -> None:
        self._on_rotation(member, reason, [])

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
        """Do all that is due."""
        for _ in self.ticking(now):
            pass

    def ticking(self, now: float) -> Iterator[None]:
        """Four times a second: do what is due, a part in each step."""
        yield from self.pool.ticking(now)
        if self.dispatcher is not None:
            self.dispatcher.tick(now)
        yield
        self.serve_queue()
        self.error_log.tick(now)
        self.connections.tick(now)
        yield
        self.retry_budget.count_requests(self.counters.ended(), now)
        yield
        if self.outlier_detection.is_due(now):
            counts: dict[Member, int] = {}
            yield from self.counting_requests(counts)
            found: list[Outlier] = []
            yield from self.outlier_detection.judging(counts, now, found)
            for worst in found:
                self.pool.eject(worst.member, now, worst.description)
            yield
        yield from self.overload.ticking(now)
        if self.stopping:
            yield from self._close_half_closed()

    def _close_half_closed(self) -> Iterator[None]:
        """End upgraded connections that their worker has ended."""
        for owner, relay in tuple(self.relays.items()):
            if isinstance(owner, Exchange) and isinstance(relay, ClientHalf):
                relay.close_if_worker_ended()
                yield

    def requests_by_member(self) -> dict[Member, int]:
        """The number of requests or connections of each worker since the start, failed or not."""
        counts: dict[Member, int] = {}
        for _ in self.counting_requests(counts):
            pass
        return counts

    def counting_requests(self, counts: dict[Member, int]) -> Iterator[None]:
        """Put what `requests_by_member` returns into `counts`, some in each step."""
        of_http = self.config.mode == "http" and self.dispatcher is None
        return counting(self, self.pool.members, counts, of_http=of_http)

    def closing(self) -> Iterator[None]:
        """It was removed, and its time is over: nothing of it is left open but clients whose
        connection is about to end. Nobody is told any more. One member in each step."""
        self._on_rotation = _ignore
        self.overload.rejections.close()
        for member in self.pool.members:
            self.remove_member(member.number)
            yield
        self.counters.panic = 0

    def drain(self) -> None:
        """Accept no more connections, close idle ones, let the rest finish; in slices."""
        self.reactor.slices.run(self.draining())

    def draining(self) -> Iterator[None]:
        """`drain`, a part in each step. Only when who waits to be accepted is there, others are
        told to end: a connection that comes after that would not be told."""
        yield from self.listeners.draining()
        self.stopping = self.connections.stopping = True
        yield from self.filter_chain.draining()
        yield from self.clients.each(lambda client: client.stop())
        self.has_drained = True
        # Also who has nobody to tell is a step: there may be many of these.
        yield


def _ignore(member: Member, reason: str, recent: Recent) -> None:
    pass
