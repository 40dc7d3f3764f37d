"""The error log of one service, and its request ids.

Owns: the words of log lines about faults, their rate limit, the request ids that proxy and worker
log alike, and the wall clock of access log lines. Must not know: why a fault happened, and what
follows from it. It takes plain values and imports no kind of connection. Exchanges and sessions
count themselves and write their own line of the access log.
"""

import logging
from itertools import count
from os import urandom
from time import monotonic, time  # noqa: TID251 — a log line tells the time of day
from typing import TYPE_CHECKING, Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import Fault, Side
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.metrics import OTHER, REJECTIONS, ServiceCounters
from penstock_worker.telemetry.access_log import AccessLog

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINES_A_TICK: Final = 10
"""Log lines about faults; more are only counted. An outage must not fill a disk."""

_ID_ENDS: Final = tuple(b"%03x" % number for number in range(1 << 12))

_log = logging.getLogger("penstock.proxy")


class ErrorLog:
    """The error log of one service."""

    __slots__ = (
        "_counters",
        "_id_blocks",
        "_id_ends",
        "_id_prefix",
        "_id_start",
        "_lines",
        "_names",
        "_service",
        "access_log",
        "dropped_before",
        "wall_offset",
    )

    def __init__(self, service: str, counters: ServiceCounters, log: AccessLog | None) -> None:
        self._service = service
        self._names: dict[int, str] = {}
        """By slot: how log lines name a worker."""
        self._counters = counters
        self.access_log = log
        """It can be exchanged at any time: an entry goes to the log of its moment."""
        self.dropped_before = 0
        """Lines that the logs before this one could not write."""
        self._id_prefix = urandom(10).hex().encode()
        self._id_start = b""
        self._id_blocks = count()
        self._id_ends: Iterator[bytes] = iter(())
        self._lines = 0
        self.wall_offset = 0.0
        """Seconds from the monotonic clock to the wall clock, for the access log."""

    def tick(self, now: float) -> None:
        """Called four times a second: flush the access log, and allow more error lines."""
        self._lines = 0
        self.wall_offset = time() - now
        if self.access_log is not None:
            self.access_log.flush()

    @property
    def dropped(self) -> int:
        """Lines of the access log that could not be written."""
        log = self.access_log
        return self.dropped_before + (0 if log is None else log.dropped)

    def next_request_id(self) -> bytes:
        """Unique on this host and in this process; 32 hexadecimal digits."""
        end = next(self._id_ends, None)
        if end is None:
            # To format a number for each would take three times as long.
            self._id_start = b"%b%09x" % (self._id_prefix, next(self._id_blocks))
            self._id_ends = iter(_ID_ENDS)
            end = next(self._id_ends)
        return self._id_start + end

    def request_refused(
        self, address: str, fault: Fault, reason: str, tls: str, *, sent: int
    ) -> None:
        """Count and log a request that never became an exchange; `tls`: the access log's field.
        `sent`: bytes of the response's body."""
        self._counters.errors[fault.kind] += 1
        self._counters.requests[OTHER, fault.status, None] += 1
        self._log_limited(
            logging.INFO,
            "%s: refused %s with %d: %s",
            self._service,
            address,
            fault.status,
            reason or fault.text,
        )
        if self.access_log is not None:
            self.access_log.add(
                monotonic() + self.wall_offset, address, "", "", "", fault.status,
                sent, 0, "", None, None, 0.0, 0, "", fault.kind, b"", tls,
            )  # fmt: skip

    def connection_rejected(self, address: str, fault: Fault, reason: str) -> None:
        """Count and log a connection that was closed before a request was read from it."""
        counts = self._counters
        (counts.rejected if fault.kind in REJECTIONS else counts.errors)[fault.kind] += 1
        self._log_limited(
            logging.INFO,
            "%s: closed a connection from %s: %s",
            self._service,
            address or "a unix socket",
            reason,
        )

    def request_failed(
        self,
        line: RequestLine,
        address: str,
        fault: Fault,
        reason: str,
        member: Member | None,
        *,
        cut: bool = False,
    ) -> None:
        """Log why a request from `address` failed. `member` had it; None: no worker. `cut`: its
        response had begun, so nobody was sent the status of the fault."""
        level = logging.INFO if fault.side is Side.CLIENT else logging.WARNING
        worker = self.worker_name(member) or self._service
        self._log_limited(
            level,
            "%s: %s %s from %s: %s%s",
            worker,
            line.method.decode(),
            line.target[:200].decode(),
            address,
            _outcome(fault, cut=cut),
            f" ({reason})" if reason else "",
        )

    def attempt_failed(
        self,
        line: RequestLine,
        address: str,
        fault: Fault,
        reason: str,
        member: Member,
        then: Member | None,
    ) -> None:
        """Log why one attempt of a request failed, which goes on: `then` is asked next, or the
        request waits for a worker."""
        self._log_limited(
            logging.WARNING,
            "%s: %s %s from %s: %s%s; %s",
            self.worker_name(member),
            line.method.decode(),
            line.target[:200].decode(),
            address,
            fault.text,
            f" ({reason})" if reason else "",
            self._next_step(then),
        )

    def _next_step(self, then: Member | None) -> str:
        return f"tried again on {self.worker_name(then)}" if then else "it waits for a worker"

    def worker_name(self, member: Member | None) -> str:
        """A worker's name in log lines; empty for None."""
        if member is None:
            return ""
        slot = member.slot
        # A line looks it up: a text that was just made would have to be hashed each time.
        return self._names.get(slot) or self._names.setdefault(slot, f"{self._service}/{slot}")

    def connect_failed(
        self, member: Member, fault: Fault, reason: str, then: Member | None
    ) -> None:
        """Log why a connection could not be relayed to a worker. It goes on to `then`, or waits."""
        self._log_limited(
            logging.WARNING,
            "%s: %s%s; %s",
            self.worker_name(member),
            fault.text,
            f" ({reason})" if reason else "",
            self._next_step(then),
        )

    def worker_failed(self, member: Member, fault: Fault, reason: str) -> None:
        """Log why a worker could not be used."""
        self._log_limited(
            logging.WARNING, "%s: %s (%s)", self.worker_name(member), fault.text, reason
        )

    def _log_limited(self, level: int, message: str, *args: object) -> None:
        self._lines += 1
        if self._lines < _LINES_A_TICK:
            _log.log(level, message, *args)
        elif self._lines == _LINES_A_TICK:
            _log.warning("%s: more faults follow; the metrics count them all", self._service)


def _outcome(fault: Fault, *, cut: bool) -> str:
    if not fault.status:
        return fault.kind
    return f"response cut off: {fault.text}" if cut else f"{fault.status} {fault.text}"
