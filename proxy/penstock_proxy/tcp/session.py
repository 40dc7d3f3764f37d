"""Mode tcp: one client connection, from accept to the access log.

Owns: the choice of a worker, the connect and its timeout, the retry with the next worker, and
counting and logging at the end. Between connect and end a `duplex` copies the bytes. The client
is not read before its worker is connected: what it sends first waits in the kernel.
"""

from time import monotonic
from typing import Any

from penstock_proxy.balancing.pool import Member
from penstock_proxy.balancing.retry_budget import MAX_TRIED, Attempts
from penstock_proxy.errors import (
    BROKEN_OFF,
    CONNECT_TIMEOUT,
    QUEUE_FULL,
    REJECTED,
    STOP_TIMEOUT,
    Fault,
    Side,
)
from penstock_proxy.net.connector import Connecting, connect, error_text, fault_of
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.net.timer_wheel import NEVER, HasDeadline
from penstock_proxy.service.context import ServiceContext
from penstock_proxy.tcp.duplex import NO_FAULT, ClientHalf
from penstock_proxy.tls.transport import TlsConnection
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import peer_address


class Session(HasDeadline):
    """One client connection in mode tcp."""

    __slots__ = (
        "_attempts",
        "_client",
        "_connecting",
        "address",
        "connect_s",
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
        """`proxy_header`: sent to the worker before the client's bytes. `tls`: the TLS fields of
        the access log."""
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
        self._client: Stream | TlsConnection | None = sock
        self._connecting: Connecting | None = None
        self._attempts: Attempts | None = None
        """The tries that failed; made with the first of them."""

    def start(self) -> None:
        """Choose a worker, or join the queue if others wait already."""
        self.service.relays[self] = self
        if self.service.queue:
            self._wait()
        else:
            self.dispatch()

    def dispatch(self) -> None:
        """Choose a worker and connect to it; wait if there is none."""
        member = self._pick()
        if member is None:
            self._wait()
        else:
            self._connect_to(member)

    def _pick(self) -> Member | None:
        attempts, pool = self._attempts, self.service.pool
        if attempts is None:
            return pool.pick(self.address)
        return pool.pick(self.address, attempts.tried) if len(attempts.tried) < MAX_TRIED else None

    def _connect_to(self, member: Member) -> None:
        service = self.service
        self.member = member
        member.active += 1
        service.fd_budget.upstreams += 1
        service.counters.upstreams += 1
        address = service.addresses[member.number]
        connecting = connect(service.loop, address, self._connected, self.proxy_header)
        # None may also mean that a refusal has called this again for the next worker.
        if connecting is not None:
            self._connecting = connecting
            service.timers.arm(self, monotonic() + service.timeouts.connect)

    def _connected(self, sock: Stream | None, error: int) -> None:
        self._connecting = None
        service = self.service
        if sock is None:
            self._attempt_failed(fault_of(error), error_text(error))
            return
        member = self.member
        assert member is not None
        assert self._client is not None
        service.timers.disarm(self)
        self.connect_s = monotonic() - self.started
        service.counters.connect.observe(self.connect_s)
        service.counters.worker_connections[member] += 1
        if member.consecutive_failures:
            service.pool.succeeded(member)
        half = ClientHalf(service.reactor, service.counters, service.timers, service.timeouts, self)
        service.relays[self] = half
        client, self._client = self._client, None
        # The worker's half first: it must be there before the client's first byte.
        adopt(service.reactor, half.worker, sock, service.config.limits.buffer)
        if isinstance(client, Stream):
            adopt(service.reactor, half, client, service.config.limits.buffer)
        else:
            client.attach(half)

    def _attempt_failed(self, fault: Fault, reason: str) -> None:
        """Try the next worker, or wait for one: no worker can have read anything."""
        service, member = self.service, self._release_member()
        self.member = None
        if fault.side is Side.WORKER:
            service.pool.failed(member, monotonic())
        service.counters.errors[fault.kind] += 1
        attempts = self._attempts = self._attempts or Attempts()
        attempts.failed(member, fault)
        may_retry = "connect" in service.config.retries.on
        another = self._pick() if may_retry else None
        if another is None and not (may_retry and self._waits_for_a_round(attempts)):
            service.error_log.worker_failed(member, fault, reason)
            self._close(fault)
            return
        service.error_log.connect_failed(member, fault, reason, another)
        self.retries += 1
        service.counters.retries += 1
        if another is not None:
            self._connect_to(another)

    def _waits_for_a_round(self, attempts: Attempts) -> bool:
        """All workers were tried: wait to try them again, which is paid from the budget."""
        service = self.service
        wait_s = service.enqueue(self, self.dispatch, self.started)
        if not isinstance(wait_s, float):
            return False
        if not service.retry_budget.take(monotonic()):
            service.queue.remove(self)
            service.counters.retries_denied += 1
            return False
        attempts.tried = ()
        service.timers.arm(self, monotonic() + wait_s)
        return True

    def _release_member(self) -> Member:
        """The connection to the worker is closed, or was never made."""
        service, member = self.service, self.member
        assert member is not None
        service.fd_budget.upstreams -= 1
        service.counters.upstreams -= 1
        member.active -= 1
        if member.is_full or member.is_ordered:
            service.release(member)
        return member

    def _wait(self) -> None:
        service = self.service
        wait_s = service.enqueue(self, self.dispatch, self.started)
        if isinstance(wait_s, float):
            service.timers.arm(self, monotonic() + wait_s)
        else:
            self._close(wait_s if wait_s is QUEUE_FULL else self._last_fault())

    def _last_fault(self) -> Fault:
        """The fault of the last try; if there was none, why no worker could be found."""
        attempts = self._attempts
        return self.service.no_worker() if attempts is None else attempts.last_fault

    def expired(self, now: float) -> None:
        if self in self.service.queue:
            self.service.queue.remove(self)
            self._close(self._last_fault())
        elif self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
            self._attempt_failed(CONNECT_TIMEOUT, "")

    def cut(self) -> bool:
        """The time to finish is over, and no worker is connected yet: close the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
            self._release_member()
        self.service.queue.remove(self)
        self.service.counters.errors[STOP_TIMEOUT.kind] += 1
        self._close(STOP_TIMEOUT)
        return True

    def _close(self, fault: Fault) -> None:
        """Close the client's connection, as no worker serves it; TCP has no way to say why."""
        service = self.service
        service.timers.disarm(self)
        if fault in REJECTED:
            service.counters.rejected[fault.kind] += 1
        else:
            service.counters.broken_off += 1
        assert self._client is not None
        if isinstance(self._client, Stream):
            self._client.close()
        else:
            self._client.break_off()
        self._record(fault.kind, 0, 0)

    def duplex_closed(self, half: ClientHalf) -> None:
        """Both connections are closed."""
        self._release_member()
        service = self.service
        if half.outcome != NO_FAULT:
            service.counters.errors[half.outcome] += 1
            service.counters.broken_off += half.outcome in BROKEN_OFF
        self._record(half.outcome, half.received, half.sent)

    def _record(self, termination: str, received: int, sent: int) -> None:
        """Count and log the connection; called once, at its end."""
        service = self.service
        total_s = monotonic() - self.started
        service.relays.pop(self, None)
        service.client_closed(self.address)
        service.counters.durations[self.member].observe(total_s)
        log = service.error_log
        if log.access_log is not None:
            log.access_log.add(
                monotonic() + log.wall_offset, self.address, "", "", "", 0, sent, received,
                log.worker_name(self.member), self.connect_s, None, total_s,
                self.retries, "", termination, b"", self.tls,
            )  # fmt: skip
