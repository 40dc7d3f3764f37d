"""The metrics of a proxy: one table of their names, and the counters behind them.

Owns the name, help text and labels of everything that a proxy measures, and the counters of
one service. Must not know: who reads them. `snapshot` makes plain JSON that is sent over the
channel, and the supervisor renders it with the same TABLE, so each metric is named in one
place only.

Why not prometheus_client: its `inc()` costs 0.25 µs and `labels().inc()` 1 µs, and a whole
request takes 20 µs. Adding to an attribute that is an int costs 0.02 µs. No I/O, no clock.

See docs/decisions/0004-plain-integer-counters.md.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from penstock_proxy.errors import FAULTS
from penstock_worker.telemetry.counters import BUCKETS_S as BUCKETS_S
from penstock_worker.telemetry.counters import METHODS as METHODS
from penstock_worker.telemetry.counters import OTHER as OTHER
from penstock_worker.telemetry.counters import Histogram, code, flat
from penstock_worker.telemetry.counters import Series as Series
from penstock_worker.telemetry.counters import Value as Value

T = TypeVar("T")

_BATCH: Final = 128
"""Samples of a part: so many texts take a tenth of a millisecond."""

REJECTIONS: Final = (
    "queue_full",
    "queue_timeout",
    "no_worker",
    "max_connections",
    "no_descriptors",
    "client_limit",
    "proxy_header",
    "proxy_untrusted",
)
"""Why a connection or request was rejected. A client that connects while a proxy is full waits
in the listener's queue; it is counted here only when it has waited too long."""

PAUSES: Final = ("max_connections", "no_descriptors", "system")
"""Why a proxy does not accept: `max_connections`, its own descriptors, or the system's
descriptors and memory. Connections wait in the listener's queue meanwhile."""

HANDOFFS: Final = ("accepted", "requeued", "lost")
"""What becomes of a connection that is sent to a worker."""

HANDSHAKES: Final = (
    "ok",
    "resumed",
    "version",
    "cipher",
    "client_certificate",
    "refused",
    "failed",
    "gone",
    "timeout",
    "displaced",
    "not_tls",
)
"""How a TLS handshake ended. `version` and `cipher`: there is none that both sides support.
`client_certificate`: something is wrong with it. `refused`: by the client. `failed`: any other
error of OpenSSL. `gone`: the client closed. `timeout`: it took too long. `displaced`: it was
closed to make room for others. `not_tls`: the first bytes are no TLS."""

EVICTIONS: Final = ("idle", "no_request")
"""What a connection did that was ended to make room: it was between two requests, or its first
request had not come, or a later one only in part."""

CHECK_RESULTS: Final = ("ok", "failed", "timeout", "refused")

_KINDS: Final = frozenset(fault.kind for fault in FAULTS)

Kind = Literal["counter", "gauge", "histogram", "info"]


class Metric(NamedTuple):
    """One row of a table of metrics."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = BUCKETS_S
    """Upper bounds of a histogram's, without the last one, +Inf."""


