"""One service's parts, joined: what its connections share.

Owns: the pool, the idle connections to workers, those who wait for a worker, and the
clients of one service in one front. How these come in is for `arrivals`, what is told of
them for `journal`. The connections themselves decide nothing that concerns another one; here
is what concerns more than one.
"""

import asyncio
import logging
from collections.abc import Callable
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.admission import Admission
from penstock_proxy.arrivals import Arrivals
from penstock_proxy.checker import Verdict, Way
from penstock_proxy.config import FrontService, parse_address
from penstock_proxy.deadlines import Deadlines
from penstock_proxy.delegate import Delegate
from penstock_proxy.dial import Dialing, blamed, dial, socket_address, why
from penstock_proxy.errors import Fault
from penstock_proxy.exchange import Exchange
from penstock_proxy.forwarding import Responses, of_service
from penstock_proxy.gates import Gates, port_of
from penstock_proxy.journal import ErrorLog
from penstock_proxy.kept import MAX_IDLE, Kept
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.outliers import Outliers
from penstock_proxy.overflow import Overflow
from penstock_proxy.pool import Member, Pool
from penstock_proxy.preface import check
from penstock_proxy.reactor import Reactor
from penstock_proxy.retrying import Budget
from penstock_proxy.standing import Standing
from penstock_proxy.transport import adopt
from penstock_proxy.upstream import WorkerConnection
from penstock_proxy.waiting import Queue, nobody, retry_after
from penstock_worker.access_log import AccessLog
from penstock_worker.peers import peer_address
from penstock_worker.streams import Stream

if TYPE_CHECKING:
    from penstock_proxy.client import ClientConnection

_PROXY_VERSIONS: Final = {"": 0, "v1": 1, "v2": 2}

_log = logging.getLogger("penstock.front")


