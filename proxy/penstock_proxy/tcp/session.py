"""Delivery tcp until both ends stand: from an accepted connection to a pump.

Owns: the choice of a worker for one connection, the connect and its time-out, the next
worker on refusal, and the account when the pump is done. The client is not read before
its worker is there: what it sends first waits in the kernel, in nobody's memory.
"""

from time import monotonic
from typing import Any

from penstock_proxy.balancing.pool import Member
from penstock_proxy.balancing.retry_budget import MAX_RETRIES, Attempts
from penstock_proxy.errors import CONNECT_TIMEOUT, QUEUE_FULL, REJECTED, Fault, Side
from penstock_proxy.net.connector import Connecting, dial, fault_of, why
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.net.timer_wheel import NEVER
from penstock_proxy.service.context import ServiceContext
from penstock_proxy.tcp.duplex import OK, ClientEnd
from penstock_proxy.tls.transport import TlsConnection
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import peer_address


class Session:
    """One client connection on its way to a worker, and what became of it."""

    __slots__ = (
        "_attempts",
        "_connecting",
        "_sock",
        "address",
        "bucket",
        "connect_s",
        "deadline",
        "member",
        "proxy_header",
        "retries",
        "service",
        "started",
        "tls",
    )

    def __init__(
        self,
        service: ServiceContext,
        sock: Stream | TlsConnection,
        peer: Any,
        proxy_header: bytes = b"",
        tls: str = "",
    ) -> None:
        """`proxy_header`: what the worker is told first, before the client's own bytes. `tls`: what
        the access log says of it."""
        self.service = service
        self.tls = tls
        self.proxy_header = proxy_header
        self.address = peer_address(peer)
        self.started = monotonic()
        self.connect_s: float | None = None
        self.member: Member | None = None
        self.retries = 0
        self.deadline = NEVER
        self.bucket = NEVER
        self._sock: Stream | TlsConnection | None = sock
        self._connecting: Connecting | None = None
        self._attempts: Attempts | None = None
        """Since the first one has failed."""

    def start(self) -> None:
        """Choose a worker, but after those who wait for one."""
        if self.service.queue:
            self._wait()
        else:
            self.dispatch()

    def dispatch(self) -> None:
        """Choose a worker and connect to it; wait if there is none."""
        service, attempts = self.service, self._attempts
        member = service.pool.pick(self.address, () if attempts is None else attempts.tried)
        if member is None:
            self._wait()
            return
        self.member = member
        member.active += 1
        service.fd_budget.upstreams += 1
        service.counters.upstreams += 1
        address = service.addresses[member.slot]
        connecting = dial(service.loop, address, self._connected, self.proxy_header)
        # None may also mean that a refusal has led here again, on to the next worker.
        if connecting is not None:
            self._connecting = connecting
            service.timers.arm(self, monotonic() + service.timeouts.connect)

    def _connected(self, sock: Stream | None, error: int) -> None:
        self._connecting = None
        service = self.service
        if sock is None:
            self._failed(fault_of(error), why(error))
            return
        member = self.member
        assert member is not None
        assert self._sock is not None
        service.timers.disarm(self)
        self.connect_s = monotonic() - self.started
        service.counters.connect.observe(self.connect_s)
        service.counters.worker_connections[member.slot] += 1
        if member.consecutive_failures:
            service.pool.succeeded(member)
        half = ClientEnd(
            service.loop, service.counters, service.timers, service.timeouts.tunnel, self
        )
        client, self._sock = self._sock, None
        # The worker's half first: it must stand before the client's first byte.
        adopt(service.reactor, half.worker, sock, service.config.limits.buffer)
        if isinstance(client, Stream):
            adopt(service.reactor, half, client, service.config.limits.buffer)
        else:
            client.carry(half)

    def _failed(self, fault: Fault, reason: str) -> None:
        service, member = self.service, self._release_member()
        self.member = None
        if fault.side is Side.WORKER:
            service.pool.failed(member, monotonic())
        service.counters.errors[fault.kind] += 1
        service.error_log.worker_failed(member, fault, reason)
        attempts = self._attempts = self._attempts or Attempts()
        attempts.failed(member, fault)
        if self.retries >= MAX_RETRIES:
            self._give_up(fault)
            return
        self.retries += 1
        service.counters.retries += 1
        self.dispatch()

    def _release_member(self) -> Member:
        """It has one connection less, and so have we."""
        service, member = self.service, self.member
        assert member is not None
        service.fd_budget.upstreams -= 1
        service.counters.upstreams -= 1
        member.active -= 1
        if member.is_full:
            service.release(member)
        return member

    def _wait(self) -> None:
        service, attempts = self.service, self._attempts
        if attempts is not None and not attempts.another_round(service.retry_budget, monotonic()):
            service.counters.retries_denied += 1
            self._give_up(attempts.last_fault)
            return
        patience = service.enqueue(self, self.dispatch, self.started)
        if isinstance(patience, float):
            service.timers.arm(self, monotonic() + patience)
        else:
            self._give_up(patience if patience is QUEUE_FULL else self._why())

    def _why(self) -> Fault:
        """What its last try ended with, if there was one."""
        attempts = self._attempts
        return self.service.no_worker() if attempts is None else attempts.last_fault

    def expired(self, now: float) -> None:
        if self in self.service.queue:
            self.service.queue.remove(self)
            self._give_up(self._why())
        elif self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
            self._failed(CONNECT_TIMEOUT, "")

    def _give_up(self, fault: Fault) -> None:
        """TCP has no words: the connection is closed."""
        service = self.service
        service.timers.disarm(self)
        if fault in REJECTED:
            service.counters.rejected[fault.kind] += 1
        assert self._sock is not None
        if isinstance(self._sock, Stream):
            self._sock.close()
        else:
            self._sock.break_off()
        self._end(fault.kind, 0, 0)

    def duplex_closed(self, half: ClientEnd) -> None:
        """Both connections are gone."""
        self._release_member()
        service = self.service
        if half.outcome != OK:
            service.counters.errors[half.outcome] += 1
        self._end(half.outcome, half.received, half.sent)

    def _end(self, ended: str, received: int, sent: int) -> None:
        """Count and log the connection: once, when it has ended."""
        service = self.service
        total_s = monotonic() - self.started
        service.client_closed(self.address)
        service.counters.total.observe(total_s)
        log = service.error_log
        if log.access_log is not None:
            log.access_log.add(
                (
                    monotonic() + log.wall_offset, self.address, "", "", "", 0, sent, received,
                    log.worker_name(self.member), self.connect_s, None, total_s,
                    self.retries, "", ended, b"", self.tls,
                )
            )  # fmt: skip