TABLE: Final = (
    Metric("penstock_connections_total", "counter",
           "Client connections that were accepted.", ("service",)),
    Metric("penstock_connections_active", "gauge",
           "Client connections that are open now.", ("service",)),
    Metric("penstock_worker_connections_total", "counter",
           "Connections that a worker got: opened or handed over by the proxy, or accepted.",
           ("service", "slot")),
    Metric("penstock_connection_fds", "gauge",
           "Descriptors that proxies hold for client connections.", ("service",)),
    Metric("penstock_handoffs_total", "counter",
           "Connections that were sent to workers: accepted by the worker, requeued for "
           "another, or lost.", ("service", "result")),
    Metric("penstock_handoffs_in_flight", "gauge",
           "Connections that were sent to workers and not accepted yet.", ("service",)),
    Metric("penstock_requests_total", "counter",
           "Requests that ended; an empty slot means that the proxy answered itself.",
           ("service", "slot", "method", "code")),
    Metric("penstock_request_duration_seconds", "histogram",
           "Time to a worker's connection, to its first byte, and to the end.",
           ("service", "phase")),
    Metric("penstock_bytes_total", "counter",
           "Bytes received from and sent to clients.", ("service", "direction")),
    Metric("penstock_connection_errors_total", "counter",
           "Exchanges and relayed connections that failed, by kind of fault.",
           ("service", "kind")),
    Metric("penstock_broken_off_total", "counter",
           "Responses and relayed connections that ended early, and not by their clients.",
           ("service",)),
    Metric("penstock_rejected_total", "counter",
           "Connections and requests that were rejected.", ("service", "reason")),
    Metric("penstock_accepting", "gauge",
           "Proxies that accept connections now; 0: new connections wait in the queue.",
           ("service",)),
    Metric("penstock_accept_pauses_total", "counter",
           "Times that a proxy stopped accepting for a while, by reason.",
           ("service", "reason")),
    Metric("penstock_evicted_connections_total", "counter",
           "Client connections that were ended to make room for clients that waited, by state.",
           ("service", "state")),
    Metric("penstock_retries_total", "counter",
           "Requests and connections that were tried again with another worker.",
           ("service",)),
    Metric("penstock_tls_handshakes_total", "counter",
           "TLS handshakes with clients that ended, by result.", ("service", "result")),
    Metric("penstock_tls_handshakes_in_progress", "gauge",
           "TLS handshakes with clients that are not finished.", ("service",)),
    Metric("penstock_retries_denied_total", "counter",
           "Requests that failed because the retry budget was spent.", ("service",)),
    Metric("penstock_retries_exhausted_total", "counter",
           "Requests that failed because retries.attempts workers may have executed them.",
           ("service",)),
    Metric("penstock_stale_connections_total", "counter",
           "Requests that were sent again, because a kept connection to a worker had ended.",
           ("service",)),
    Metric("penstock_panic_mode", "gauge",
           "Proxies that use every living worker, because too few are in the rotation.",
           ("service",)),
    Metric("penstock_queue_length", "gauge",
           "Requests that wait for a worker now.", ("service",)),
    Metric("penstock_health_checks_total", "counter",
           "Active health checks.", ("service", "slot", "result")),
    Metric("penstock_health_check_duration_seconds", "histogram",
           "Time that an active health check took.", ("service",)),
    Metric("penstock_access_log_lines_dropped_total", "counter",
           "Lines of the access log that could not be written in time.", ("service",)),
)  # fmt: skip
"""Every metric that a proxy counts. Its state at the moment of the question, such as which worker
is in the rotation, is sent beside it, in `pools`."""


class Worker(Protocol):
    """Whom something is counted for: a member of the pool."""

    @property
    def slot(self) -> int:
        """The label that its counts are shown under."""


class RemovedWorkers(NamedTuple):
    """All workers of a slot that were removed, together."""

    slot: int


