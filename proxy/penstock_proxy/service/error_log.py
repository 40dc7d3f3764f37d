"""What is said of one service's faults: log lines, and the ids by which requests are found.

Owns: the words of a fault, how many lines a tick may bring, request ids, by which a line here is
found again at a worker, and the wall clock of access log lines. Must not know: why anything
happened, nor what happens next. Who ends something counts it and writes its line in the access
log; what is said here takes values only, so that this stands below all connections.
"""

import logging
from itertools import count
from os import urandom
from time import monotonic, time  # noqa: TID251 — a log line tells the time of day
from typing import Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import Fault, Side
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.metrics import OTHER, PROXY_SLOT, REJECTIONS, ServiceCounters
from penstock_worker.telemetry.access_log import AccessLog

_LINES_A_TICK: Final = 10
"""Log lines about faults; the rest is counted. An outage must not fill a disk."""

_log = logging.getLogger("penstock.proxy")


class ErrorLog:
    """Of one service."""

    __slots__ = ("_counters", "_id_prefix", "_ids", "_lines", "_service", "access_log", "wall")

    def __init__(self, service: str, counters: ServiceCounters, log: AccessLog | None) -> None:
        self._service = service
        self._counters = counters
        self.access_log = log
        self._id_prefix = urandom(10).hex().encode()
        self._ids = count()
        self._lines = 0
        self.wall = 0.0
        """Seconds from the monotonic clock to the wall clock; only the access log needs them."""

    def tick(self, now: float) -> None:
        """Four times a second: hand over the lines so far, and allow some more."""
        self._lines = 0
        self.wall = time() - now
        if self.access_log is not None:
            self.access_log.flush()

    def next_request_id(self) -> bytes:
        """Unique on this host and in this process; 32 hexadecimal digits."""
        return b"%b%012x" % (self._id_prefix, next(self._ids))

    def refused(self, address: str, fault: Fault, reason: str, tls: str) -> None:
        """Count and log what never became an exchange; `tls` is what the access log says of it."""
        self._counters.errors[fault.kind] += 1
        self._counters.requests[OTHER, fault.status, PROXY_SLOT] += 1
        self._say(
            logging.INFO,
            "%s: refused %s with %d: %s",
            self._service,
            address,
            fault.status,
            reason or fault.text,
        )
        if self.access_log is not None:
            self.access_log.add(
                (
                    monotonic() + self.wall, address, "", "", "", fault.status,
                    len(fault.text) + 1, 0, "", None, None, 0.0, 0, "", fault.kind, b"",
                    tls,
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

    def fault(
        self,
        line: RequestLine,
        address: str,
        fault: Fault,
        reason: str,
        member: Member | None,
    ) -> None:
        """Say why a request from `address`, or one try of it with `member`, failed."""
        level = logging.INFO if fault.side is Side.CLIENT else logging.WARNING
        worker = self.worker_name(member) or self._service
        self._say(
            level,
            "%s: %s %s from %s: %s%s",
            worker,
            line.method.decode(),
            line.target[:200].decode(),
            address,
            f"{fault.status} {fault.text}" if fault.status else fault.kind,
            f" ({reason})" if reason else "",
        )

    def worker_name(self, member: Member | None) -> str:
        """As log lines name a worker; empty: no worker was asked."""
        return "" if member is None else f"{self._service}/{member.slot}"

    def worker_fault(self, member: Member, fault: Fault, reason: str) -> None:
        """Say why a worker could not be used."""
        self._say(logging.WARNING, "%s: %s (%s)", self.worker_name(member), fault.text, reason)

    def _say(self, level: int, message: str, *args: object) -> None:
        self._lines += 1
        if self._lines < _LINES_A_TICK:
            _log.log(level, message, *args)
        elif self._lines == _LINES_A_TICK:
            _log.warning("%s: more faults follow; the metrics count them all", self._service)
