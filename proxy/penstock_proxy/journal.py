"""What is told of one service: an exchange's counters, its line in the access log, and why
something failed.

Owns: the words, how many of them a tick may bring, and request ids, by which a line here is
found again at a worker. Must not know: why anything happened, nor what happens next. Every
method is called by whom it happened to, once; on the path of a request that is `count`,
which adds to plain integers and appends one tuple.
"""

import logging
from itertools import count
from os import urandom
from time import monotonic, time  # noqa: TID251 — a log line tells the time of day
from typing import TYPE_CHECKING, Final

from penstock_proxy.errors import Fault, Side
from penstock_proxy.metrics import FRONT_SLOT, METHODS, OTHER, REJECTIONS, ServiceCounters
from penstock_proxy.pool import Member
from penstock_worker.access_log import AccessLog

if TYPE_CHECKING:
    from penstock_proxy.client import ClientConnection
    from penstock_proxy.exchange import Exchange
    from penstock_proxy.relay import Relay

_LINES_A_TICK: Final = 10
"""Log lines about faults; the rest is counted. An outage must not fill a disk."""
_LABELS: Final = {method.encode(): method for method in METHODS}

_log = logging.getLogger("penstock.front")


class Journal:
    """The telling of one service."""

    __slots__ = ("_counters", "_id_prefix", "_ids", "_lines", "_log", "_service", "_wall")

    def __init__(self, service: str, counters: ServiceCounters, log: AccessLog | None) -> None:
        self._service = service
        self._counters = counters
        self._log = log
        self._id_prefix = urandom(10).hex().encode()
        self._ids = count()
        self._lines = 0
        self._wall = 0.0
        """Wall clock less monotonic clock: only the log tells the time of day."""

    def tick(self, now: float) -> None:
        """Four times a second: hand over what was told, and allow some more."""
        self._lines = 0
        self._wall = time() - now
        if self._log is not None:
            self._log.flush()

    def next_request_id(self) -> bytes:
        """Unique on this host and in this process; 32 hexadecimal digits."""
        return b"%b%012x" % (self._id_prefix, next(self._ids))

    def count(
        self, exchange: "Exchange", member: Member | None, total_s: float, ended: str
    ) -> None:
        """Count and log an exchange that has ended."""
        line = exchange.line
        counters = self._counters
        slot = FRONT_SLOT if member is None else member.slot
        counters.requests[_LABELS.get(line.method, OTHER), exchange.status, slot] += 1
        counters.total.observe(total_s)
        if self._log is not None:
            self._log.add(
                (
                    monotonic() + self._wall, exchange.client.address, line.method, line.target,
                    "HTTP/1.1" if line.minor else "HTTP/1.0", exchange.status, exchange.sent,
                    exchange.received, self._worker(member), exchange.connect_s,
                    exchange.first_byte_s, total_s, exchange.retries,
                    exchange.request_id.decode("latin-1"), ended, exchange.prepared.out,
                    exchange.client.tls,
                )
            )  # fmt: skip

    def relayed(self, relay: "Relay", ended: str, received: int, sent: int) -> None:
        """Count and log a relayed connection that has ended."""
        total_s = monotonic() - relay.started
        self._counters.total.observe(total_s)
        if self._log is not None:
            self._log.add(
                (
                    monotonic() + self._wall, relay.address, "", "", "", 0, sent, received,
                    self._worker(relay.member), relay.connect_s, None, total_s,
                    relay.retries, "", ended, b"", relay.tls,
                )
            )  # fmt: skip

    def refused(self, client: "ClientConnection", fault: Fault, reason: str) -> None:
        """Count and log what never became an exchange."""
        self._counters.errors[fault.kind] += 1
        self._counters.requests[OTHER, fault.status, FRONT_SLOT] += 1
        self._say(
            logging.INFO,
            "%s: refused %s with %d: %s",
            self._service,
            client.address,
            fault.status,
            reason or fault.text,
        )
        if self._log is not None:
            self._log.add(
                (
                    monotonic() + self._wall, client.address, "", "", "", fault.status,
                    len(fault.text) + 1, 0, "", None, None, 0.0, 0, "", fault.kind, b"",
                    client.tls,
                )
            )  # fmt: skip

    def turned_away(self, address: str, fault: Fault, reason: str) -> None:
        """Count and say whose connection was closed before anything was read from it."""
        counts = self._counters
        (counts.rejected if fault.kind in REJECTIONS else counts.errors)[fault.kind] += 1
        self._say(
            logging.INFO,
            "%s: closed a connection from %s: %s",
            self._service,
            address or "a unix socket",
            reason,
        )

    def fault(self, exchange: "Exchange", fault: Fault, reason: str, member: Member | None) -> None:
        """Say why an exchange, or one try of it, failed."""
        level = logging.INFO if fault.side is Side.CLIENT else logging.WARNING
        worker = self._worker(member) or self._service
        self._say(
            level,
            "%s: %s %s from %s: %s%s",
            worker,
            exchange.line.method.decode(),
            exchange.line.target[:200].decode(),
            exchange.client.address,
            f"{fault.status} {fault.text}" if fault.status else fault.kind,
            f" ({reason})" if reason else "",
        )

    def worker_fault(self, member: Member, fault: Fault, reason: str) -> None:
        """Say why a worker could not be used."""
        self._say(logging.WARNING, "%s: %s (%s)", self._worker(member), fault.text, reason)

    def _say(self, level: int, message: str, *args: object) -> None:
        self._lines += 1
        if self._lines < _LINES_A_TICK:
            _log.log(level, message, *args)
        elif self._lines == _LINES_A_TICK:
            _log.warning("%s: more faults follow; the metrics count them all", self._service)

    def _worker(self, member: Member | None) -> str:
        return "" if member is None else f"{self._service}/{member.slot}"
