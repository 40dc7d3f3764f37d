"""One service's parts, joined: what its connections share.

Owns: the pool, the idle connections to workers, those who wait for a worker, the clients,
the counters and the log of one service in one front. The connections themselves decide
nothing that concerns another one; here is what concerns more than one.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from itertools import count
from os import urandom
from random import random
from time import monotonic, time  # noqa: TID251 — a log line tells the time of day
from typing import Any, Final

from penstock_proxy.acceptor import Acceptor
from penstock_proxy.admission import Admission
from penstock_proxy.client import ClientConnection
from penstock_proxy.config import FrontService, parse_address
from penstock_proxy.deadlines import Deadlines
from penstock_proxy.delegate import Delegate, Passage
from penstock_proxy.dial import Dialing, blamed, dial, socket_address, why
from penstock_proxy.errors import NO_WORKER, QUEUE_FULL, Fault, Side
from penstock_proxy.exchange import Exchange
from penstock_proxy.forwarding import Forwarding, Responses
from penstock_proxy.metrics import FRONT_SLOT, METHODS, OTHER, ServiceCounters
from penstock_proxy.pool import Member, Pool, Standing
from penstock_proxy.relay import Relay
from penstock_proxy.upstream import WorkerConnection
from penstock_worker.access_log import AccessLog
from penstock_worker.streams import Stream, adopt

IDLE_S: Final = 60.0
"""An idle connection to a worker is closed before most servers would (75 s and more)."""
_MAX_IDLE: Final = 1024
"""Idle connections kept for one worker."""
_LINES_A_TICK: Final = 10
"""Log lines about faults; the rest is counted. An outage must not fill a disk."""
_UP: Final = Standing.UP
"""Python 3.11 takes longer to find a member of an enum than to compare it."""
_LABELS: Final = {method.encode(): method for method in METHODS}

_log = logging.getLogger("penstock.front")


class ServiceFront:
    """One service in one front."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: FrontService,
        deadlines: Deadlines,
        admission: Admission,
        log: AccessLog | None,
        rotated: Callable[[Member, str], None],
    ) -> None:
        """`rotated` is told of each worker that enters or leaves the rotation."""
        self.loop = loop
        self.config = config
        self.timeouts = config.timeouts
        self.deadlines = deadlines
        self.admission = admission
        self.log = log
        self.counters = ServiceCounters()
        self.forwarding = Forwarding(config.trusted_proxies, config.limits.headers)
        self.responses = Responses()
        self.idle: dict[int, deque[WorkerConnection]] = {t.slot: deque() for t in config.targets}
        self.waiting: dict[Exchange | Relay | Passage, None] = {}
        self.clients: set[ClientConnection] = set()
        """Under http only: who may be idle and has to be told when we stop."""
        self.stopping = False
        self.addresses = {
            t.slot: socket_address(parse_address(t.address)) for t in config.targets if t.address
        }
        self._rotated = rotated
        self.pool = Pool(
            config.targets,
            balance=config.balance,
            health=config.health,
            ejection=config.ejection,
            random=random,
            on_change=self._changed,
        )
        self.delegate = Delegate(self) if config.scheme == "handoff" else None
        deliver = self._accepted if self.delegate is None else self.delegate.accepted
        self.acceptors = [
            Acceptor(loop, socket.socket(fileno=fd), self._has_room, deliver)
            for fd in config.listeners
        ]
        self._id_prefix = urandom(10).hex().encode()
        self._ids = count()
        self._lines = 0
        self._said_full = False
        self._full = False
        """Somebody was left waiting in the listener's queue."""
        self._wall = 0.0
        """Wall clock less monotonic clock: only the log tells the time of day."""
        self.tick(deadlines.now)

    # -- connections come and go

    def accept(self) -> None:
        """The listeners listen: take what comes."""
        for acceptor in self.acceptors:
            acceptor.start()

    def _has_room(self) -> bool:
        limit = self.config.max_connections
        counters = self.counters
        here = counters.active + counters.in_flight + counters.opened
        self._full = not self.admission.has_room() or 0 < limit <= here
        if self._full and not self._said_full:
            self._said_full = True
            what = "no descriptors are left" if not self.admission.has_room() else "it is full"
            _log.warning("%s accepts no more connections: %s", self.config.name, what)
        return not self._full

    def _accepted(self, sock: Stream, peer: Any) -> None:
        self.counters.connections += 1
        self.counters.active += 1
        self.admission.clients += 1
        if self.config.mode == "http":
            client = ClientConnection(self, peer)
            self.clients.add(client)
            adopt(self.loop, client, sock)
        else:
            Relay(self, sock, peer).dispatch()

    def client_lost(self) -> None:
        """A client's connection is closed."""
        self.counters.active -= 1
        self.admission.clients -= 1
        self._resume()

    def passage_over(self) -> None:
        """A connection that waited for a worker has gone to it, or is closed."""
        self.counters.active -= 1
        self.admission.waiting -= 1
        self._resume()

    def roomier(self) -> None:
        """A worker has taken connections, or some that it had are over."""
        self._resume()
        if self.waiting:
            self._serve_waiting()

    def _resume(self) -> None:
        if self._full:
            # Other services that wait for the same descriptors are woken by the next tick.
            self._full = False
            for acceptor in self.acceptors:
                acceptor.resume()

    def queue(self, waiting: Relay | Passage, started: float) -> Fault | None:
        """Let a connection wait for a worker; the fault if it may not."""
        patience = started + self.timeouts.queue - monotonic()
        if patience <= 0:
            return NO_WORKER
        if len(self.waiting) >= self.config.limits.queue:
            return QUEUE_FULL
        self.waiting[waiting] = None
        self.deadlines.arm(waiting, monotonic() + patience)
        return None

    def move(self, slot: int, address: str) -> None:
        """Another process is in this slot, and listens elsewhere."""
        self.addresses[slot] = socket_address(parse_address(address))

    def relay_over(self, relay: Relay, ended: str, received: int, sent: int) -> None:
        """A relayed TCP connection has ended."""
        self.client_lost()
        total_s = monotonic() - relay.started
        self.counters.total.observe(total_s)
        if self.log is not None:
            self.log.add(
                (
                    monotonic() + self._wall, relay.address, "", "", "", 0, sent, received,
                    self._worker(relay.member), relay.connect_s, None, total_s,
                    relay.retries, "", ended, b"",
                )
            )  # fmt: skip

    # -- connections to workers

    def dial(self, member: Member, exchange: Exchange) -> None:
        """Open a connection to a worker for an exchange."""
        self.admission.upstreams += 1
        self.counters.upstreams += 1

        def done(stream: Stream | None, error: int) -> None:
            if stream is None:
                self.admission.upstreams -= 1
                self.counters.upstreams -= 1
                exchange.dialing = None
                exchange.connect_failed(why(error), blamed(error))
            else:
                self.counters.worker_connections[member.slot] += 1
                link = WorkerConnection(member, exchange, self._link_lost)
                exchange.dialing = link
                adopt(self.loop, link, stream)

        dialing = dial(self.loop, self.addresses[member.slot], done)
        if dialing is not None:
            exchange.dialing = dialing

    def stop_dialing(self, dialing: Dialing | WorkerConnection) -> None:
        """Nobody waits for this connection any more."""
        dialing.cancel()
        if isinstance(dialing, Dialing):
            # One that stands already is counted when it is lost.
            self.admission.upstreams -= 1
            self.counters.upstreams -= 1

    def keep(self, link: WorkerConnection) -> None:
        """Put a connection back for the next exchange."""
        idle = self.idle[link.member.slot]
        if len(idle) >= _MAX_IDLE or self.stopping or link.member.standing is not _UP:
            link.transport.abort()
            return
        link.transport.resume_reading()
        link.idle_since = self.deadlines.now
        idle.append(link)

    def _link_lost(self, link: WorkerConnection) -> None:
        self.admission.upstreams -= 1
        self.counters.upstreams -= 1
        if link.exchange is None:
            idle = self.idle[link.member.slot]
            if link in idle:
                idle.remove(link)

    # -- what happens to everybody

    def _changed(self, member: Member, reason: str) -> None:
        self._rotated(member, reason)
        idle = self.idle[member.slot]
        if member.standing is not Standing.UP:
            while idle:
                idle.pop().transport.close()
        elif self.waiting:
            self.loop.call_soon(self._serve_waiting)

    def _serve_waiting(self) -> None:
        """Let those who wait try again; who finds nobody goes to the end of the queue."""
        for _ in range(len(self.waiting) if self.pool.in_rotation else 0):
            waiting = next(iter(self.waiting), None)
            if waiting is None or (self.delegate is not None and not self.delegate.has_room):
                return
            del self.waiting[waiting]
            waiting.dispatch()

    def tick(self, now: float) -> None:
        """Four times a second: what is due, whoever it concerns."""
        self.pool.tick(now)
        if self.delegate is not None:
            self.delegate.tick(now)
        self._serve_waiting()
        self._lines = 0
        self._wall = time() - now
        if self.log is not None:
            self.log.flush()
        for idle in self.idle.values():
            while idle and idle[0].idle_since + IDLE_S < now:
                idle.popleft().transport.close()
        if self._has_room():
            self._said_full = False
            for acceptor in self.acceptors:
                acceptor.resume()

    def drain(self) -> None:
        """Accept no more; end what is idle; let the rest finish."""
        for acceptor in self.acceptors:
            acceptor.drain()
        self.stopping = True
        for client in list(self.clients):
            client.stop()

    # -- telling

    def count(self, exchange: Exchange, member: Member | None, total_s: float, ended: str) -> None:
        """Count and log an exchange that has ended."""
        line = exchange.line
        slot = FRONT_SLOT if member is None else member.slot
        self.counters.requests[_LABELS.get(line.method, OTHER), exchange.status, slot] += 1
        self.counters.total.observe(total_s)
        if self.log is not None:
            self.log.add(
                (
                    monotonic() + self._wall, exchange.client.address, line.method, line.target,
                    "HTTP/1.1" if line.minor else "HTTP/1.0", exchange.status, exchange.sent,
                    exchange.received, self._worker(member), exchange.connect_s,
                    exchange.first_byte_s, total_s, exchange.retries,
                    exchange.request_id.decode("latin-1"), ended, exchange.prepared.out,
                )
            )  # fmt: skip

    def refused(self, client: ClientConnection, fault: Fault, reason: str) -> None:
        """Count and log what never became an exchange."""
        self.counters.errors[fault.kind] += 1
        self.counters.requests[OTHER, fault.status, FRONT_SLOT] += 1
        self._say(
            logging.INFO,
            "%s: refused %s with %d: %s",
            self.config.name,
            client.address,
            fault.status,
            reason,
        )
        if self.log is not None:
            self.log.add(
                (
                    monotonic() + self._wall, client.address, "", "", "", fault.status,
                    len(fault.text) + 1, 0, "", None, None, 0.0, 0, "", fault.kind, b"",
                )
            )  # fmt: skip

    def log_fault(
        self, exchange: Exchange, fault: Fault, reason: str, member: Member | None
    ) -> None:
        """Say why an exchange, or one try of it, failed."""
        level = logging.INFO if fault.side is Side.CLIENT else logging.WARNING
        worker = self._worker(member) or self.config.name
        self._say(
            level,
            "%s: %s %s from %s: %s%s",
            worker,
            exchange.line.method.decode(),
            exchange.line.target[:200].decode(),
            exchange.client.address,
            f"{fault.status} {fault.text}",
            f" ({reason})" if reason else "",
        )

    def log_worker_fault(self, member: Member, fault: Fault, reason: str) -> None:
        """Say why a worker could not be used."""
        self._say(logging.WARNING, "%s: %s (%s)", self._worker(member), fault.text, reason)

    def next_request_id(self) -> bytes:
        """Unique on this host and in this process; 32 hexadecimal digits."""
        return b"%b%012x" % (self._id_prefix, next(self._ids))

    def _say(self, level: int, message: str, *args: object) -> None:
        self._lines += 1
        if self._lines < _LINES_A_TICK:
            _log.log(level, message, *args)
        elif self._lines == _LINES_A_TICK:
            _log.warning("%s: more faults follow; the metrics count them all", self.config.name)

    def _worker(self, member: Member | None) -> str:
        return "" if member is None else f"{self.config.name}/{member.slot}"