class ServiceCounters:
    """What one proxy counts for one service. The data path writes it, a scrape reads it.

    The counters start at zero in every proxy process: Prometheus detects such a reset.

    Workers are keys themselves, as a worker and its successor in the same slot must not be taken
    for each other where failures are compared. The slot is looked up only when it is shown.
    """

    __slots__ = (
        "accepting", "active", "broken_off", "check_seconds", "checks", "connect", "connections",
        "durations", "errors", "evicted", "first_byte", "handoffs", "handshakes",
        "handshakes_in_progress", "in_flight", "opened", "panic", "pauses", "queue", "received",
        "rejected", "requests", "retries", "retries_denied", "retries_exhausted", "sent", "stale",
        "upstreams",
        "worker_connections",
    )  # fmt: skip

    def __init__(self) -> None:  # noqa: PLR0915 — a list, and no steps
        self.connections = 0
        """Client connections accepted."""
        self.active = 0
        """Client connections whose descriptor is in this process."""
        self.upstreams = 0  # connections to workers that are open
        self.in_flight = 0
        """Client connections that were sent and not accepted yet."""
        self.opened = 0
        """Client connections that workers have accepted and that have not ended."""
        self.handoffs = dict.fromkeys(HANDOFFS, 0)
        """By result, of HANDOFFS."""
        self.worker_connections: defaultdict[Worker, int] = defaultdict(int)
        """By worker."""
        self.requests: defaultdict[tuple[str, int, Worker | None], int] = defaultdict(int)
        """By method (of METHODS, or OTHER), status (0: no response) and worker; None: the proxy
        answered itself."""
        self.connect = Histogram()
        self.first_byte = Histogram()
        self.durations: defaultdict[Worker | None, Histogram] = defaultdict(Histogram)
        """From the start to the end, by worker; None: of those that the proxy answered itself, and
        of workers that were removed."""
        self.received = self.sent = 0
        self.errors: defaultdict[str, int] = defaultdict(int, dict.fromkeys(_KINDS, 0))
        """By Fault.kind."""
        self.broken_off = 0
        """Of all `errors`, those that a client has seen as an answer without its end, or as the
        end of a connection."""
        self.rejected: defaultdict[str, int] = defaultdict(int, dict.fromkeys(REJECTIONS, 0))
        """By reason, of REJECTIONS."""
        self.handshakes: defaultdict[str, int] = defaultdict(int, dict.fromkeys(HANDSHAKES, 0))
        """By result, of HANDSHAKES."""
        self.handshakes_in_progress = 0
        """TLS handshakes in progress."""
        self.retries = self.retries_denied = self.retries_exhausted = self.stale = 0
        """`stale`: requests that were sent on a kept connection that had ended."""
        self.accepting = False
        """It accepts from its listeners."""
        self.pauses = dict.fromkeys(PAUSES, 0)
        """By reason, of PAUSES."""
        self.evicted = dict.fromkeys(EVICTIONS, 0)
        """By state, of EVICTIONS."""
        self.queue = self.panic = 0
        self.checks: defaultdict[tuple[int, str], int] = defaultdict(int)
        """By slot and result, of CHECK_RESULTS."""
        self.check_seconds = Histogram()

    def by_worker(self) -> defaultdict[Worker | None, int]:
        """Requests that ended, by their last worker."""
        ended: defaultdict[Worker | None, int] = defaultdict(int)
        for (_, _, worker), count in self.requests.items():
            ended[worker] += count
        return ended

    def ended(self) -> int:
        """How many requests, or relayed connections, have ended."""
        return sum(sum(histogram.counts) for histogram in self.durations.values())

    def total(self) -> Histogram:
        """Of all requests that ended, from the start to the end."""
        total = Histogram()
        histograms = self.durations.values()
        if histograms:
            by_bucket = zip(*(histogram.counts for histogram in histograms), strict=True)
            total.counts = [sum(counts) for counts in by_bucket]
            total.sum_s = sum(histogram.sum_s for histogram in histograms)
        return total

    def keep_only(self, workers: Collection[Worker]) -> None:
        """Add up, by slot, what all other workers were counted for: they were removed.

        What ends later of one that was removed is counted for it, until this is called again.
        """
        kept = frozenset(workers)
        for worker in [one for one in self.worker_connections if one not in kept]:
            count = self.worker_connections.pop(worker)
            self.worker_connections[RemovedWorkers(worker.slot)] += count
        for key in [key for key in self.requests if key[2] not in kept]:
            method, status, worker_ = key
            if worker_ is not None:
                count = self.requests.pop(key)
                self.requests[method, status, RemovedWorkers(worker_.slot)] += count
        for worker in [one for one in self.durations if one is not None and one not in kept]:
            self.durations[None].add(self.durations.pop(worker))


def snapshot(
    services: Mapping[str, ServiceCounters],
    *,
    fds: Mapping[str, int],
    log_dropped: Mapping[str, int],
    loop_lag: Sequence[float] = (),
    tasks: int = 0,
) -> dict[str, Any]:
    """The `metrics` of a proxy's answer to STATS, ready for JSON.

    `fds` is by kind (listener, client, upstream, pipe, channel, other), `log_dropped` by service,
    `tasks` and `loop_lag` (flat, see `LagHistogram`) of the event loop.
    """
    return {
        "fds": dict(fds),
        "loop_lag": list(loop_lag),
        "tasks": tasks,
        "services": {
            name: series(counters, log_dropped.get(name, 0)) for name, counters in services.items()
        },
    }


def merge(parts: Iterable[Series]) -> Series:
    """The sum of what several proxies counted for one service.

    All of TABLE can be added, the gauges too: each of them counts something.
    """
    merged: Series = {}
    for part in parts:
        for name, samples in part.items():
            into = merged.setdefault(name, {})
            for labels, value in samples.items():
                into[labels] = _plus(into[labels], value) if labels in into else value
    return merged