class ServiceFront:
    """One service in one front."""

    _is_waking = False
    """Those who wait are about to be served."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        config: FrontService,
        deadlines: Deadlines,
        admission: Admission,
        log: AccessLog | None,
        rotated: Callable[[Member, str], None],
    ) -> None:
        """`rotated` is told of each worker that enters or leaves the rotation."""
        self.loop = loop
        self.reactor = reactor
        self.config = config
        self.timeouts = config.timeouts
        self.deadlines = deadlines
        self.admission = admission
        self.counters = ServiceCounters()
        self.error_log = ErrorLog(config.name, self.counters, log)
        self.forwarding = of_service(config, port_of(config.listeners))
        self.responses = Responses(config.limits.response_head)
        # One that began with a PROXY header is one client's, and serves one request.
        self.kept = Kept((t.slot for t in config.targets), 0 if config.send_proxy else MAX_IDLE)
        self.budget = Budget(config.retries, deadlines.now)
        self.outliers = Outliers(config.ejection, deadlines.now)
        self.waiting = Queue(config.limits, config.timeouts.queue)
        self.clients: set[ClientConnection] = set()
        """Under http only: who may be idle and has to be told when we stop."""
        self.stopping = False
        self.addresses = {
            t.slot: socket_address(parse_address(t.address)) for t in config.targets if t.address
        }
        self.proxy_version = _PROXY_VERSIONS[config.send_proxy]
        self._rotated = rotated
        self.pool = self._pool()
        self.delegate = Delegate(self) if config.scheme == "handoff" else None
        self.overflow = Overflow(self)
        self.arrivals = Arrivals(self)
        self.gates = self._gates()
        self.tick(deadlines.now)

    # -- its parts

    def _pool(self) -> Pool:
        config = self.config
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

    # -- connections come and go

    def arrived(self) -> None:
        """A client's connection was accepted."""
        self.counters.connections += 1
        self.counters.active += 1
        self.admission.clients += 1

    def counted_as(self, peer: Any, *, believed: bool) -> str:
        """The address that a connection counts for; empty: a trusted proxy comes for many."""
        address = peer_address(peer)
        is_proxy = believed and self.config.mode == "http" and self.forwarding.trusts(address)
        return "" if is_proxy else address

    def client_lost(self, share: str) -> None:
        """A client's connection is closed; `share` is the address that it counted for."""
        self.counters.active -= 1
        self.admission.clients -= 1
        if share:
            self.overflow.tally.leaves(share)
        self.overflow.resume()

    def passage_over(self) -> None:
        """A connection that waited for a worker has gone to it, or is closed."""
        self.counters.active -= 1
        self.admission.waiting -= 1
        self.overflow.resume()

    def roomier(self) -> None:
        """A worker has taken connections, or some that it had are over."""
        self.overflow.resume()
        if self.waiting:
            self._serve_waiting()

    def enqueue(self, who: object, serve: Callable[[], None], started: float) -> Fault | float:
        """Let somebody wait for a worker: the seconds it may; the fault if it may not.

        `serve` is called when it is its turn.
        """
        return self.waiting.enter(who, serve, started, monotonic(), self.pool.in_rotation)

    def nobody(self) -> Fault:
        """Why nobody could be found for somebody."""
        return nobody(self.pool.in_rotation)

    def retry_after(self, fault: Fault) -> int:
        """Seconds after which a client that gets a 503 may try again."""
        return retry_after(fault, monotonic(), self.pool.returns(), self.timeouts.queue)

    def freed(self, member: Member) -> None:
        """A worker that had as much as it may has less: the first in the queue is next."""
        if self.pool.left(member) and self.waiting:
            self._wake()

    def _wake(self) -> None:
        # Not at once: whoever has just ended is not done with its connections.
        if not self._is_waking:
            self._is_waking = True
            self.loop.call_soon(self._serve_waiting)

    def move(self, slot: int, address: str) -> None:
        """Another process is in this slot, and listens elsewhere."""
        self.addresses[slot] = socket_address(parse_address(address))

    # -- connections to workers

    def dial(self, member: Member, exchange: Exchange) -> None:
        """Open a connection to a worker for an exchange."""
        self.admission.upstreams += 1
        self.counters.upstreams += 1

        def done(stream: Stream | None, error: int) -> None:
            exchange.dialing = None
            if stream is None:
                self.admission.upstreams -= 1
                self.counters.upstreams -= 1
                exchange.connect_failed(why(error), blamed(error))
            else:
                self.counters.worker_connections[member.slot] += 1
                link = WorkerConnection(member, exchange, self._link_lost, self.kept.ended)
                adopt(self.reactor, link, stream, self.config.limits.buffer)

        dialing = dial(self.loop, self.addresses[member.slot], done, exchange.client.preface)
        if dialing is not None:
            exchange.dialing = dialing

    @property
    def way(self) -> Way | None:
        """How to check a worker to which it is not enough to connect."""
        if self.delegate is not None:
            return self.delegate.check
        return self._check if self.proxy_version else None

    async def _check(self, member: Member) -> Verdict:
        where = self.addresses[member.slot]
        return await check(where, member.address, self.proxy_version, self.config.health.path)

    def stop_dialing(self, dialing: Dialing) -> None:
        """Nobody waits for this connection any more."""
        dialing.cancel()
        self.admission.upstreams -= 1
        self.counters.upstreams -= 1

    def _link_lost(self, link: WorkerConnection) -> None:
        self.admission.upstreams -= 1
        self.counters.upstreams -= 1
        self.kept.lost(link)

    # -- what happens to everybody

    def _changed(self, member: Member, reason: str) -> None:
        self._rotated(member, reason)
        if member.standing is not Standing.UP:
            self.kept.drop(member.slot)
        elif self.waiting:
            self._wake()

    def _panicked(self, panics: bool) -> None:
        self.counters.panic = int(panics)
        name = self.config.name
        if panics:
            _log.warning("%s: too few workers are in the rotation: all that live are used", name)
        else:
            _log.info("%s: enough workers are in the rotation again", name)
        if self.waiting:
            self._wake()

    def _serve_waiting(self) -> None:
        """Let those who wait try again; who finds nobody goes to the end of the queue."""
        self._is_waking = False
        waiting, delegate = self.waiting, self.delegate
        for _ in range(len(waiting)):
            if not (waiting and self.pool.free) or not (delegate is None or delegate.has_room):
                break
            waiting.first()()
        if delegate is not None:
            delegate.flush()

    def tick(self, now: float) -> None:
        """Four times a second: what is due, whoever it concerns."""
        self.pool.tick(now)
        if self.delegate is not None:
            self.delegate.tick(now)
        self._serve_waiting()
        self.error_log.tick(now)
        self.kept.tick(now)
        counts = self.counters
        self.budget.seen(sum(counts.total.counts), now)
        if self.outliers.is_due(now) and (worst := self.outliers.worst(self._given(), now)):
            self.pool.eject(worst.member, now, worst.words)
        self.overflow.tick(now)

    def _given(self) -> dict[Member, int]:
        """How much each worker was given since the start, well done or not."""
        counts, members = self.counters, self.pool.members
        if self.config.mode == "http" and self.delegate is None:
            ended = counts.by_slot()
            return {member: ended[member.slot] + member.elsewhere for member in members}
        # Those that stood; one that failed never did.
        return {m: counts.worker_connections[m.slot] + m.failed for m in members}

    def drain(self) -> None:
        """Accept no more; end what is idle; let the rest finish."""
        self.gates.drain()
        self.stopping = self.kept.stopping = True
        self.arrivals.drain()
        for client in list(self.clients):
            client.stop()