def _plus(left: Value, right: Value) -> Value:
    if isinstance(left, list) or isinstance(right, list):
        if not (isinstance(left, list) and isinstance(right, list)):
            raise TypeError("a histogram and a number cannot be added")
        return [a + b for a, b in zip(left, right, strict=True)]
    return left + right


def series(counters: ServiceCounters, dropped: int) -> Series:
    """What one proxy has counted for one service; `dropped`: lines of its access log."""
    return merge(series_parts(counters, dropped))


def series_parts(counters: ServiceCounters, dropped: int) -> Iterator[Series]:
    """The same in parts to be added up: there may be a thousand workers. What is counted while
    somebody goes through them may be in it or not."""
    yield _of_service(counters, dropped)
    for requests in _batches(counters.requests.items()):
        counts: defaultdict[str, Value] = defaultdict(int)
        for (method, status, worker), count in requests:
            slot = "" if worker is None else worker.slot
            counts[f"{slot} {method} {code(status)}"] += count  # type: ignore[operator]
        yield {"penstock_requests_total": dict(counts)}
    for connections in _batches(counters.worker_connections.items()):
        counts = defaultdict(int)
        for member, count in connections:
            counts[str(member.slot)] += count  # type: ignore[operator]
        yield {"penstock_worker_connections_total": dict(counts)}
    for checks in _batches(counters.checks.items()):
        yield {"penstock_health_checks_total": _checks(dict(checks))}


def _batches(items: Iterable[T]) -> Iterator[Sequence[T]]:
    whole = tuple(items)
    return (whole[at : at + _BATCH] for at in range(0, len(whole), _BATCH))


def _of_service(counters: ServiceCounters, dropped: int) -> Series:
    return {
        "penstock_connections_total": {"": counters.connections},
        "penstock_connections_active": {"": counters.active + counters.in_flight + counters.opened},
        "penstock_worker_connections_total": {},
        "penstock_connection_fds": {"": counters.active + counters.upstreams},
        "penstock_handoffs_total": dict(counters.handoffs),
        "penstock_handoffs_in_flight": {"": counters.in_flight},
        "penstock_requests_total": {},
        "penstock_request_duration_seconds": {
            "connect": flat(counters.connect),
            "first_byte": flat(counters.first_byte),
            "total": flat(counters.total()),
        },
        "penstock_bytes_total": {"received": counters.received, "sent": counters.sent},
        "penstock_connection_errors_total": _closed(counters.errors, _KINDS),
        "penstock_broken_off_total": {"": counters.broken_off},
        "penstock_rejected_total": _closed(counters.rejected, frozenset(REJECTIONS)),
        "penstock_accepting": {"": int(counters.accepting)},
        "penstock_accept_pauses_total": dict(counters.pauses),
        "penstock_evicted_connections_total": dict(counters.evicted),
        "penstock_retries_total": {"": counters.retries},
        "penstock_tls_handshakes_total": _closed(counters.handshakes, frozenset(HANDSHAKES)),
        "penstock_tls_handshakes_in_progress": {"": counters.handshakes_in_progress},
        "penstock_retries_denied_total": {"": counters.retries_denied},
        "penstock_retries_exhausted_total": {"": counters.retries_exhausted},
        "penstock_stale_connections_total": {"": counters.stale},
        "penstock_panic_mode": {"": counters.panic},
        "penstock_queue_length": {"": counters.queue},
        "penstock_health_checks_total": {},
        "penstock_health_check_duration_seconds": {"": flat(counters.check_seconds)},
        "penstock_access_log_lines_dropped_total": {"": dropped},
    }


def _checks(checks: Mapping[tuple[int, str], int]) -> dict[str, Value]:
    samples: defaultdict[str, int] = defaultdict(int)
    for (slot, result), count in checks.items():
        samples[f"{slot} {result if result in CHECK_RESULTS else OTHER}"] += count
    return dict(samples)


def _closed(counts: Mapping[str, int], known: frozenset[str]) -> dict[str, Value]:
    samples: defaultdict[str, int] = defaultdict(int)
    for value, count in counts.items():
        samples[value if value in known else OTHER] += count
    return dict(samples)
